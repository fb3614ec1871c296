"""`AsyncLLM`: an engine in a process of its own, asked from an event loop. This is the `Service` of the HTTP server.

Text is made here (templates, tokens to text, stop strings), steps there, so neither waits for the other's Python. When
the engine process dies, everything under way ends with an EngineError that says how; with `restart` a new one is
started, and what is asked meanwhile waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from itertools import count
from typing import Any

from plait.model.checkpoint import read_config
from plait.serve.answer import AnswerText
from plait.serve.build import find_model
from plait.serve.channel import Channel, Closed, how_it_ended, start_child
from plait.serve.messages import (
    Abort,
    Add,
    AskStats,
    Embed,
    Embedded,
    Failed,
    FromEngine,
    Outputs,
    Ready,
    Refused,
    Setup,
    Stats,
    ToEngine,
)
from plait.serve.options import EngineOptions
from plait.serve.prompts import Prompts
from plait.serve.service import Delta, EngineError, EngineStats, Grammar
from plait.text import GenerationRequest

RESTART_PAUSE_S = 1.0
"""Between the death of an engine process and the start of the next, doubled each time one dies before it was ready."""

MAX_RESTART_PAUSE_S = 60.0


class AsyncLLM:
    """Start with `await AsyncLLM.start(options)`, end with `await llm.close()`."""

    def __init__(self, options: EngineOptions, *, name: str = "", restart: bool = True) -> None:
        folder = find_model(options.model)
        self.options, self.restart = options, restart
        self.name = name or folder.name
        self.config = read_config(folder)
        self.prompts = Prompts.of_folder(folder, self.config, max_context=options.max_context)
        self.kernels = ""
        self.n_restarts = 0
        self._numbers = count()
        self._waiting: dict[int, asyncio.Queue[Any]] = {}  # by request: what came for it
        self._ready = asyncio.Event()
        self._ended: str | None = None  # why there will be no engine any more
        self._channel: Channel | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, options: EngineOptions, *, name: str = "", restart: bool = True) -> AsyncLLM:
        """An engine that is ready. Raises ValueError with the engine's own words if it can't be built."""
        llm = cls(options, name=name, restart=restart)
        llm._keeper = asyncio.create_task(llm._keep_running())
        ready = asyncio.create_task(llm._ready.wait())
        await asyncio.wait([ready, llm._keeper], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            raise ValueError(llm._ended)
        return llm

    @property
    def tokenizer(self) -> Any:
        return self.prompts.tokenizer

    @property
    def chat_template(self) -> Any:
        return self.prompts.chat_template

    @property
    def max_context(self) -> int:
        return self.prompts.max_context

    @property
    def has_ended(self) -> bool:
        """There is no engine and none will be started."""
        return self._ended is not None and not self._ready.is_set()

    async def close(self) -> None:
        """End the engine process; what is under way ends with an EngineError."""
        self.restart = False
        self._ended = self._ended or "the server is shutting down"
        if self._channel is not None:
            self._channel.close()
        if self._keeper is not None:
            await self._keeper
        if self._child is not None:
            self._child.kill()
            await asyncio.to_thread(self._child.wait)

    # What a server asks

    async def answers(
        self, request: GenerationRequest, *, priority: int = 0, grammar: Grammar | None = None
    ) -> AsyncGenerator[Delta, None]:
        """The pieces of all n answers as they come (`Service.answers`)."""
        make = partial(
            self.prompts.request, request, priority=priority, grammar=grammar, is_private=not self.options.prefix_cache
        )
        asked = await asyncio.to_thread(make) if _is_long(request) else make()
        control_tokens = request.messages is not None
        texts = [AnswerText(asked, self.tokenizer, nth, control_tokens=control_tokens) for nth in range(asked.params.n)]
        open_answers = set(range(asked.params.n))
        async with self._asked(lambda number: Add(number, asked)) as (number, queue):
            try:
                while open_answers:
                    for out in _checked(await queue.get(), Outputs).outputs:
                        if out.answer not in open_answers:
                            continue  # drawn behind a stop string, before the engine heard of it
                        piece = texts[out.answer].push(out)
                        if piece is None:
                            continue
                        if piece.finish_reason is not None:
                            open_answers.remove(out.answer)
                            if out.finish_reason is None:
                                self._tell(Abort(number, out.answer))
                        yield piece
            finally:
                if open_answers:
                    self._tell(Abort(number))

    async def embed(self, token_ids: list[int]) -> list[float]:
        """The mean of the final hidden states over the tokens [d_model]."""
        async with self._asked(lambda number: Embed(number, token_ids)) as (_, queue):
            return list(_checked(await queue.get(), Embedded).vector)

    async def stats(self) -> EngineStats:
        async with self._asked(AskStats) as (_, queue):
            stats = _checked(await queue.get(), Stats).stats
            assert isinstance(stats, EngineStats)
            return stats

    async def is_ready(self) -> bool:
        return self._ready.is_set()

    @contextlib.asynccontextmanager
    async def _asked(self, message: Any) -> AsyncIterator[tuple[int, asyncio.Queue[Any]]]:
        """Send message(number) to the engine; gives the number and the queue of what comes back."""
        while not self._ready.is_set():
            if self._ended is not None:
                raise EngineError(self._ended)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ready.wait(), 0.1)
        number = next(self._numbers)
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._waiting[number] = queue
        try:
            await self._tell_now(message(number))
            yield number, queue
        finally:
            del self._waiting[number]

    async def _tell_now(self, message: ToEngine) -> None:
        """A long prompt doesn't fit the socket's buffer: a thread sends it, so that the event loop goes on."""
        if isinstance(message, Add) and len(message.request.prompt) > 4096:
            await asyncio.to_thread(self._tell, message)
        else:
            self._tell(message)

    def _tell(self, message: ToEngine) -> None:
        assert self._channel is not None
        with contextlib.suppress(Closed):  # whoever waits for an answer learns it from _lose
            self._channel.send(message)

    # The process

    async def _keep_running(self) -> None:
        pause = RESTART_PAUSE_S
        while True:
            child, end = start_child("plait.serve.engine_process")
            self._child, channel = child, Channel(end, FromEngine)
            self._channel = channel
            reason = await self._listen(channel)
            was_ready = self._ready.is_set()
            self._ready.clear()
            reason = reason or f"the engine process died ({await asyncio.to_thread(how_it_ended, child)})"
            channel.close()
            if not self.restart or (not was_ready and self.n_restarts == 0):
                self._ended = self._ended or reason
                self._lose(self._ended)
                return
            self._lose(f"{reason}; it is being started again")
            await asyncio.sleep(pause)
            pause = RESTART_PAUSE_S if was_ready else min(2 * pause, MAX_RESTART_PAUSE_S)
            self.n_restarts += 1

    async def _listen(self, channel: Channel) -> str | None:
        """Hand out what the engine sends until it is gone; returns what it said last, if it said why."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[str | None] = loop.create_future()

        def read() -> None:
            reason = None
            try:
                channel.send(Setup(self.options))
                while True:
                    message = channel.receive()
                    if isinstance(message, Failed):
                        reason = message.reason
                    else:
                        loop.call_soon_threadsafe(self._hand_out, message)
            except Closed:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(gone.set_result, reason)

        threading.Thread(target=read, daemon=True, name="engine-reader").start()
        return await gone

    def _hand_out(self, message: Any) -> None:
        match message:
            case Ready(kernels, max_context):
                self.kernels, self.prompts.max_context = kernels, max_context
                self._ready.set()
            case Outputs(outputs):
                by_request: dict[int, list[Any]] = {}
                for output in outputs:
                    by_request.setdefault(output.request, []).append(output)
                for number, mine in by_request.items():
                    if number in self._waiting:
                        self._waiting[number].put_nowait(Outputs(mine))
            case Refused(id) | Embedded(id) | Stats(id):
                if id in self._waiting:
                    self._waiting[id].put_nowait(message)

    def _lose(self, reason: str) -> None:
        for queue in self._waiting.values():
            queue.put_nowait(Failed(reason))


def _is_long(request: GenerationRequest) -> bool:
    """Whether cutting its text into tokens takes long enough (ms) for other streams to notice."""
    messages: Sequence[Any] = request.messages or ()
    texts = [request.prompt, *(m.get("content") for m in messages), *(d.get("text") for d in request.documents or ())]
    return sum(len(text) for text in texts if isinstance(text, str)) > 20_000


def _checked(message: Any, kind: type) -> Any:
    if isinstance(message, Refused):
        raise ValueError(message.reason)
    if isinstance(message, Failed):
        raise EngineError(message.reason)
    assert isinstance(message, kind)
    return message
