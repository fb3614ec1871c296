"""Tensor parallelism in serving: one process a GPU (or CPU share), each with its slice of the model and of the pools.

All of them carry out the same plans and draw the same tokens, since logits are gathered everywhere and draws depend on
seed and position only; so nothing but plans passes between them, besides the sums inside the model. Rank 0 runs in the
engine process and passes each plan on. A worker that dies takes the engine process down, with the reason.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from plait.serve.channel import Channel, Closed, Inbox, how_it_ended, inherited, leave, start_child
from plait.serve.messages import Collect, Embed, Failed, FromWorker, Launch, Reset, Setup, ToWorker
from plait.serve.options import EngineOptions
from plait.serve.plan import Start, StepPlan, StepResult
from plait.serve.service import Grammar

if TYPE_CHECKING:
    import torch

    from plait.parallel.collectives import Group
    from plait.serve.runner import Runner

COLLECTIVE_TIMEOUT = timedelta(seconds=120)
LAST_WORD_S = 10.0


class SharedExecutor:
    """Rank 0's executor: what it does, the workers do too, in the same order."""

    def __init__(self, runner: Runner, channels: Sequence[Channel]) -> None:
        self.runner, self.channels = runner, channels

    def launch(self, plan: StepPlan) -> None:
        plan = replace(plan, started=[_seeded(start) for start in plan.started])
        with _leaving_the_last_word():
            self._tell(Launch(plan))
            self.runner.launch(plan)

    def collect(self) -> StepResult:
        with _leaving_the_last_word():
            self._tell(Collect())
            return self.runner.collect()

    def reset(self) -> None:
        with _leaving_the_last_word():
            self._tell(Reset())
            self.runner.reset()

    def embed(self, token_ids: Sequence[int]) -> list[float]:
        with _leaving_the_last_word():
            self._tell(Embed(0, list(token_ids)))
            return self.runner.embed(token_ids)

    def check_grammar(self, grammar: Grammar) -> None:
        self.runner.check_grammar(grammar)

    def _tell(self, message: Launch | Collect | Reset | Embed) -> None:
        frame = self.channels[0].encode(message)
        for channel in self.channels:
            channel.send_encoded(frame)


@contextlib.contextmanager
def _leaving_the_last_word() -> Iterator[None]:
    """What fails here fails because a worker died, most likely: whoever watches it knows why and ends this process."""
    try:
        yield
    except (Closed, RuntimeError):
        time.sleep(LAST_WORD_S)
        raise


def _seeded(start: Start) -> Start:
    """A request without a seed gets the same one in every process."""
    if start.params.seed is not None:
        return start
    return start._replace(params=replace(start.params, seed=secrets.randbits(63)))


def start_workers(options: EngineOptions, on_failure: Callable[[str], object]) -> tuple[Group, list[Channel]]:
    """Start all but rank 0 and join them; returns the group and a channel to each worker, which is still building.

    `on_failure` is called in a thread with the reason as soon as a worker dies or says that it can't go on.
    """
    import torch.distributed as dist

    n = options.tensor_parallel
    store = dist.TCPStore("127.0.0.1", 0, n, is_master=True, wait_for_workers=False, timeout=COLLECTIVE_TIMEOUT)
    channels = []
    for rank in range(1, n):
        child, end = start_child("plait.serve.workers")
        channel = Channel(end, FromWorker)
        channel.send(Setup(options, rank, store.port))
        channels.append(channel)
        threading.Thread(
            target=_watch, args=(rank, child, channel, on_failure), daemon=True, name=f"watch-{rank}"
        ).start()
    return _join(options, 0, store), channels


def _watch(rank: int, child: subprocess.Popen[bytes], channel: Channel, on_failure: Callable[[str], object]) -> None:
    try:
        reason = channel.receive().reason
    except Closed:
        reason = f"the process died ({how_it_ended(child)})"
    on_failure(f"tensor-parallel worker {rank}: {reason}")


def _join(options: EngineOptions, rank: int, store: torch.distributed.Store) -> Group:
    import torch
    import torch.distributed as dist

    is_cuda = options.device.startswith("cuda")
    if is_cuda:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // options.tensor_parallel))
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        store=store, rank=rank, world_size=options.tensor_parallel, timeout=COLLECTIVE_TIMEOUT,
    )  # fmt: skip
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def main(fd: str) -> None:
    """One worker: `python -m plait.serve.workers FD`. It ends with the process of rank 0."""
    import torch.distributed as dist

    from plait.serve.build import build_runner

    channel = inherited(fd, ToWorker)
    setup = channel.receive()
    store = dist.TCPStore(
        "127.0.0.1", setup.port, setup.options.tensor_parallel, is_master=False, timeout=COLLECTIVE_TIMEOUT
    )
    inbox = Inbox(channel, on_close=leave)
    try:
        runner = build_runner(setup.options, _join(setup.options, setup.rank, store)).runner
        while True:
            match inbox.next():
                case Launch(plan):
                    runner.launch(plan)
                case Collect():
                    runner.collect()
                case Reset():
                    runner.reset()
                case Embed(_, token_ids):
                    runner.embed(token_ids)
    except BaseException as error:
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()
        channel.send(Failed(" ".join(str(error).split()) or type(error).__name__))
        leave(1)


if __name__ == "__main__":
    main(sys.argv[1])
