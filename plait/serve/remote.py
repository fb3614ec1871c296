"""An engine in another process with the interface of one in this: what `LLM` uses when several processes share a model,
so that a worker that dies ends that process and not the caller's.
"""

from __future__ import annotations

import atexit
import contextlib

from plait.serve.channel import Channel, Closed, how_it_ended, start_child
from plait.serve.messages import Abort, Add, AskStats, Failed, FromEngine, Outputs, Ready, Refused, Setup, Stats
from plait.serve.options import EngineOptions
from plait.serve.request import Output, Request
from plait.serve.service import EngineError, EngineStats, PrefixUse


class RemoteEngine:
    """Raises ValueError, with the engine's own words, if it can't be built; EngineError once it has died."""

    def __init__(self, options: EngineOptions) -> None:
        self._child, end = start_child("plait.serve.engine_process")
        self._channel = Channel(end, FromEngine)
        atexit.register(self.close)
        self._open: dict[int, set[int]] = {}  # request -> the answers that haven't ended
        self._n_requests = 0
        self._why_gone: str | None = None
        self._send(Setup(options))
        try:
            ready = self._channel.receive()
        except Closed:
            raise self._gone() from None
        if isinstance(ready, Failed):
            raise ValueError(ready.reason)
        assert isinstance(ready, Ready)
        self.kernels, self.max_context = ready.kernels, ready.max_context

    @property
    def is_idle(self) -> bool:
        return not self._open

    def add(self, request: Request) -> int:
        """Queue a request; returns its number. What the engine refuses comes as outputs with an error."""
        number = self._n_requests
        self._n_requests += 1
        self._send(Add(number, request))
        self._open[number] = set(range(request.params.n))
        return number

    def abort(self, request: int, answer: int | None = None) -> None:
        """Stop writing one answer of a request, or all of them. Nothing more comes of it."""
        if request not in self._open:
            return
        self._ended(request, answer)
        with contextlib.suppress(EngineError):  # with the engine everything in it ended
            self._send(Abort(request, answer))

    def step(self) -> list[Output]:
        """Wait for what comes next. Nothing if there is nothing to do."""
        if self.is_idle:
            return []
        match self._next():
            case Outputs(outputs):
                mine = [o for o in outputs if o.answer in self._open.get(o.request, ())]
            case Refused(number, reason):
                mine = [
                    Output(number, answer, (), "abort", (), (), PrefixUse(), reason)
                    for answer in sorted(self._open.get(number, ()))
                ]
            case other:
                raise AssertionError(f"unexpected {other}")
        for output in mine:
            if output.finish_reason is not None:
                self._ended(output.request, output.answer)
        return mine

    def stats(self) -> EngineStats:
        """Only while nothing is being written: outputs would be in the way."""
        assert self.is_idle
        self._send(AskStats(0))
        while not isinstance(message := self._next(), Stats):
            pass  # of answers that were aborted
        return message.stats

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        self._child.kill()
        self._child.wait()

    def _send(self, message: Setup | Add | Abort | AskStats) -> None:
        if self._why_gone is not None:
            raise EngineError(self._why_gone)
        try:
            self._channel.send(message)
        except Closed:
            raise self._gone() from None

    def _next(self) -> Outputs | Refused | Stats:
        try:
            message = self._channel.receive()
        except Closed:
            raise self._gone() from None
        if isinstance(message, Failed):
            raise self._gone(message.reason)
        return message

    def _gone(self, reason: str | None = None) -> EngineError:
        """The engine is no more; its last word, or how it ended, is what everybody is told from now on."""
        with contextlib.suppress(Closed):
            while self._why_gone is None and reason is None:
                message = self._channel.receive()
                reason = message.reason if isinstance(message, Failed) else None
        if self._why_gone is None:
            self._why_gone = reason or f"the engine process died ({how_it_ended(self._child)})"
        self._open.clear()
        return EngineError(self._why_gone)

    def _ended(self, request: int, answer: int | None) -> None:
        left = self._open[request]
        left.difference_update(left.copy() if answer is None else {answer})
        if not left:
            del self._open[request]
