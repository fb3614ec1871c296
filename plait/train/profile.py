"""A look at three steps: what ran when, and on a GPU who held the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STEPS = 3


class _Profile:
    """Counts steps; begins before step `first` and writes after the third."""

    def __init__(self, folder: Path, first: int, done: int) -> None:
        self.folder, self.first, self.done = folder, first, done
        self.profiler: torch.profiler.profile | None = None
        self._at()

    def step(self) -> None:
        self.done += 1
        self._at()

    def _at(self) -> None:
        if self.done + 1 == self.first:
            if torch.cuda.is_available():
                torch.cuda.memory._record_memory_history()
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        elif self.profiler is not None and self.done + 1 == self.first + STEPS:
            self.write()

    def write(self) -> None:
        if self.profiler is None:
            return
        self.profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / "trace.json"))
        self.profiler = None
        if torch.cuda.is_available():
            torch.cuda.memory._dump_snapshot(str(self.folder / "memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)


@contextmanager
def profiled(folder: Path, first: int, done: int, speaks: bool) -> Iterator[_Profile]:
    """Profile the steps first, first + 1 and first + 2 of a run that has `done` behind it, on the process that speaks;
    first 0: none. Writes trace.json (chrome://tracing) and on a GPU memory.pickle (pytorch.org/memory_viz).
    """
    profile = _Profile(folder, first if speaks else 0, done)
    try:
        yield profile
    finally:
        profile.write()
