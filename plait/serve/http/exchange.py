"""One request to the engine, from its turn in the queue to its last byte: whole or as server-sent events.

The work runs beside a watch on the connection. Whichever ends first ends the other: a client that leaves cancels the
work and with it the engine's; so does the time limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from plait.serve.http.errors import ApiError, internal_error
from plait.serve.http.front import send_error
from plait.serve.http.logs import logger
from plait.serve.http.server import Server
from plait.serve.http.trace import Trace

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # else nginx holds the events back
]


class Answer(Protocol):
    """What an endpoint makes of a request: the whole object, or the same as events."""

    @property
    def streams(self) -> bool: ...

    async def whole(self) -> dict[str, Any]: ...

    def pieces(self) -> AsyncGenerator[bytes, None]: ...

    def failure(self, error: ApiError) -> bytes:
        """The last event of a stream that breaks."""
        ...


class Exchange(Response):
    def __init__(self, server: Server, trace: Trace, answer: Answer) -> None:
        super().__init__()
        self.server, self.trace, self.answer = server, trace, answer
        self._has_begun = False
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._work(send))
        watch = asyncio.create_task(self._watch(receive, send))
        left_s = self.server.settings.request_timeout_s - self.trace.elapsed_s
        try:
            await asyncio.wait({work, watch}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            error = await self._ended(work, watch)
            if error is not None:
                await self._fail(error, send)
        finally:
            await _cancel(work)
            await _cancel(watch)

    async def _ended(self, work: asyncio.Task[None], watch: asyncio.Task[None]) -> ApiError | None:
        """What to tell the client; None if all was said, or nobody listens."""
        if not work.done():
            await _cancel(work)
            if watch.done():
                self.trace.outcome = "disconnected"
                return None
            self.trace.outcome = "timed_out"
            limit = self.server.settings.request_timeout_s
            return ApiError(408, f"the answer took longer than {limit:g} s", code="request_timeout")
        error = work.exception()
        if error is None or isinstance(error, ApiError):
            return error
        self.trace.outcome = "failed"
        logger.error("request failed", exc_info=error, extra={"request_id": self.trace.request_id})
        return internal_error(self.trace.request_id)

    async def _fail(self, error: ApiError, send: Send) -> None:
        if not self._has_begun:
            await send_error(send, error)
        elif self.answer.streams:
            await send({"type": "http.response.body", "body": self.answer.failure(error)})

    async def _work(self, send: Send) -> None:
        async with self.server.admission:
            began = time.monotonic()
            try:
                await (self._stream(send) if self.answer.streams else self._whole(send))
            finally:
                self.server.admission.note(time.monotonic() - began)

    async def _whole(self, send: Send) -> None:
        raw = to_json(await self.answer.whole(), inf_nan_mode="null")
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
        self._has_begun = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    async def _stream(self, send: Send) -> None:
        async with aclosing(self.answer.pieces()) as pieces:
            async for piece in pieces:
                await self._begin(send)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                self._sent_at = time.monotonic()
        await self._begin(send)
        await send({"type": "http.response.body", "body": b""})

    async def _begin(self, send: Send) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Returns when the client leaves. Meanwhile a silent stream gets a comment now and then: a long prompt is
        read for minutes, and proxies close connections on which nothing moves.
        """
        ping_s = self.server.settings.ping_s
        listening = asyncio.ensure_future(receive())
        try:
            while True:
                await asyncio.wait({listening}, timeout=ping_s if self.answer.streams else None)
                if listening.done():
                    if listening.result()["type"] == "http.disconnect":
                        return
                    listening = asyncio.ensure_future(receive())
                elif time.monotonic() - self._sent_at >= ping_s:
                    await self._begin(send)
                    await send({"type": "http.response.body", "body": b": still at work\n\n", "more_body": True})
        finally:
            listening.cancel()


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits until it is over; its own errors were looked at or don't matter any more."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # noted, or asyncio would complain


def event(value: Any) -> bytes:
    """A server-sent event of chat and plain completions."""
    return b"data: " + to_json(value, inf_nan_mode="null") + b"\n\n"


DONE = b"data: [DONE]\n\n"
