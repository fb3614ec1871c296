"""`plait batch`, with the demo model."""

import json
from pathlib import Path

import pytest

from plait.cli import main

BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def test_a_file_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": BODY | extra}
        for n, extra in enumerate([{}, {"max_tokens": -1}, {}])
    ]
    source.write_text("".join(json.dumps(request) + "\n" for request in requests))
    options = ["--model", "demo", "--cache-tokens", "4096", "--json"]
    assert main(["batch", str(source), str(target), *options]) == 0
    assert json.loads(capsys.readouterr().out) == {"n_requests": 3, "n_resumed": 0, "n_failed": 1}
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["0", "1", "2"]
    assert [answer["response"]["status_code"] for answer in answers] == [200, 400, 200]
    assert answers[0]["response"]["body"]["usage"]["completion_tokens"] == 4


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "a", "b", "--model", "demo", "--parallel", "0"]) == 2
    assert "--parallel 0" in capsys.readouterr().err
    assert main(["batch", str(tmp_path / "none"), "b", "--model", "demo", "--cache-tokens", "1024"]) == 1
