"""Starting and ending as one of several processes, and noticing when one of them hangs."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from plait.parallel.mesh import Mesh
from plait.train.config import TrainConfig

STDERR = 2  # the descriptor: sys.stderr may be one that has none


def pick_device(asked: str) -> torch.device:
    """cpu or cuda for `auto`; of several processes on a machine, each its own GPU. ValueError for what isn't there."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    elif asked.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={asked!r}: torch sees no CUDA device here; use device=cpu or device=auto")
    if asked == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        return device
    return torch.device(asked)


@contextmanager
def joined(config: TrainConfig, device: torch.device) -> Iterator[Mesh | None]:
    """The mesh of the processes that torchrun started; None where nobody did.

    ValueError for a grid that they don't fill, or that doesn't divide the model and the batch.
    """
    if "RANK" not in os.environ:
        grid = config.parallel
        if (wanted := max(1, grid.dp_shard) * grid.dp_replicate * grid.cp * grid.tp) > 1:
            raise ValueError(f"parallel asks for {wanted} processes or more: start them with --nproc, or torchrun")
        yield None
        return
    world = int(os.environ["WORLD_SIZE"])
    grid = config.parallel.filled(world)
    grid.check(config.model, seq=config.seq, rows=config.batch // config.accumulate, world=world)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=config.hang_seconds))
    try:
        yield Mesh.of(grid, device)
    finally:
        dist.destroy_process_group()


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM end the run after the current step; a second Ctrl-C ends it at once."""
    stop = threading.Event()

    def handle(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch:
    """Prints the stacks of all threads and ends the process unless `alive` is called every so many seconds: the first
    process on stderr, the others into stacks-RANK.txt.

    A C thread does it, so it also works when all of Python waits in a collective.
    """

    def __init__(self, seconds: int, folder: Path, rank: int) -> None:
        self.seconds = seconds
        self.path = folder / f"stacks-{rank}.txt" if rank else None
        self.file = None if self.path is None else self.path.open("w")
        self.alive()

    def alive(self) -> None:
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=STDERR if self.file is None else self.file)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self.file is not None and self.path is not None:
            self.file.close()
            self.path.unlink()
