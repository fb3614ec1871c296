"""The engine in a process of its own: messages in, steps, messages out. `python -m plait.serve.engine_process FD`.

It ends when its parent does, and when a step fails: memory on the device is then not to be trusted, and a new process
starts clean.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from typing import Any

from plait.serve.channel import Channel, Closed, Inbox, inherited, leave
from plait.serve.messages import (
    Abort,
    Add,
    AskStats,
    Embed,
    Embedded,
    Failed,
    Outputs,
    Ready,
    Refused,
    Setup,
    Stats,
    ToEngine,
)


class Server:
    """Serves one parent over one channel."""

    def __init__(self, channel: Channel, inbox: Inbox, setup: Setup) -> None:
        from plait.serve.build import build

        self.channel, self.inbox = channel, inbox
        self.built = build(setup.options, on_failure=self.fail)
        self.engine = self.built.engine
        self.ids: dict[int, int] = {}  # the engine's number of a request -> the parent's
        self.numbers: dict[int, int] = {}  # and back
        channel.send(Ready(self.built.kernels, self.built.max_context))

    def fail(self, reason: str) -> None:
        """Tell the parent why and end, from whichever thread it was noticed in."""
        with contextlib.suppress(Closed):
            self.channel.send(Failed(reason))
        leave(1)

    def run(self) -> None:
        while True:
            for message in [self.inbox.next()] if self.engine.is_idle else self.inbox.drain():
                self.take(message)
            outputs = self.engine.step()
            if outputs:
                self.send(outputs)

    def take(self, message: Any) -> None:
        match message:
            case Add(id, request):
                try:
                    if request.grammar is not None:
                        self.built.executor.check_grammar(request.grammar)
                    number = self.engine.add(request)
                except ValueError as error:
                    self.channel.send(Refused(id, str(error)))
                else:
                    self.ids[number], self.numbers[id] = id, number
            case Abort(id, answer):
                if id in self.numbers:
                    self.engine.abort(self.numbers[id], answer)
                    self.forget_ended(self.numbers[id])
            case Embed(id, token_ids):
                try:
                    self.channel.send(Embedded(id, self.built.executor.embed(token_ids)))
                except ValueError as error:
                    self.channel.send(Refused(id, str(error)))
            case AskStats(id):
                self.channel.send(Stats(id, self.engine.stats()))
            case _:
                raise AssertionError(f"unexpected {message}")

    def send(self, outputs: list[Any]) -> None:
        self.channel.send(Outputs([o._replace(request=self.ids[o.request]) for o in outputs]))
        for output in outputs:
            if output.finish_reason is not None:
                self.forget_ended(output.request)

    def forget_ended(self, number: int) -> None:
        if number in self.ids and not self.engine.has_request(number):
            del self.numbers[self.ids.pop(number)]


def main(fd: str) -> None:
    channel = inherited(fd, ToEngine)
    inbox = Inbox(channel, on_close=leave)  # without its parent the engine has nobody to work for
    setup = inbox.next()
    threading.current_thread().name = "engine"
    try:
        Server(channel, inbox, setup).run()
    except Closed:
        leave(1)
    except BaseException as error:
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()
        channel.send(Failed(" ".join(str(error).split()) or type(error).__name__))
        leave(1)


if __name__ == "__main__":
    main(sys.argv[1])
