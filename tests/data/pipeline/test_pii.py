"""Personal data is found, and what only looks like it stays."""

import pytest

from plait.data.pipeline.pii import scrub_pii


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("write to jo.smith+x@mail.university.edu.", "write to <EMAIL>."),
        ("seen from 8.8.8.8 at noon", "seen from <IP> at noon"),
        ("call +49 (30) 1234 5678 now", "call <PHONE> now"),
        ("card 4111 1111 1111 1111.", "card <CARD>."),
    ],
)
def test_found(text: str, scrubbed: str) -> None:
    assert scrub_pii(text) == (scrubbed, 1)


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com and root@localhost.test",
        "192.168.0.1, 127.0.0.1 and 10.1.2.3",
        "version 1.2.3.4.5",
        "1234 5678 9012 3456",
        "0000 0000 0000 0000",
        "sum of 3 + 4 and 2026-11-22",
    ],
)
def test_left_alone(text: str) -> None:
    assert scrub_pii(text) == (text, 0)
