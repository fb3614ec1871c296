"""Batch files in OpenAI's format: requests in a JSONL file, answers in another, in the same order.

Answers are collected in `OUT.partial` as they come. A run that is stopped goes on from there: what was answered isn't
asked again, what failed for want of the server is. `OUT` appears when all is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pydantic_core import to_json
from starlette.types import ASGIApp, Message

from plait.serve.http.app import create_app
from plait.serve.http.settings import ServerSettings
from plait.serve.service import Service

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_PASSING = frozenset({408, 429})  # and 5xx: tried again by the next run


@dataclass(frozen=True)
class BatchResult:
    n_requests: int
    n_failed: int  # with an error status
    n_resumed: int  # answered by an earlier run


@dataclass(frozen=True)
class _Line:
    custom_id: str
    url: str
    body: dict[str, Any]


async def run_batch(
    service: Service,
    source: Path,
    target: Path,
    *,
    settings: ServerSettings | None = None,
    n_parallel: int = 256,
    on_answer: Callable[[int, int], None] = lambda n_done, n_requests: None,
) -> BatchResult:
    """Answers every request of `source`. Raises ValueError for a file that is no batch file, before anything runs, and
    for a `target` that exists or a partial one that belongs to another source.
    """
    if target.exists():
        raise ValueError(f"{target} exists already: move it away, or name another file")
    raw = source.read_bytes()
    lines = _read(raw, source)
    partial = target.with_name(f"{target.name}.partial")
    answers = _resume(partial, hashlib.sha256(raw).hexdigest(), source)
    n_resumed = len(answers)
    app = create_app(service, settings)
    waiting = iter([line for line in lines if line.custom_id not in answers])
    with partial.open("a", encoding="utf-8") as stream:

        async def work() -> None:
            for line in waiting:
                answer = await _answer(app, line)
                answers[line.custom_id] = answer
                _append(stream, answer)
                on_answer(len(answers), len(lines))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(n_parallel, len(lines))):
                group.create_task(work())
    _finish(partial, target, [answers[line.custom_id] for line in lines])
    n_failed = sum(answer["response"]["status_code"] >= 400 for answer in answers.values())
    return BatchResult(len(lines), n_failed, n_resumed)


def _read(raw: bytes, source: Path) -> list[_Line]:
    lines, seen = [], set()
    for number, text in _numbered(raw, source):
        where = f"{source}:{number}"
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        if not isinstance(found, dict) or {"custom_id", "url", "body"} - set(found):
            raise ValueError(f"{where} must be an object with custom_id, method, url and body")
        if found.get("method", "POST") != "POST" or found["url"] not in URLS:
            raise ValueError(f"{where}: method must be POST and url one of {', '.join(URLS)}")
        if not isinstance(found["body"], dict) or found["body"].get("stream"):
            raise ValueError(f"{where}: body must be an object without stream: true")
        if not isinstance(found["custom_id"], str) or found["custom_id"] in seen:
            raise ValueError(f"{where}: custom_id must be text that no other line has")
        seen.add(found["custom_id"])
        lines.append(_Line(found["custom_id"], found["url"], found["body"]))
    if not lines:
        raise ValueError(f"{source} holds no requests")
    return lines


def _numbered(raw: bytes, source: Path) -> Iterator[tuple[int, str]]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _resume(partial: Path, digest: str, source: Path) -> dict[str, dict[str, Any]]:
    """Answers of an earlier run. Its first line names the source by hash; a torn last line is dropped."""
    if not partial.exists():
        _replace(partial, [{"source_sha256": digest}])
        return {}
    whole = partial.read_text(encoding="utf-8").split("\n")[:-1]
    if not whole or json.loads(whole[0]).get("source_sha256") != digest:
        raise ValueError(f"{partial} belongs to another batch than {source}: move it away")
    kept = [answer for answer in map(json.loads, whole[1:]) if not _may_pass(answer["response"]["status_code"])]
    _replace(partial, [{"source_sha256": digest}, *kept])
    return {answer["custom_id"]: answer for answer in kept}


def _may_pass(status: int) -> bool:
    return status >= 500 or status in _PASSING


def _append(stream: TextIO, answer: dict[str, Any]) -> None:
    stream.write(to_json(answer).decode() + "\n")
    stream.flush()


def _finish(partial: Path, target: Path, answers: list[dict[str, Any]]) -> None:
    """The target appears whole if nothing is left to try again; else the partial file stays for the next run."""
    if any(_may_pass(answer["response"]["status_code"]) for answer in answers):
        return
    _replace(partial, answers)
    os.replace(partial, target)


def _replace(path: Path, rows: list[dict[str, Any]]) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(b"".join(to_json(row) + b"\n" for row in rows))
    os.replace(unfinished, path)


async def _answer(app: ASGIApp, line: _Line) -> dict[str, Any]:
    status, headers, raw = await _call(app, line.url, json.dumps(line.body).encode())
    request_id = headers[b"x-request-id"].decode()
    return {
        "id": f"batch_req_{request_id}",
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": json.loads(raw)},
        "error": None,
    }


async def _call(app: ASGIApp, path: str, raw: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request through the application, as a server would make it."""
    given = [{"type": "http.request", "body": raw, "more_body": False}]
    sent: list[Message] = []
    never = asyncio.Event()

    async def receive() -> Message:
        if given:
            return given.pop()
        await never.wait()
        raise AssertionError("nobody sets it")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None, "server": None,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())],
    }  # fmt: skip
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body
