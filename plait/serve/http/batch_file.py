"""Batch files in OpenAI's format: lines of requests, and the journal in which their answers are collected.

The journal is what makes a batch resumable: its first line names the source by hash, each further line is an answer.
What was answered isn't asked again; what failed for want of the server is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pydantic_core import to_json
from starlette.types import ASGIApp, Message

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_PASSING = frozenset({408, 429})  # and 5xx: tried again by the next run
_MAX_TRIES = 5  # of a request that may be what ends the engine


class BatchFileError(ValueError):
    """A file that is no batch file; `line` counts from 1, None if it is the whole file."""

    def __init__(self, name: str, line: int | None, said: str) -> None:
        super().__init__(f"{name}:{line} {said}" if line else f"{name} {said}")
        self.line, self.said = line, said


@dataclass(frozen=True)
class BatchLine:
    custom_id: str
    url: str
    body: dict[str, Any]


def read_lines(raw: bytes, name: str, *, urls: Sequence[str] = URLS) -> list[BatchLine]:
    """Raises BatchFileError, in which the file is called `name`, for the first line that is wrong."""
    lines, seen = [], set()
    for number, text in _numbered(raw, name):
        line = _line(text, name, number, urls)
        if line.custom_id in seen:
            raise BatchFileError(name, number, f"has custom_id {line.custom_id!r}, which an earlier line has")
        seen.add(line.custom_id)
        lines.append(line)
    if not lines:
        raise BatchFileError(name, None, "holds no requests")
    return lines


def _line(text: str, name: str, number: int, urls: Sequence[str]) -> BatchLine:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BatchFileError(name, number, f"is not JSON: {error}") from error
    if not isinstance(found, dict) or {"custom_id", "url", "body"} - set(found):
        raise BatchFileError(name, number, "must be an object with custom_id, method, url and body")
    if found.get("method", "POST") != "POST" or found["url"] not in urls:
        raise BatchFileError(name, number, f"must have method POST and url {' or '.join(urls)}")
    if not isinstance(found["body"], dict) or found["body"].get("stream"):
        raise BatchFileError(name, number, "must have a body that is an object without stream: true")
    if not isinstance(found["custom_id"], str):
        raise BatchFileError(name, number, "must have a custom_id that is text")
    return BatchLine(found["custom_id"], found["url"], found["body"])


def _numbered(raw: bytes, name: str) -> Iterator[tuple[int, str]]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BatchFileError(name, None, f"is not UTF-8: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


class Journal:
    """Answers of a batch by custom_id. Raises ValueError if the file at `path` belongs to another source."""

    def __init__(self, path: Path, source: bytes, name: str) -> None:
        self.path = path
        self.answers: dict[str, dict[str, Any]] = {}
        digest = hashlib.sha256(source).hexdigest()
        if path.exists():
            whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # a torn last line is dropped
            if not whole or json.loads(whole[0]).get("source_sha256") != digest:
                raise ValueError(f"{path} belongs to another batch than {name}: move it away")
            found = [json.loads(line) for line in whole[1:]]
            self.answers = {answer["custom_id"]: answer for answer in found if not may_pass(answer)}
        replace_rows(path, [{"source_sha256": digest}, *self.answers.values()])
        self._stream: TextIO = path.open("a", encoding="utf-8")

    def add(self, answer: dict[str, Any]) -> None:
        self.answers[answer["custom_id"]] = answer
        self._stream.write(to_json(answer).decode() + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def status_of(answer: dict[str, Any]) -> int:
    return int(answer["response"]["status_code"])


def may_pass(answer: dict[str, Any]) -> bool:
    """Whether asking again may bring something else."""
    return status_of(answer) >= 500 or status_of(answer) in _PASSING


def replace_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(b"".join(to_json(row) + b"\n" for row in rows))
    os.replace(unfinished, path)


async def answer_lines(
    app: ASGIApp,
    lines: Sequence[BatchLine],
    journal: Journal,
    *,
    n_parallel: int,
    waits: bool = False,
    key: str | None = None,
    on_answer: Callable[[dict[str, Any]], None] = lambda answer: None,
) -> None:
    """Asks what the journal has no answer of. With `waits` a busy server is asked again when it says to come back, one
    whose engine fails at most five times. `key` is the name under which the requests are logged.
    """
    waiting = iter([line for line in lines if line.custom_id not in journal.answers])

    async def work() -> None:
        for line in waiting:
            answer = await _answer(app, line, waits, key)
            journal.add(answer)
            on_answer(answer)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(n_parallel, len(lines))):
            group.create_task(work())


async def _answer(app: ASGIApp, line: BatchLine, waits: bool, key: str | None) -> dict[str, Any]:
    raw = json.dumps(line.body).encode()
    status, headers, said = await _call(app, line.url, raw, key)
    n_failed = 0
    while waits and (status == 429 or (status == 503 and n_failed < _MAX_TRIES)):
        n_failed += status == 503
        await asyncio.sleep(int(headers.get(b"retry-after", b"1")))
        status, headers, said = await _call(app, line.url, raw, key)
    request_id = headers[b"x-request-id"].decode()
    return {
        "id": f"batch_req_{request_id}",
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": json.loads(said)},
        "error": None,
    }


async def _call(app: ASGIApp, path: str, raw: bytes, key: str | None) -> tuple[int, dict[bytes, bytes], bytes]:
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
        "plait.key": key or "batch",
    }  # fmt: skip
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body
