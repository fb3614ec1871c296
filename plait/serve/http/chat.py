"""/v1/chat/completions: an answer's pieces as OpenAI's chat objects."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json

from plait.serve.http.chat_body import ChatBody
from plait.serve.http.chat_request import Asked, chat_asked
from plait.serve.http.errors import ApiError
from plait.serve.http.exchange import DONE, event
from plait.serve.http.logprobs import chat_logprobs
from plait.serve.http.message import Event, MessageStream, join
from plait.serve.http.server import Server, usage
from plait.serve.http.trace import Trace
from plait.serve.service import Delta
from plait.text import CitationsEvent, ContentDelta, ReasoningDelta, ToolCall, ToolCallEvent


class ChatAnswer:
    """Whole or streamed, the events of each choice go through the same `MessageStream`."""

    def __init__(self, server: Server, trace: Trace, body: ChatBody) -> None:
        """Raises ApiError for what can't be asked."""
        self.server, self.trace, self.body = server, trace, body
        server.check_tokens(body.max_completion_tokens or body.max_tokens, "max_completion_tokens")
        self.asked: Asked = chat_asked(body, server.service, server.form, max_tokens=server.max_tokens)
        self.streams = bool(body.stream)
        self.created = int(time.time())
        self.id = f"chatcmpl-{trace.request_id}"
        self.choices = [Choice(self, index) for index in range(body.n or 1)]

    async def whole(self) -> dict[str, Any]:
        async with aclosing(self.server.deltas(self.asked, self.trace)) as deltas:
            async for delta in deltas:
                self.choices[delta.answer].take(delta)
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.body.model,
            "choices": [choice.whole() for choice in self.choices],
            "usage": self._usage(),
        } | ({} if self.body.service_tier is None else {"service_tier": "default"})

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.body.model}
        with_usage = self.body.stream_options is not None and bool(self.body.stream_options.include_usage)
        start = b"data: " + to_json(head)[:-1] + b',"choices":['
        end = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"
        async with aclosing(self.server.deltas(self.asked, self.trace)) as deltas:
            async for delta in deltas:
                chunks = self.choices[delta.answer].chunks(delta)
                if chunks:
                    yield b"".join([start + to_json(chunk, inf_nan_mode="null") + end for chunk in chunks])
        if with_usage:
            yield event({**head, "choices": [], "usage": self._usage()})
        yield DONE

    def failure(self, error: ApiError) -> bytes:
        return event(error.body)

    def _usage(self) -> dict[str, Any]:
        if not self.server.form.reasons:
            return usage(self.trace)
        n_reasoning = sum(choice.n_reasoning_tokens for choice in self.choices)
        return usage(self.trace) | {"completion_tokens_details": {"reasoning_tokens": n_reasoning}}

    def call(self, index: int, event: ToolCallEvent) -> dict[str, Any]:
        return {
            "id": f"call_{self.trace.request_id}_{index}_{event.index}",
            "type": "function",
            "function": {"name": event.call.name, "arguments": event.call.arguments},
        }


class Choice:
    """One of the n answers."""

    def __init__(self, answer: ChatAnswer, index: int) -> None:
        self.answer, self.index = answer, index
        self._stream = MessageStream(answer.server.form, sections=answer.asked.sections)
        self._events: list[Event] = []
        self._logprobs: list[dict[str, Any]] | None = [] if answer.body.logprobs else None
        self._finish_reason = "stop"
        self._has_begun = self._has_called = False

    @property
    def n_reasoning_tokens(self) -> int:
        return self._stream.n_reasoning_tokens

    def take(self, delta: Delta) -> tuple[list[Event], list[dict[str, Any]] | None]:
        """What a piece brings: events and log-probabilities."""
        events = self._stream.push(delta.text, len(delta.token_ids))
        if delta.finish_reason is not None:
            events += self._stream.finish()
        self._has_called |= any(isinstance(e, ToolCallEvent) for e in events)
        if delta.finish_reason is not None:
            is_call = delta.finish_reason == "stop" and self._has_called
            self._finish_reason = "tool_calls" if is_call else delta.finish_reason
        noted = None
        if self._logprobs is not None:
            tokenizer = self.answer.server.service.tokenizer
            noted = chat_logprobs(tokenizer, delta.logprobs or (), frozenset(tokenizer.eos_ids))
            self._logprobs += noted
        self._events += events if not self.answer.streams else []
        return events, noted

    def whole(self) -> dict[str, Any]:
        message = join(self._events)
        made: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
        if message.reasoning is not None:
            made["reasoning_content"] = message.reasoning
        if message.tool_calls:
            made["tool_calls"] = [
                self.answer.call(self.index, ToolCallEvent(n, call)) for n, call in enumerate(message.tool_calls)
            ]
        elif message.content is None:
            made["content"] = ""
        if message.citations is not None:
            made["citations"] = _citations(message.citations)
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        return {
            "index": self.index, "message": made, "logprobs": logprobs, "finish_reason": self._finish_reason
        }  # fmt: skip

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """What a piece adds to the stream: nothing, or some choices of chunks."""
        events, noted = self.take(delta)
        shown = _shown(self.answer, self.index, events)
        if not self._has_begun and (shown or noted or delta.finish_reason is not None):
            self._has_begun = True
            shown = [{"role": "assistant", "content": ""}, *shown]
        if noted and not shown:
            shown = [{}]
        chunks = [self._chunk(part, None) for part in shown]
        if noted:
            chunks[-1]["logprobs"] = {"content": noted, "refusal": None}
        if delta.finish_reason is not None:
            chunks.append(self._chunk({}, self._finish_reason))
        return chunks

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _shown(answer: ChatAnswer, index: int, events: Sequence[Event]) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for found in events:
        match found:
            case ContentDelta(text):
                shown.append({"content": text})
            case ReasoningDelta(text):
                shown.append({"reasoning_content": text})
            case ToolCallEvent(number, ToolCall()):
                shown.append({"tool_calls": [{"index": number, **answer.call(index, found)}]})
            case CitationsEvent(document_ids):
                shown.append({"citations": _citations(document_ids)})
    return shown


def _citations(document_ids: Sequence[int | str]) -> list[dict[str, Any]]:
    return [{"document_id": document_id} for document_id in document_ids]
