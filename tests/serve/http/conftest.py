"""An engine that says what a test tells it to, behind the real HTTP layer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

import plait
from plait.config import ModelConfig, presets
from plait.serve.http.app import app_of
from plait.serve.http.run import uvicorn_config
from plait.serve.http.server import Server
from plait.serve.http.settings import ServerSettings
from plait.serve.service import Delta, EngineError, EngineStats, Grammar, PrefixUse
from plait.text import ChatTemplate, GenerationRequest, StopChecker, Tokenizer, TokenLogprob

DEMO = Path(plait.__file__).parent / "demo"


@dataclass
class Scripted:
    """Says `text` (or what `say` makes of the request), token by token, as an engine would: stop strings, max_tokens,
    log-probabilities, a grammar noted. `cuts` instead gives the pieces of text as they are.
    """

    text: str = "Hello there"
    say: Callable[[GenerationRequest], str] | None = None
    cuts: Sequence[str] | None = None
    wait: Callable[[], Any] | None = None  # awaited before each piece
    fails_after: int | None = None
    is_up: bool = True
    name: str = "demo"
    max_context: int = 512
    config: ModelConfig = presets["jamba-1.5-mini"]
    tokenizer: Tokenizer = field(default_factory=lambda: Tokenizer.from_folder(DEMO))
    chat_template: ChatTemplate = field(default_factory=lambda: ChatTemplate.from_folder(DEMO))
    asked: list[GenerationRequest] = field(default_factory=list)
    grammars: list[Grammar | None] = field(default_factory=list)
    open: int = 0
    cancelled: int = 0

    async def answers(
        self, request: GenerationRequest, *, priority: int = 0, grammar: Grammar | None = None
    ) -> AsyncGenerator[Delta, None]:
        self.asked.append(request)
        self.grammars.append(grammar)
        ids = self._prompt_ids(request)
        params = request.sampling
        room = self.max_context - len(ids)
        if room < 1:
            raise ValueError(f"the prompt has {len(ids)} tokens; at most {self.max_context - 1} fit")
        unknown = [i for i in [*ids, *params.logit_bias, *params.stop_token_ids] if i >= self.tokenizer.vocab_size]
        if unknown:
            raise ValueError(f"token id {unknown[0]} is not below vocab_size={self.tokenizer.vocab_size}")
        if grammar is not None and "broken" in grammar.text:
            raise ValueError("the schema can't be read")
        self.open += 1
        is_whole = False
        try:
            prompt = {"prompt_tokens": len(ids), "prefix": PrefixUse(4, 3, 1)}
            scores = None
            if params.prompt_logprobs is not None:
                scores = (None, *(self._logprob(i, params.prompt_logprobs) for i in ids[1:]))
            if params.max_tokens == 0:
                for answer in range(params.n):
                    yield Delta(answer, "", (), finish_reason="length", prompt_logprobs=scores, **prompt)
            else:
                text = self.say(request) if self.say else self.text
                n_sent = 0
                for answer in range(params.n):
                    for n, delta in enumerate(self._deltas(text, answer, params, min(params.max_tokens, room), prompt)):
                        if self.wait is not None:
                            await self.wait()
                        if n_sent == self.fails_after:
                            raise EngineError("the engine process died")
                        n_sent += 1
                        yield Delta(**(vars(delta) | ({"prompt_logprobs": scores} if n == 0 else {})))
            is_whole = True
        finally:
            self.open -= 1
            self.cancelled += not is_whole

    def _prompt_ids(self, request: GenerationRequest) -> list[int]:
        if request.messages is not None:
            return self.chat_template.encode(
                self.tokenizer, request.messages, tools=request.tools, documents=request.documents, knobs=request.knobs
            )
        if request.prompt is not None:
            return [self.tokenizer.bos_id, *self.tokenizer.encode(request.prompt)]
        assert request.token_ids is not None
        return list(request.token_ids)

    def _deltas(self, text: str, answer: int, params: Any, max_tokens: int, prompt: dict[str, Any]) -> Iterator[Delta]:
        if self.cuts is not None:
            for n, cut in enumerate(self.cuts):
                is_last = n == len(self.cuts) - 1
                yield Delta(answer, cut, (1,), finish_reason="stop" if is_last else None, **prompt)
            return
        ids = [*self.tokenizer.encode(text, control_tokens=True), self.tokenizer.eos_ids[-1]]
        detokenizer, stops = self.tokenizer.detokenizer(control_tokens=True), StopChecker(params.stop)
        for n, token_id in enumerate(ids[:max_tokens]):
            ended = n == len(ids) - 1
            shown = stops.push("" if ended else detokenizer.push(token_id))
            is_last = ended or n == max_tokens - 1 or stops.stopped_by is not None
            if is_last and stops.stopped_by is None:
                shown += stops.push(detokenizer.finish()) + stops.finish()
            reason = ("stop" if ended or stops.stopped_by is not None else "length") if is_last else None
            noted = None if params.logprobs is None else (self._logprob(token_id, params.logprobs),)
            yield Delta(answer, shown, (token_id,), noted, reason, **prompt)
            if is_last:
                return

    def _logprob(self, token_id: int, n_top: int) -> TokenLogprob:
        return TokenLogprob(token_id, -0.5, tuple((token_id + n, -0.5 - n) for n in range(n_top)))

    async def embed(self, token_ids: list[int]) -> list[float]:
        if len(token_ids) > self.max_context:
            raise ValueError("too long")
        return [1.0, -0.5, float(len(token_ids))]

    async def stats(self) -> EngineStats:
        return EngineStats(
            running=self.open, pages=10, pages_used=5, slots=8, slots_used=2, slots_cached=3, prompt_tokens_total=70,
            prefix_matched_total=40, prefix_usable_total=30, prefix_lost_total=10,
        )  # fmt: skip

    async def is_ready(self) -> bool:
        return self.is_up


@dataclass
class Live:
    """A server on a loopback port, in a thread of its own."""

    url: str
    server: Server
    service: Scripted

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 20} | options
        )

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, **options)


@contextmanager
def run_live(service: Scripted, **settings: Any) -> Iterator[Live]:
    server = Server(service, ServerSettings(port=0, **settings))
    runner = uvicorn.Server(uvicorn_config(server))
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    for _ in range(500):
        if runner.started:
            break
        threading.Event().wait(0.01)
    assert runner.started
    port = runner.servers[0].sockets[0].getsockname()[1]
    try:
        yield Live(f"http://127.0.0.1:{port}", server, service)
    finally:
        runner.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def demo_tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO)


@pytest.fixture
def scripted(demo_tokenizer: Tokenizer) -> Scripted:
    return Scripted(tokenizer=demo_tokenizer)


@pytest.fixture
def live(scripted: Scripted) -> Iterator[Live]:
    """A server with default settings; its `service` may be told what to say."""
    with run_live(scripted) as running:
        yield running


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    """`with start(service, **settings) as live`."""
    return run_live


@pytest.fixture(scope="session")
def make_service(demo_tokenizer: Tokenizer) -> Callable[..., Scripted]:
    return lambda **fields: Scripted(tokenizer=demo_tokenizer, **fields)


Call = Callable[..., httpx.Response]


@pytest.fixture
def call() -> Call:
    """call(service, path, body, **settings): one request through the application, without a socket."""

    def send(service: Scripted, path: str, body: Any = None, headers: Any = None, **settings: Any) -> httpx.Response:
        async def exchange() -> httpx.Response:
            app = app_of(Server(service, ServerSettings(**settings)))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                if body is None:
                    return await client.get(path, headers=headers)
                if isinstance(body, bytes):
                    return await client.post(path, content=body, headers=headers)
                return await client.post(path, json=body, headers=headers)

        return asyncio.run(exchange())

    return send
