"""An engine in another process with the interface of one in this: what `LLM` uses when several processes share a model,
so that a worker that dies ends that process and not the caller's.
"""

from __future__ import annotations

import atexit

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
        self._channel.send(Setup(options))
        try:
            ready = self._channel.receive()
        except Closed:
            raise EngineError(f"the engine process died ({how_it_ended(self._child)})") from None
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
        self._open[number] = set(range(request.params.n))
        self._channel.send(Add(number, request))
        return number

    def abort(self, request: int, answer: int | None = None) -> None:
        """Stop writing one answer of a request, or all of them. Nothing more comes of it."""
        if request not in self._open:
            return
        self._channel.send(Abort(request, answer))
        self._ended(request, answer)

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
        self._channel.send(AskStats(0))
        while not isinstance(message := self._next(), Stats):
            pass  # of answers that were aborted
        return message.stats

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        self._child.kill()
        self._child.wait()

    def _next(self) -> Outputs | Refused | Stats:
        try:
            message = self._channel.receive()
        except Closed:
            message = Failed(f"the engine process died ({how_it_ended(self._child)})")
        if isinstance(message, Failed):
            self._open.clear()
            raise EngineError(message.reason)
        return message

    def _ended(self, request: int, answer: int | None) -> None:
        left = self._open[request]
        left.difference_update(left.copy() if answer is None else {answer})
        if not left:
            del self._open[request]
