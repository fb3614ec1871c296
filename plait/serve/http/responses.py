"""/v1/responses: the same answer as items and typed events. Nothing is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json

from plait.serve.http.chat_request import chat_asked
from plait.serve.http.errors import ApiError
from plait.serve.http.logprobs import chat_logprobs
from plait.serve.http.message import Event, MessageStream
from plait.serve.http.responses_body import ResponsesBody
from plait.serve.http.responses_items import ItemWriter
from plait.serve.http.responses_request import as_chat
from plait.serve.http.server import Server
from plait.serve.http.trace import Trace
from plait.serve.service import Delta
from plait.text import CitationsEvent


class ResponsesAnswer:
    """Whole or streamed, the answer goes through the same `MessageStream` and `ItemWriter`."""

    def __init__(self, server: Server, trace: Trace, body: ResponsesBody) -> None:
        """Raises ApiError for what can't be asked."""
        self.server, self.trace, self.body = server, trace, body
        server.check_tokens(body.max_output_tokens, "max_output_tokens")
        self.chat = as_chat(body)
        self.asked = chat_asked(self.chat, server.service, server.form, max_tokens=server.max_tokens)
        self.streams = bool(body.stream)
        self.created_at = int(time.time())
        self._stream = MessageStream(server.form, sections=self.asked.sections)
        self._items = ItemWriter(trace.request_id)
        self._citations: list[int | str] | None = None
        self._n_events = 0
        self._finish_reason = "stop"

    async def whole(self) -> dict[str, Any]:
        async with aclosing(self.server.deltas(self.asked, self.trace)) as deltas:
            async for delta in deltas:
                for _ in self._take(delta):
                    pass
        return self._object(self._status)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.server.deltas(self.asked, self.trace)) as deltas:
            has_begun = False
            async for delta in deltas:
                if not has_begun:
                    yield self._event("response.created", {"response": self._object("in_progress")})
                    yield self._event("response.in_progress", {"response": self._object("in_progress")})
                    has_begun = True
                written = b"".join(self._event(kind, fields) for kind, fields in self._take(delta))
                if written:
                    yield written
        yield self._event(f"response.{self._status}", {"response": self._object(self._status)})

    def failure(self, error: ApiError) -> bytes:
        """An error, and the response that failed."""
        failed = self._object("failed") | {"error": {"code": "server_error", "message": error.message}}
        said = {"code": error.code, "message": error.message, "param": error.param}
        return self._event("error", said) + self._event("response.failed", {"response": failed})

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish_reason == "length" else "completed"

    def _take(self, delta: Delta) -> Iterator[tuple[str, dict[str, Any]]]:
        events: list[Event] = self._stream.push(delta.text, len(delta.token_ids))
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
            events += self._stream.finish()
        if self.chat.logprobs:
            tokenizer = self.server.service.tokenizer
            self._items.note(chat_logprobs(tokenizer, delta.logprobs or (), frozenset(tokenizer.eos_ids)))
        for event in events:
            if isinstance(event, CitationsEvent):
                self._citations = [*(self._citations or []), *event.document_ids]
            else:
                yield from self._items.write(event)
        if delta.finish_reason is not None:
            yield from self._items.close("incomplete" if delta.finish_reason == "length" else "completed")

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        raw = to_json({"type": kind, "sequence_number": self._n_events, **fields}, inf_nan_mode="null")
        self._n_events += 1
        return b"event: " + kind.encode() + b"\ndata: " + raw + b"\n\n"

    def _object(self, status: str) -> dict[str, Any]:
        body = self.body
        ended = status in ("completed", "incomplete")
        made: dict[str, Any] = {
            "id": f"resp_{self.trace.request_id}",
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": self._items.items if status != "in_progress" else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "top_logprobs": body.top_logprobs or 0,
            "text": {"format": _format(body)},
            "tool_choice": _choice(body),
            "tools": [_tool(tool) for tool in body.tools or []],
            "truncation": "disabled",
            "metadata": body.metadata or {},
            "usage": self._usage() if ended else None,
        }
        if body.user is not None:
            made["user"] = body.user
        if not ended:
            del made["usage"]
        if self._citations is not None:
            made["citations"] = [{"document_id": document_id} for document_id in self._citations]
        return made

    def _usage(self) -> dict[str, Any]:
        trace = self.trace
        return {
            "input_tokens": trace.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": trace.cached_tokens,
                "cache_write_tokens": trace.prompt_tokens - trace.cached_tokens,
            },
            "output_tokens": trace.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._stream.n_reasoning_tokens},
            "total_tokens": trace.prompt_tokens + trace.completion_tokens,
        }


def _format(body: ResponsesBody) -> dict[str, Any]:
    wanted = body.text.format if body.text else None
    return {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)


def _choice(body: ResponsesBody) -> Any:
    choice = body.tool_choice
    return (
        "auto" if choice is None else choice if isinstance(choice, str) else {"type": "function", "name": choice.name}
    )


def _tool(tool: Any) -> dict[str, Any]:
    made: dict[str, Any] = tool.model_dump()
    return made | {"strict": bool(tool.strict)}
