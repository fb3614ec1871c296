"""Batch files: answered in order, and gone on with after a stop."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.serve.http.batch import BatchResult, run_batch
from plait.serve.http.settings import ServerSettings


def line(number: int, **changes: Any) -> dict[str, Any]:
    body = {"model": "demo", "messages": [{"role": "user", "content": f"question {number}"}]}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body} | changes


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    return path


def run(service: Any, source: Path, target: Path, **options: Any) -> BatchResult:
    return asyncio.run(run_batch(service, source, target, **options))


def test_a_batch(make_service: Callable, tmp_path: Path) -> None:
    urls = [
        line(1),
        line(2, url="/v1/completions", body={"model": "demo", "prompt": "x"}),
        line(3, url="/v1/embeddings", body={"model": "demo", "input": "x"}),
        line(4, body={"model": "demo"}),
        line(5, url="/v1/responses", body={"model": "demo", "input": "x"}),
    ]
    result = run(make_service(), write(tmp_path / "in", urls), tmp_path / "out")
    assert result == BatchResult(n_requests=5, n_failed=1, n_resumed=0)
    found = [json.loads(text) for text in (tmp_path / "out").read_text().splitlines()]
    assert [answer["custom_id"] for answer in found] == ["r1", "r2", "r3", "r4", "r5"]
    assert [answer["response"]["status_code"] for answer in found] == [200, 200, 200, 400, 200]
    assert found[0]["response"]["body"]["choices"][0]["message"]["content"] == "Hello there"
    assert found[3]["response"]["body"]["error"]["param"] == "messages"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_it_goes_on_where_it_stopped(make_service: Callable, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(n_done: int, n_requests: int) -> None:
        if n_done == 3:
            raise Stopped

    source = write(tmp_path / "in", [line(n) for n in range(8)])
    with pytest.raises(ExceptionGroup):
        run(make_service(), source, tmp_path / "out", n_parallel=1, on_answer=stop)
    assert not (tmp_path / "out").exists()
    partial = tmp_path / "out.partial"
    partial.write_text(partial.read_text() + '{"custom_id": "r7", "resp')  # the power went
    service = make_service()
    assert run(service, source, tmp_path / "out") == BatchResult(8, 0, 3)
    assert len(service.asked) == 5
    found = [json.loads(text)["custom_id"] for text in (tmp_path / "out").read_text().splitlines()]
    assert found == [f"r{n}" for n in range(8)]
    assert not partial.exists()


def test_what_the_engine_failed_at_is_tried_again(make_service: Callable, tmp_path: Path) -> None:
    source = write(tmp_path / "in", [line(1), line(2, body={"model": "other", "messages": []})])
    assert run(make_service(fails_after=0), source, tmp_path / "out").n_failed == 2
    assert not (tmp_path / "out").exists()
    assert run(make_service(), source, tmp_path / "out") == BatchResult(2, 1, 1)
    assert (tmp_path / "out").exists()


def test_another_source_is_not_mixed_in(make_service: Callable, tmp_path: Path) -> None:
    run(make_service(fails_after=0), write(tmp_path / "in", [line(1)]), tmp_path / "out")
    with pytest.raises(ValueError, match="belongs to another batch"):
        run(make_service(), write(tmp_path / "in", [line(2)]), tmp_path / "out")


def test_a_result_is_not_overwritten(make_service: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        run(make_service(), write(tmp_path / "in", [line(1)]), tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no requests"),
        ("nonsense", "in:1 is not JSON"),
        ('\n{"custom_id": "a"}', "in:2 must be an object"),
        (json.dumps(line(1, url="/v1/other")), "url /v1/chat"),
        (json.dumps(line(1, method="GET")), "must have method POST"),
        (json.dumps(line(1)) + "\n" + json.dumps(line(1)), "in:2 has custom_id"),
        (json.dumps(line(1, body={"stream": True})), "without stream"),
    ],
)
def test_files_that_are_no_batch(make_service: Callable, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "in").write_text(text)
    with pytest.raises(ValueError, match=said):
        run(make_service(), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_more_requests_than_the_server_takes_at_once(make_service: Callable, tmp_path: Path) -> None:
    source = write(tmp_path / "in", [line(n) for n in range(40)])
    settings = ServerSettings(max_concurrent=2, max_queued=40)
    assert run(make_service(), source, tmp_path / "out", settings=settings).n_failed == 0
