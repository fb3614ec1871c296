"""Files and batches through the real client, over a socket; and a server that is started again."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from plait.serve.http import ServerSettings
from plait.serve.http.app import app_of
from plait.serve.http.multipart import read_form
from plait.serve.http.server import Server

PATH = "/v1/chat/completions"


def lines(n: int, **changes: Any) -> bytes:
    made = []
    for number in range(n):
        body = {"model": "demo", "messages": [{"role": "user", "content": f"question {number}"}]}
        made.append({"custom_id": f"r{number}", "method": "POST", "url": PATH, "body": body} | changes)
    return "".join(json.dumps(line) + "\n" for line in made).encode()


def wait_for_end(client: openai.OpenAI, batch_id: str) -> Any:
    deadline = time.monotonic() + 20
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "cancelled"):
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)


def create(client: openai.OpenAI, raw: bytes, **fields: Any) -> Any:
    file = client.files.create(file=("in.jsonl", raw), purpose="batch")
    asked: Any = {"endpoint": PATH, "completion_window": "24h"} | fields
    return client.batches.create(input_file_id=file.id, **asked)


def answers(client: openai.OpenAI, file_id: str) -> list[Any]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_batch(make_service: Callable, start: Callable, tmp_path: Path) -> None:
    raw = lines(5) + lines(1, custom_id="wrong", body={"model": "demo"})
    with start(make_service(), batch_folder=tmp_path) as live, live.client() as client:
        batch = create(client, raw, metadata={"a": "b"})
        assert (batch.status, batch.metadata, batch.object) == ("validating", {"a": "b"}, "batch")
        batch = wait_for_end(client, batch.id)
        assert batch.status == "completed"
        assert batch.request_counts.model_dump() == {"total": 6, "completed": 5, "failed": 1}
        assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
        good = answers(client, batch.output_file_id)
        assert [answer["custom_id"] for answer in good] == [f"r{n}" for n in range(5)]
        assert good[0]["response"]["body"]["choices"][0]["message"]["content"] == "Hello there"
        (bad,) = answers(client, batch.error_file_id)
        assert (bad["custom_id"], bad["response"]["status_code"]) == ("wrong", 400)
        assert bad["response"]["body"]["error"]["param"] == "messages"
        assert [b.id for b in client.batches.list()] == [batch.id]
        assert not list(tmp_path.rglob("*.partial"))
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)


def test_files(make_service: Callable, start: Callable, tmp_path: Path) -> None:
    with start(make_service(), batch_folder=tmp_path) as live, live.client() as client:
        raw = b"\r\n--x\n" + bytes(range(256)) + b"\r\n"
        made = [client.files.create(file=(f"é{n}.jsonl", raw), purpose="batch") for n in range(3)]
        assert (made[0].filename, made[0].bytes, made[0].purpose) == ("é0.jsonl", len(raw), "batch")
        assert client.files.content(made[0].id).content == raw
        assert {f.id for f in client.files.list()} == {f.id for f in made}
        first = client.files.list(limit=2, order="asc")
        assert first.has_more
        assert [f.id for f in first] == [f.id for f in client.files.list(order="asc")]
        assert client.files.list(purpose="batch_output").data == []
        assert client.files.delete(made[0].id).deleted
        for missing in (made[0].id, "file-x", "%2e%2e%2fbatches"):
            with pytest.raises(openai.NotFoundError):
                client.files.retrieve(missing)
        assert len(list(tmp_path.rglob("file-*"))) == 4


@pytest.mark.parametrize(
    ("raw", "line", "said"),
    [
        (b"\n{", 2, "is not JSON"),
        (lines(1) + lines(1), 2, "has custom_id 'r0', which an earlier line has"),
        (lines(1, url="/v1/embeddings"), 1, "must have method POST and url /v1/chat/completions"),
        (lines(1, body={"stream": True}), 1, "without stream: true"),
        (b"\xff", None, "is not UTF-8"),
        (b"\n", None, "holds no requests"),
    ],
)
def test_a_file_that_is_no_batch(
    make_service: Callable, start: Callable, tmp_path: Path, raw: bytes, line: int | None, said: str
) -> None:
    with start(make_service(), batch_folder=tmp_path) as live, live.client() as client:
        batch = wait_for_end(client, create(client, raw).id)
        assert batch.status == "failed"
        (error,) = batch.errors.data
        assert (error.line, error.code) == (line, "invalid_request")
        assert said.lower() in error.message.lower()


def test_what_is_refused(call: Callable, make_service: Callable, tmp_path: Path) -> None:
    service = make_service()
    assert call(service, "/v1/batches").json()["error"]["code"] == "no_batch_folder"
    options = {"batch_folder": tmp_path}
    body = {"input_file_id": "file-1", "endpoint": PATH, "completion_window": "24h"}
    for wrong, param in (
        ({}, "input_file_id"),
        ({"endpoint": "/v1/x"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"output_expires_after": {}}, "output_expires_after"),
        ({"other": 1}, "other"),
    ):
        refused = call(service, "/v1/batches", body | wrong, **options)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    for query, param in (("limit=0", "limit"), ("limit=x", "limit"), ("after=b", "after"), ("foo=1", "foo")):
        refused = call(service, f"/v1/batches?{query}", **options)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def form(**fields: str) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items()]
    return ("".join(parts) + "--b--\r\n").encode()


@pytest.mark.parametrize(
    ("kind", "raw", "status", "code"),
    [
        ("application/json", b"{}", 415, "not_a_form"),
        ("multipart/form-data", form(file="x", purpose="batch"), 415, "not_a_form"),
        ("multipart/form-data; boundary=b", b"", 400, None),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n--b--", 400, "invalid_form"),
        ("multipart/form-data; boundary=b", form(file="x", purpose="batch")[:-9], 400, "invalid_form"),
        ("multipart/form-data; boundary=b", form(file="x"), 400, "missing_field"),
        ("multipart/form-data; boundary=b", form(file="x", purpose="vision"), 400, "invalid_value"),
        ("multipart/form-data; boundary=b", form(file="", purpose="batch"), 400, "invalid_value"),
        ("multipart/form-data; boundary=b", form(file="x", purpose="batch", other="1"), 400, "unknown_parameter"),
        ("multipart/form-data; boundary=b", form(file="x" * 99, purpose="batch"), 413, "body_too_large"),
        ("multipart/form-data; boundary=b", form(file="x", purpose="batch"), 200, None),
    ],
)
def test_forms(
    call: Callable, make_service: Callable, tmp_path: Path, kind: str, raw: bytes, status: int, code: str | None
) -> None:
    answer = call(
        make_service(), "/v1/files", raw, {"Content-Type": kind}, batch_folder=tmp_path, max_file_bytes=200
    )  # fmt: skip
    assert answer.status_code == status, answer.text
    assert code is None or answer.json()["error"]["code"] == code


def test_a_page_of_another_site_may_leave_nothing(call: Callable, make_service: Callable, tmp_path: Path) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for origin, status in (("http://evil.example", 403), ("null", 403), ("http://test", 200)):
        sent = headers | {"Origin": origin}
        answer = call(make_service(), "/v1/files", form(file="x", purpose="batch"), sent, batch_folder=tmp_path)
        assert answer.status_code == status


def test_parts_are_read_as_they_were_sent() -> None:
    head = b'Content-Type: x/y\r\nContent-Disposition: form-data; name="f"; filename="a;b.txt"'
    raw = b"--b\r\n" + head + b"\r\n\r\n\r\n-\r\n--b--"
    (part,) = read_form(b'Multipart/Form-Data; boundary="b"', raw)
    assert (part.name, part.filename, part.data) == ("f", "a;b.txt", b"\r\n-")


def test_keys_see_their_own(make_service: Callable, start: Callable, tmp_path: Path) -> None:
    with start(make_service(), batch_folder=tmp_path, api_keys=("one", "two")) as live:
        one, two = live.client(api_key="one"), live.client(api_key="two")
        batch = wait_for_end(one, create(one, lines(2)).id)
        assert batch.status == "completed"  # the lines of a batch need no key of their own
        assert two.files.list().data == []
        assert two.batches.list().data == []
        for refused in (lambda: two.batches.retrieve(batch.id), lambda: two.files.content(batch.output_file_id)):
            with pytest.raises(openai.NotFoundError):
                refused()


def test_cancelled(make_service: Callable, start: Callable, tmp_path: Path) -> None:
    async def wait() -> None:
        await asyncio.sleep(0.02)

    with start(make_service(wait=wait), batch_folder=tmp_path, max_concurrent=2) as live, live.client() as client:
        batch = create(client, lines(50))
        while client.batches.retrieve(batch.id).request_counts.completed < 3:
            time.sleep(0.01)
        client.batches.cancel(batch.id)
        batch = wait_for_end(client, batch.id)
        assert batch.status == "cancelled"
        assert 3 <= batch.request_counts.completed < 50
        assert len(answers(client, batch.output_file_id)) == batch.request_counts.completed
        at_once = create(client, lines(3))
        client.batches.cancel(at_once.id)
        assert wait_for_end(client, at_once.id).status == "cancelled"
        assert live.server.admission.running == 0


def test_the_next_process_goes_on(make_service: Callable, tmp_path: Path) -> None:
    """Stopped behind three answers; the others, and only they, are asked of the next server."""

    async def first() -> str:
        service = make_service(wait=lambda: asyncio.sleep(0.002))
        server = Server(service, ServerSettings(batch_folder=tmp_path, max_concurrent=2))
        app_of(server)
        assert server.files is not None
        assert server.jobs is not None
        file = server.files.add(lines(8), "in", "batch", None)
        job = server.jobs.create(file, PATH, None, None)
        while job.request_counts.completed < 3:
            await asyncio.sleep(0)
        await server.jobs.stop()
        return job.id

    async def second(batch_id: str) -> tuple[int, Any, bytes]:
        service = make_service()
        server = Server(service, ServerSettings(batch_folder=tmp_path))
        app_of(server)
        assert server.jobs is not None
        assert server.files is not None
        job = server.jobs.get(batch_id, None)
        assert job is not None
        assert job.status == "in_progress"
        server.jobs.resume()
        while job.status != "completed":
            await asyncio.sleep(0.001)
        output = server.files.get(job.output_file_id or "", None)
        assert output is not None
        return len(service.asked), job, server.files.data(output)

    n_asked, job, output = asyncio.run(second(asyncio.run(first())))
    assert 3 <= 8 - n_asked < 8
    assert job.request_counts.completed == 8
    assert [json.loads(line)["custom_id"] for line in output.splitlines()] == [f"r{n}" for n in range(8)]


def test_a_damaged_record_is_named(make_service: Callable, tmp_path: Path) -> None:
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches" / "batch_1.json").write_text("{")
    with pytest.raises(ValueError, match=r"batch_1.json is damaged"):
        Server(make_service(), ServerSettings(batch_folder=tmp_path))


def test_a_busy_server_is_asked_again(make_service: Callable, start: Callable, tmp_path: Path) -> None:
    with start(make_service(fails_after=0), batch_folder=tmp_path) as live, live.client() as client:
        batch = create(client, lines(1))
        time.sleep(0.3)
        live.service.fails_after = None
        batch = wait_for_end(client, batch.id)
        assert batch.request_counts.completed == 1
        assert len(live.service.asked) >= 2
