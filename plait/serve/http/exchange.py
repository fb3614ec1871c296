"""One request to the engine, from its turn in the queue to its last byte: whole or as server-sent events.

The work runs in the request's own task, beside a watch on the connection. A client that leaves and a time limit that is
over cancel the work, and with it the engine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

from pydantic_core import to_json
from starlette.types import Receive, Send

from plait.serve.http.errors import ApiError, internal_error, send_error
from plait.serve.http.logs import logger
from plait.serve.http.server import Server
from plait.serve.http.trace import Trace

_LAST_WORDS_S = 5.0
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


class Exchange:
    def __init__(self, server: Server, trace: Trace, answer: Answer) -> None:
        self.server, self.trace, self.answer = server, trace, answer
        self._has_begun = False
        self._is_over = False  # whoever leaves now has had all
        self._sent_at = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._next_ping: asyncio.TimerHandle | None = None
        self._ping: asyncio.Task[None] | None = None

    async def run(self, receive: Receive, send: Send) -> None:
        self._task = asyncio.current_task()
        watch = asyncio.create_task(self._watch(receive))
        left_s = self.server.settings.request_timeout_s - self.trace.elapsed_s
        limit = asyncio.get_running_loop().call_later(left_s, self._stop, "timed_out")
        if self.answer.streams:
            self._arm_ping(send)
        try:
            error = await self._outcome(send)
        finally:
            self._is_over = True
            limit.cancel()
            watch.cancel()
            if self._next_ping is not None:
                self._next_ping.cancel()
            if self._ping is not None:
                self._ping.cancel()
        if error is not None:
            with contextlib.suppress(TimeoutError):  # a client that reads nothing is told nothing
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._fail(error, send)

    async def _outcome(self, send: Send) -> ApiError | None:
        """Does the work. What to tell the client; None if all was said, or nobody listens."""
        try:
            await self._work(send)
        except ApiError as error:
            return error
        except asyncio.CancelledError:
            if self.trace.outcome not in ("timed_out", "disconnected"):
                raise
            assert self._task is not None
            self._task.uncancel()
            if self.trace.outcome == "disconnected":
                return None
            limit = self.server.settings.request_timeout_s
            return ApiError(408, f"the answer took longer than {limit:g} s", code="request_timeout")
        except Exception as error:
            self.trace.outcome = "failed"
            logger.error("request failed", exc_info=error, extra={"request_id": self.trace.request_id})
            return internal_error(self.trace.request_id)
        return None

    def _stop(self, outcome: str) -> None:
        """Cancels the work, once."""
        if not self._is_over:
            self._is_over = True
            self.trace.outcome = outcome
            assert self._task is not None
            self._task.cancel()

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
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
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

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stop("disconnected")

    def _arm_ping(self, send: Send) -> None:
        """A silent stream gets a comment now and then: a long prompt is read for minutes, and proxies close connections
        on which nothing moves.
        """
        ping_s = self.server.settings.ping_s

        def look() -> None:
            is_heard = self._ping is None or self._ping.done()
            if time.monotonic() - self._sent_at >= ping_s and is_heard and not self._is_over:
                self._ping = asyncio.create_task(self._say_ping(send))
            self._arm_ping(send)

        self._next_ping = asyncio.get_running_loop().call_later(ping_s, look)

    async def _say_ping(self, send: Send) -> None:
        await self._begin(send)
        await send({"type": "http.response.body", "body": b": still at work\n\n", "more_body": True})


def event(value: Any) -> bytes:
    """A server-sent event of chat and plain completions."""
    return b"data: " + to_json(value, inf_nan_mode="null") + b"\n\n"


DONE = b"data: [DONE]\n\n"
