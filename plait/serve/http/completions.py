"""/v1/completions: text behind text, for one prompt or many; echo and log-probabilities of prompts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic_core import to_json

from plait.serve.http.chat_request import Asked, sampling
from plait.serve.http.completion_body import CompletionBody
from plait.serve.http.errors import ApiError
from plait.serve.http.exchange import DONE, event
from plait.serve.http.logprobs import CompletionLogprobs
from plait.serve.http.server import Server, usage
from plait.serve.http.trace import Trace
from plait.serve.service import Delta
from plait.text import GenerationRequest

T = TypeVar("T")
_DEFAULT_MAX_TOKENS = 16  # OpenAI's


class CompletionAnswer:
    def __init__(self, server: Server, trace: Trace, body: CompletionBody) -> None:
        """Raises ApiError for what can't be asked."""
        self.server, self.trace, self.body = server, trace, body
        server.check_tokens(body.max_tokens, "max_tokens")
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        if max_tokens == 0 and not body.echo:
            raise ApiError(400, "max_tokens=0 gives nothing without echo: true", param="max_tokens")
        scores = body.echo and (body.logprobs is not None or max_tokens == 0)
        self.sampling = sampling(
            body,
            max_tokens=max_tokens,
            logprobs=body.logprobs,
            prompt_logprobs=(body.logprobs or 0) if scores else None,
        )
        self.prompts = _prompts(body.prompt)
        self.n = body.n or 1
        self.streams = bool(body.stream)
        self.created = int(time.time())
        self.id = f"cmpl-{trace.request_id}"

    async def whole(self) -> dict[str, Any]:
        choices = await self._choices()
        async with aclosing(self._deltas(choices)) as deltas:
            async for prompt, delta in deltas:
                choices[prompt * self.n + delta.answer].take(delta)
        return {**self._head(), "choices": [choice.whole() for choice in choices], "usage": usage(self.trace)}

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        choices = await self._choices()
        head = self._head()
        with_usage = self.body.stream_options is not None and bool(self.body.stream_options.include_usage)
        start = b"data: " + to_json(head)[:-1] + b',"choices":['
        end = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"
        async with aclosing(self._deltas(choices)) as deltas:
            async for prompt, delta in deltas:
                chunk = choices[prompt * self.n + delta.answer].chunk(delta)
                if chunk is not None:
                    yield start + to_json(chunk, inf_nan_mode="null") + end
        if with_usage:
            yield event({**head, "choices": [], "usage": usage(self.trace)})
        yield DONE

    def failure(self, error: ApiError) -> bytes:
        return event(error.body)

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.body.model}

    async def _choices(self) -> list[Choice]:
        """One per prompt and answer. A prompt that is echoed with log-probabilities is cut into tokens here."""
        choices = []
        for number, prompt in enumerate(self.prompts):
            text, ids = "", []
            if self.body.echo:
                tokenizer = self.server.service.tokenizer
                ids = await self.server.encode(prompt) if isinstance(prompt, str) else list(prompt)
                known = [i for i in ids if i < tokenizer.vocab_size]
                text = prompt if isinstance(prompt, str) else tokenizer.decode(known)
            choices += [Choice(self, number * self.n + answer, text, ids) for answer in range(self.n)]
        return choices

    async def _deltas(self, choices: Sequence[Choice]) -> AsyncGenerator[tuple[int, Delta], None]:
        streams = []
        for number, prompt in enumerate(self.prompts):
            ids = choices[number * self.n].prompt_ids or (None if isinstance(prompt, str) else prompt)
            request = GenerationRequest(
                prompt=prompt if ids is None and isinstance(prompt, str) else None,
                token_ids=ids,
                sampling=self.sampling,
            )
            asked = Asked(request, priority=self.body.priority or 0)
            streams.append(self.server.deltas(asked, self.trace, number))
        async with aclosing(merged(streams)) as found:
            async for pair in found:
                yield pair


class Choice:
    """One answer to one prompt."""

    def __init__(self, answer: CompletionAnswer, index: int, echoed: str, prompt_ids: list[int]) -> None:
        self.answer, self.index, self.prompt_ids = answer, index, prompt_ids
        self._text = [echoed]
        self._unsent = echoed
        self._echoes_logprobs = bool(answer.body.echo)
        tokenizer = answer.server.service.tokenizer
        self._logprobs = CompletionLogprobs(tokenizer) if answer.body.logprobs is not None else None
        self._finish_reason: str | None = None

    def take(self, delta: Delta) -> None:
        self._text.append(delta.text)
        self._finish_reason = delta.finish_reason
        if self._logprobs is None:
            return
        if self._echoes_logprobs and delta.prompt_logprobs is not None:
            for token_id, noted in zip(self.prompt_ids, delta.prompt_logprobs, strict=True):
                self._logprobs.add(token_id, noted)
            self._echoes_logprobs = False
        for noted in delta.logprobs or ():
            self._logprobs.add(noted.token_id, noted)

    def whole(self) -> dict[str, Any]:
        return self._object("".join(self._text), None if self._logprobs is None else self._logprobs.take())

    def chunk(self, delta: Delta) -> dict[str, Any] | None:
        """What a piece adds to the stream; None if nothing."""
        self.take(delta)
        text, self._unsent = self._unsent + delta.text, ""
        self._text.clear()
        logprobs = None if self._logprobs is None else self._logprobs.take()
        has_logprobs = logprobs is not None and logprobs["tokens"]
        if not text and not has_logprobs and delta.finish_reason is None:
            return None
        return self._object(text, logprobs if has_logprobs else None)

    def _object(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": self._finish_reason}


def _prompts(prompt: Any) -> list[str | list[int]]:
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all streams as they come, each with its stream's number. Closing it closes them all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    found: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()

    async def pump(number: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    found.put_nowait((number, item))
            found.put_nowait(None)
        except Exception as error:
            found.put_nowait(error)

    pumps = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        n_open = len(streams)
        while n_open:
            came = await found.get()
            if came is None:
                n_open -= 1
            elif isinstance(came, BaseException):
                raise came
            else:
                yield came
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
