"""The tuned table: nearest token count, whole entries, and what serving must warm up."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.ops import tuned

MEASURED = {"8": "a", "64": "b", "128": "c"}


@pytest.mark.parametrize(("tokens", "found"), [(8, "a"), (15, "a"), (16, None), (5, "a"), (4, None), (80, "b"),
                                               (91, "c"), (128, "c"), (255, "c"), (256, None), (0, None)])  # fmt: skip
def test_the_nearest_measured_count_counts_if_it_is_near(tokens: int, found: str | None) -> None:
    assert tuned.nearest(MEASURED, tokens) == found
    assert tuned.nearest({}, tokens) is None


def test_the_cpu_has_no_settings_and_the_longest_name_wins(monkeypatch) -> None:
    made = {"NVIDIA H": {"op": {"3x4": {"1": 1}}}, "NVIDIA H100": {"op": {"3x4": {"1": 2}}}, "": {}}
    monkeypatch.setattr(tuned, "table", lambda: made)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    found = tuned._of_device.__wrapped__(torch.device("cuda", 0))
    assert found == {"op": {"3x4": {"1": 2}}}
    assert tuned.setting("op", torch.device("cpu"), (3, 4), 1) is None


def test_every_entry_of_the_table_fits_its_kernel() -> None:
    lengths = {"moe_packed": 6, "moe_one_token": 2, "moe_rows_bfloat16": 6, "moe_rows_int8": 6, "linear_int8": 5,
               "attention_decode": 4}  # fmt: skip
    for device, ops in json.loads(tuned.TABLE.read_text())["settings"].items():
        assert device.startswith("NVIDIA ")
        for op, sizes in ops.items():
            for measured in sizes.values():
                assert measured
                assert all(int(tokens) > 0 and len(entry) == lengths[op] for tokens, entry in measured.items())


@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_a_power_of_two_lies_between_any_two_thresholds(most: int, tokens: int) -> None:
    counts = tuned.token_counts(most)
    assert counts == sorted(set(counts))
    assert counts[-1] == most
    if tokens <= most:
        assert any(n <= tokens < 2 * n for n in counts)
    with pytest.raises(ValueError, match="at least 1"):
        tuned.token_counts(0)
