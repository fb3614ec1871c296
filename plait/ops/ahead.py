"""Kernels compiled before they are launched, by as many processes as there are processors.

Triton compiles a kernel when a call first needs it, one after the other: a minute for what an engine launches. Here a
*rehearsal* (the calls, with nothing launched) tells which kernels will be needed, and processes (`compile_worker.py`)
compile them. They do no more than fill Triton's cache on the disk, from which this process takes them as it would at a
second start; so results can't differ, and what fails here is compiled when it is needed, as ever.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from plait.ops.dispatch import HAS_TRITON
from plait.ops.launch import Box, Kernel, instead_of_launches

MOST_PROCESSES = 32
SILENCE_S = 120.0  # in which no kernel was compiled: then the processes are given up
STAMPS = "plait"  # the folder in Triton's cache that says what was compiled here
log = logging.getLogger("plait.ops")
_ready: list[subprocess.Popen[bytes]] = []  # one at most, started by `get_ready`


class Wanted(NamedTuple):
    """A kernel to compile: where it is, Triton's hash of its source and description of the call, and a file that is
    there once it was compiled.
    """

    module: str
    name: str
    source: str
    specialization: str
    stamp: str


def compile_ahead(rehearse: Callable[[], object], *, share: tuple[int, int] = (0, 1)) -> int:
    """Compile what `rehearse` would launch in this thread and was not compiled before; returns how many kernels.

    `rehearse` runs with kernels left out and new tensors zero, so what it leaves in memory is of no use. share: this
    process's place among those that do the same at the same time, and their number; they begin at different kernels
    and find each other's on the disk. Says on stderr what it does, and logs what failed.
    """
    started = time.monotonic()
    try:
        needed = noted(rehearse)
    except Exception as error:
        log.warning("kernels are compiled one by one as they are needed, since the rehearsal failed: %s", error)
        _dismiss()
        return 0
    wanted = [one for one in needed if not Path(one.stamp).exists()]
    if not wanted:
        _dismiss()
        return 0
    place, n = share
    first = len(wanted) * place // n
    jobs = wanted[first:] + wanted[:first]
    n_processes = min(max(len(os.sched_getaffinity(0)) // n, 1), len(jobs), MOST_PROCESSES)
    n_done = 0
    failed: dict[str, list[str]] = {}
    if place == 0:
        _say(0, len(jobs), n_processes)
    for name, why_not in _compiled(jobs, n_processes):
        if why_not is not None:
            failed.setdefault(why_not, []).append(name)
            continue
        n_done += 1
        if place == 0:
            _say(n_done, len(jobs), n_processes)
    for why_not, names in failed.items():
        log.warning("%d kernels (%s) are compiled when they are needed: %s", len(names), names[0], why_not)
    log.info("%d of %d kernels compiled in %.1f s", n_done, len(jobs), time.monotonic() - started)
    return n_done


def get_ready() -> None:
    """Start the process that compiles, if it seems that this machine has compiled nothing yet, while other things are
    done: it takes seconds until it can.
    """
    cache = os.environ.get("TRITON_CACHE_DIR") or Path(os.environ.get("TRITON_HOME", Path.home()), ".triton", "cache")
    if HAS_TRITON and not _ready and not Path(cache, STAMPS).exists():
        _ready.append(_start_worker())


def _dismiss() -> None:
    """End a process that was started for nothing."""
    while _ready:
        worker = _ready.pop()
        worker.kill()
        worker.communicate()


def _start_worker() -> subprocess.Popen[bytes]:
    """Ends by itself if it is told nothing."""
    return subprocess.Popen(
        [sys.executable, "-m", "plait.ops.compile_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def noted(rehearse: Callable[[], object]) -> list[Wanted]:
    """What `rehearse` would have Triton compile, each kernel once; nothing is compiled or launched."""
    notes = _Notes()
    with instead_of_launches(notes.take), _NewTensorsZero():
        rehearse()
    return list(notes.wanted)


class _Notes:
    """Takes calls of kernels, in one thread, and asks Triton what it would compile for them."""

    _one_at_a_time = threading.Lock()  # Triton has one hook for all threads

    def __init__(self) -> None:
        self.wanted: dict[Wanted, None] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._thread = threading.get_ident()

    def take(self, kernel: Kernel, grid: tuple[int, ...], /, *arguments: Any, **constants: Any) -> None:
        call = (id(kernel), *map(_known_by, arguments), *constants.items())
        if call in self._seen:
            return
        self._seen.add(call)
        kernel.note_use()
        full = [argument.descriptor() if type(argument) is Box else argument for argument in arguments]
        knobs = sys.modules["triton"].knobs.runtime
        with self._one_at_a_time:
            before, knobs.jit_cache_hook = knobs.jit_cache_hook, self._hook
            try:
                kernel.kernel.warmup(*full, grid=grid, **constants)
            finally:
                knobs.jit_cache_hook = before

    def _hook(self, **call: Any) -> bool:
        """Called by Triton before it compiles; True tells it not to."""
        if threading.get_ident() != self._thread:
            return False
        kernel, specialization = call["fn"], call["compile"]["specialization_data"]
        triton, source = sys.modules["triton"], kernel.jit_function.cache_key
        what = hashlib.sha256("\n".join((triton.__version__, source, specialization)).encode()).hexdigest()
        stamp = str(Path(triton.knobs.cache.dir, STAMPS, what))
        self.wanted[Wanted(kernel.module, kernel.name, source, specialization, stamp)] = None
        return True


def _known_by(argument: Any) -> Any:
    """At least as fine as what Triton compiles for (see `Kernel`)."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() & 15
    if type(argument) is Box:
        return argument.base.dtype, argument.block_shape
    return type(argument), argument


_NEW = {torch.empty, torch.empty_like, torch.empty_strided, Tensor.new_empty, Tensor.new_empty_strided}


class _NewTensorsZero(TorchFunctionMode):
    """What a kernel that is left out would have written reads as zeros: indices stay within bounds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.zero_() if func in _NEW else made


def _compiled(jobs: Sequence[Wanted], n_processes: int) -> Iterator[tuple[str, str | None]]:
    """Compile in n_processes processes; yields each kernel's name as it is done, and what went wrong."""
    target = sys.modules["triton.runtime.driver"].driver.active.get_current_target()
    used = [(kernel.module, kernel.name) for kernel in Kernel.used]
    task = json.dumps({"target": vars(target), "n_processes": n_processes, "used": used, "jobs": jobs})
    worker = _ready.pop() if _ready else _start_worker()
    assert worker.stdin is not None
    assert worker.stdout is not None
    left = {job: f"{one.module}.{one.name}" for job, one in enumerate(jobs)}
    try:
        with worker.stdin as stdin:
            stdin.write(task.encode())
        for line in _lines(worker.stdout.fileno(), SILENCE_S):
            job, error = json.loads(line)
            yield left.pop(job), error
        reason = "a process that compiles died"
    except BrokenPipeError:
        reason = "the process that compiles did not start"
    except TimeoutError:
        reason = f"nothing was compiled for {SILENCE_S:.0f} s"
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
        worker.stdout.close()
        worker.wait()
    for name in left.values():
        yield name, reason


def _lines(fd: int, silence_s: float) -> Iterator[bytes]:
    """Lines until the other end is closed. Raises TimeoutError if none comes for so long."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            if not selector.select(silence_s):
                raise TimeoutError
            read = os.read(fd, 1 << 16)
            if not read:
                return
            *whole, rest = (rest + read).split(b"\n")
            yield from whole


def _say(n_done: int, n: int, n_processes: int) -> None:
    """One line that counts on a terminal; elsewhere the first alone."""
    line = f"compiling kernels, as at every first start: {n_done} of {n}, {n_processes} at once"
    if sys.stderr.isatty():
        print(f"\r{line}", end="\n" if n_done == n else "", file=sys.stderr, flush=True)
    elif n_done == 0:
        print(line, file=sys.stderr, flush=True)
