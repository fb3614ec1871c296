"""Keys, limits, queues, clients that leave or dawdle, and the end."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from plait.serve.http import ServerSettings, new_key
from plait.serve.http.api_keys import ApiKeys

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
PATH = "/v1/chat/completions"


def until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_keys(call: Callable, make_service: Callable, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    kept = new_key("ann", file)
    other = new_key("bob", file)
    text = file.read_text()
    assert kept not in text
    assert other not in text
    assert file.stat().st_mode & 0o077 == 0
    options = {"api_key_file": file, "api_keys": ("given",)}
    service = make_service()
    for key in (kept, other, "given"):
        assert call(service, PATH, CHAT, {"Authorization": f"Bearer {key}"}, **options).status_code == 200
    for headers in (
        None,
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {kept}"},
        {"Authorization": kept},
    ):
        refused = call(service, PATH, CHAT, headers, **options)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    for path in ("/metrics", "/v1/models", "/openapi.json"):
        assert call(service, path, None, **options).status_code == 401
    for path in ("/health", "/ready"):
        assert call(service, path, None, **options).status_code == 200


def test_a_key_is_withdrawn_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    ann, bob = new_key("ann", file), new_key("bob", file)
    keys = ApiKeys(file=file)
    assert [keys.holder(f"Bearer {key}") for key in (ann, bob)] == ["ann", "bob"]
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("bob")))
    assert [keys.holder(f"Bearer {key}") for key in (ann, bob)] == ["ann", None]
    file.write_text("nonsense")
    assert keys.holder(f"Bearer {ann}") == "ann"


@pytest.mark.parametrize("text", ["", "# none\n", "name secret", "name sha256:12"])
def test_a_key_file_that_is_no_key_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ValueError, match="key"):
        ApiKeys(file=file)


def test_a_file_of_keys_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"ann sha256:\xff")
    with pytest.raises(ValueError, match="keys is not UTF-8 text"):
        ApiKeys(file=tmp_path / "keys")


def test_a_name_has_one_key(tmp_path: Path) -> None:
    new_key("ann", tmp_path / "keys")
    with pytest.raises(ValueError, match="has a key named ann"):
        new_key("ann", tmp_path / "keys")


def test_an_open_door_is_refused() -> None:
    with pytest.raises(ValueError, match="no API key"):
        ServerSettings(host="0.0.0.0")
    for options in ({"api_keys": ("k",)}, {"allow_no_key": True}):
        assert ServerSettings(host="0.0.0.0", **options).host == "0.0.0.0"  # type: ignore[arg-type]
    for host in ("127.0.0.1", "::1", "localhost", "127.8.0.1"):
        assert ServerSettings(host=host).host == host


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"", 415, "not_json"),
        (b"[" * 300_000, 400, "invalid_json"),
        (b'{"model": "demo", "messages": ' + b'{"a":' * 5000, 400, "invalid_json"),
        (b'{"model": "demo", "seed": ' + b"9" * 5000 + b"}", 400, None),
        (b'{"model": "demo", "temperature": NaN}', 400, None),
        (b'{"model": "\\ud800"}', 400, "invalid_json"),
        (b'{"model": "\xff"}', 400, "invalid_json"),
        (b"x" * 3000, 413, "body_too_large"),
    ],
)
def test_bodies_that_are_wrong(call: Callable, make_service: Callable, body: bytes, status: int, code: str) -> None:
    limit = 2000 if len(body) == 3000 else 2**20
    headers = {"Content-Type": "application/json"} if body else None
    answer = call(make_service(), PATH, body, headers, max_body_bytes=limit)
    assert answer.status_code == status, answer.text
    assert code is None or answer.json()["error"]["code"] == code


def test_other_content_types_are_refused(call: Callable, make_service: Callable) -> None:
    """A web page elsewhere can make a browser post text/plain here without asking; it can't post JSON."""
    answer = call(make_service(), PATH, json.dumps(CHAT).encode(), {"Content-Type": "text/plain"})
    assert answer.status_code == 415


def test_a_nested_schema_is_an_error_of_the_request(call: Callable, make_service: Callable) -> None:
    nested: dict[str, Any] = {}
    for _ in range(150):
        nested = {"a": nested}
    tools = [{"type": "function", "function": {"name": "f", "parameters": nested}}]
    answer = call(make_service(), PATH, CHAT | {"tools": tools})
    assert answer.status_code == 400
    assert "nest" in answer.json()["error"]["message"]


def test_lenient(call: Callable, make_service: Callable) -> None:
    service = make_service()
    assert call(service, PATH, CHAT | {"novelty": 1}).status_code == 400
    assert call(service, PATH, CHAT | {"novelty": 1}, lenient=True).status_code == 200
    assert call(service, PATH, CHAT | {"audio": {}}, lenient=True).json()["error"]["param"] == "audio"


def test_the_limit_on_tokens(call: Callable, make_service: Callable) -> None:
    service = make_service()
    refused = call(service, PATH, CHAT | {"max_tokens": 9}, max_tokens=8)
    assert refused.json()["error"]["param"] == "max_completion_tokens"
    assert call(service, PATH, CHAT, max_tokens=3).json()["usage"]["completion_tokens"] == 3


def test_the_queue(make_service: Callable, start: Callable) -> None:
    gate = threading.Event()

    async def wait() -> None:
        while not gate.is_set():
            await asyncio.sleep(0.005)

    with start(make_service(wait=wait), max_concurrent=2, max_queued=1) as live:
        statuses: list[int] = []

        def ask() -> None:
            with live.http() as client:
                statuses.append(client.post(PATH, json=CHAT).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert until(lambda: live.server.admission.waiting == 1)
        assert live.service.open == 2
        with live.http() as client:
            refused = client.post(PATH, json=CHAT)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert 'plait:requests_queued{model_name="demo"} 1.0' in client.get("/metrics").text
        gate.set()
        for thread in threads:
            thread.join()
        assert statuses == [200, 200, 200]
        assert live.server.admission.running == 0


def test_a_request_that_takes_too_long(make_service: Callable, start: Callable) -> None:
    async def wait() -> None:
        await asyncio.sleep(30)

    with start(make_service(wait=wait), request_timeout_s=0.3) as live, live.http() as client:
        answer = client.post(PATH, json=CHAT)
        assert answer.status_code == 408
        assert answer.json()["error"]["code"] == "request_timeout"
        assert live.service.open == 0
        assert live.server.admission.running == 0


def test_a_silent_stream_is_kept_alive(make_service: Callable, start: Callable) -> None:
    async def wait() -> None:
        await asyncio.sleep(0.25)

    with start(make_service(wait=wait, text="a"), ping_s=0.1) as live, live.http() as client:
        text = client.post(PATH, json=CHAT | {"stream": True}).text
        assert text.startswith(": still at work\n\n")
        assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels(make_service: Callable, start: Callable, stream: bool) -> None:
    async def wait() -> None:
        await asyncio.sleep(0.05)

    with start(make_service(wait=wait, text="word " * 100)) as live:
        raw = json.dumps(CHAT | {"stream": stream}).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2]))) as connection:
            connection.sendall(head.encode() + raw)
            assert until(lambda: live.service.open == 1)
        assert until(lambda: live.service.open == 0, 2)
        assert live.service.cancelled == 1
        assert until(lambda: live.server.admission.running == 0)
        metrics = live.http().get("/metrics").text
        assert 'plait:requests_broken_total{outcome="disconnected"} 1.0' in metrics


def test_a_client_that_leaves_the_queue(make_service: Callable, start: Callable) -> None:
    gate = threading.Event()

    async def wait() -> None:
        while not gate.is_set():
            await asyncio.sleep(0.005)

    with start(make_service(wait=wait), max_concurrent=1) as live:
        first = threading.Thread(target=lambda: live.http().post(PATH, json=CHAT))
        first.start()
        assert until(lambda: live.service.open == 1)
        with live.http(), pytest.raises(httpx.ReadTimeout):
            httpx.post(live.url + PATH, json=CHAT, timeout=0.2)
        assert until(lambda: live.server.admission.waiting == 0)
        gate.set()
        first.join()
        assert live.http().post(PATH, json=CHAT).status_code == 200
        assert len(live.service.asked) == 2


def test_many_streaming_clients_of_which_some_leave(make_service: Callable, start: Callable) -> None:
    """200 at once, 30 % leave at a random piece; the others get every piece, and nothing stays behind."""

    async def wait() -> None:
        await asyncio.sleep(0.002)

    text = "one two three four five six seven eight nine ten"
    draws = random.Random(0)

    async def ask(client: httpx.AsyncClient, leave_after: int | None) -> str | None:
        got = ""
        async with client.stream("POST", PATH, json=CHAT | {"stream": True}) as answer:
            assert answer.status_code == 200
            n = 0
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    got += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                    n += 1
                if leave_after is not None and n >= leave_after:
                    return None
        return got

    async def all_of_them(url: str) -> list[str | None]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
            leave = [draws.randint(1, 8) if draws.random() < 0.3 else None for _ in range(200)]
            return list(await asyncio.gather(*(ask(client, after) for after in leave)))

    with start(make_service(wait=wait, text=text)) as live:
        answers = asyncio.run(all_of_them(live.url))
        stayed = [answer for answer in answers if answer is not None]
        assert 120 <= len(stayed) <= 160
        assert set(stayed) == {text}
        assert until(lambda: live.service.open == 0)
        assert until(lambda: live.server.admission.running == 0)
        assert live.server.admission.waiting == 0
        assert live.http().post(PATH, json=CHAT).status_code == 200


@pytest.mark.parametrize("comes_second", [False, True])
@pytest.mark.parametrize("said", [b"G", b"POST / HTTP/1.1\r\nHost: x\r\nX-A"])
def test_a_head_that_never_ends(make_service: Callable, start: Callable, said: bytes, comes_second: bool) -> None:
    with start(make_service(), header_timeout_s=0.3) as live:
        with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), timeout=5) as connection:
            if comes_second:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200 OK" in connection.recv(4096)
            connection.sendall(said)
            got = b""
            while piece := connection.recv(4096):
                got += piece
        assert b"408 Request Timeout" in got
        assert live.http().get("/health").status_code == 200


def test_a_head_that_is_too_large(make_service: Callable, start: Callable) -> None:
    with (
        start(make_service()) as live,
        socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), timeout=5) as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        got = b""
        try:
            for _ in range(200):
                connection.sendall(b"X-A: " + b"a" * 1000 + b"\r\n")
                time.sleep(0.001)
            got = connection.recv(4096)
        except OSError:
            got = got or b"431"  # the answer was lost with the connection
        assert b"431" in got


def test_a_body_that_never_ends(make_service: Callable, start: Callable) -> None:
    with start(make_service(), body_timeout_s=0.3) as live:
        with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), timeout=5) as connection:
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
            connection.sendall(head.encode())
            got = b""
            while piece := connection.recv(4096):
                got += piece
        assert b"408" in got
        assert b"body_timeout" in got
        assert live.http().post(PATH, json=CHAT).status_code == 200


def test_a_client_that_does_not_read(make_service: Callable, start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer ends with the time limit, and with it all that the server did for it."""
    monkeypatch.setattr("plait.serve.http.exchange._LAST_WORDS_S", 0.2)
    with start(make_service(text="word " * 400, max_context=1024), request_timeout_s=1, ping_s=0.1) as live:
        raw = json.dumps(CHAT | {"stream": True, "n": 128, "max_tokens": 900}).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
            connection.sendall(head.encode() + raw)
            assert until(lambda: live.service.open == 1)
            assert until(lambda: live.service.open == 0 and live.server.admission.running == 0, 5)
            assert until(lambda: 'broken_total{outcome="timed_out"} 1.0' in live.http().get("/metrics").text)


def test_ready(call: Callable, make_service: Callable) -> None:
    assert call(make_service(), "/ready").status_code == 200
    assert call(make_service(is_up=False), "/ready").status_code == 503
    assert call(make_service(is_up=False), "/health").status_code == 200


def test_metrics(make_service: Callable, start: Callable) -> None:
    with start(make_service()) as live, live.http() as client:
        client.post(PATH, json=CHAT)
        client.post(PATH, json=CHAT | {"n": 2, "stream": True})
        assert until(lambda: live.server.admission.running == 0)
        assert until(lambda: 'finished_reason="stop",model_name="demo"} 3.0' in client.get("/metrics").text)
        found = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    label = '{model_name="demo"}'
    assert found[f"vllm:prefix_cache_hits_total{label}"] == "30.0"
    assert found[f"plait:prefix_tokens_lost_total{label}"] == "10.0"
    assert found[f"plait:state_slots_cached{label}"] == "3.0"
    assert found[f"vllm:kv_cache_usage_perc{label}"] == "0.5"
    assert found[f"vllm:time_to_first_token_seconds_count{label}"] == "2.0"
    assert found[f"vllm:request_generation_tokens_sum{label}"] == "15.0"
    assert found['vllm:request_success_total{finished_reason="stop",model_name="demo"}'] == "3.0"
    assert found['plait:http_responses_total{path="/v1/chat/completions",status="200"}'] == "2.0"


def test_the_log_has_no_prompt_unless_asked(call: Callable, make_service: Callable, caplog: Any) -> None:
    import logging

    logging.getLogger("plait.serve").propagate = True
    body = {"model": "demo", "messages": [{"role": "user", "content": "secret words"}], "user": "u-1"}
    with caplog.at_level("INFO", "plait.serve"):
        call(make_service(), PATH, body)
        (record,) = [r for r in caplog.records if r.getMessage() == "request"]
        assert "secret words" not in str(vars(record))
        assert record.completion_tokens == 5
        assert record.user == "u-1"
        caplog.clear()
        call(make_service(), PATH, body, log_prompts=True)
        assert "secret words" in str([vars(r) for r in caplog.records])


SERVE = """
import asyncio, pathlib, sys
sys.path.insert(0, {folder!r})
from conftest import Scripted
from plait.serve.http import ServerSettings, serve
from plait.serve.http.logs import log_json_lines

async def wait():
    while not pathlib.Path({gate!r}).exists():
        await asyncio.sleep(0.01)

log_json_lines()
asyncio.run(serve(Scripted(wait=wait, text="one two three"), ServerSettings(port=0, drain_s=20, ping_s=0.2)))
"""


def test_sigterm_drains(tmp_path: Path) -> None:
    """Answers under way end, new requests get a 503, and the exit code is 0."""
    code = SERVE.format(folder=str(Path(__file__).parent), gate=str(tmp_path / "gate"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        url = json.loads(process.stderr.readline())["url"].removesuffix("/v1")
        with httpx.stream("POST", url + PATH, json=CHAT | {"stream": True}, timeout=20) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": still at work"
            process.send_signal(signal.SIGTERM)
            assert json.loads(process.stderr.readline())["event"] == "draining"
            refused = httpx.post(url + PATH, json=CHAT, timeout=20)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
            assert httpx.get(url + "/ready", timeout=20).status_code == 503
            assert httpx.get(url + "/health", timeout=20).status_code == 200
            (tmp_path / "gate").touch()
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
