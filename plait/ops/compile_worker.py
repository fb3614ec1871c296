"""Compiles kernels into Triton's cache on the disk, for `ahead.py`: `python -m plait.ops.compile_worker`.

Reads {"target": of triton's GPUTarget, "n_processes": n, "used": [[module, name], ...], "jobs": [[module, name,
source, specialization, stamp], ...]} on stdin; imports the modules, forks, and writes a line [job, error or null] for
each kernel. No GPU is touched: Triton is told what it would ask one. Forks are safe here, where nothing else has been
started yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

INDEX = 4  # bytes: so many are read from a pipe in one piece, whoever else reads there


class Driver:
    """What Triton asks a driver while it compiles."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


def main() -> None:
    results = os.dup(1)
    os.dup2(2, 1)  # whoever prints here
    import_module("plait.ops.rms_norm.triton")  # torch and Triton: seconds, in which the task is being found out
    text = sys.stdin.read()
    if not text:  # nobody needs this
        return
    task = json.loads(text)
    kernels = {(module, name): getattr(import_module(module), name).kernel for module, name in task["used"]}
    for kernel in kernels.values():
        _ = kernel.cache_key  # in the order of the other process: with a shared function it depends on that
    target = sys.modules["triton.backends.compiler"].GPUTarget(**task["target"])  # triton is there: kernels import it
    sys.modules["triton.runtime.driver"].driver.set_active(Driver(target))
    queue, end = os.pipe()
    os.write(end, b"".join(i.to_bytes(INDEX, "big") for i in range(len(task["jobs"]))))
    os.close(end)
    children = [_forked(queue, results, task["jobs"], kernels) for _ in range(task["n_processes"])]
    for child in children:
        os.waitpid(child, 0)


def _forked(queue: int, results: int, jobs: list[list[str]], kernels: dict[tuple[str, str], Any]) -> int:
    """Start a process that takes jobs from the queue until it is empty."""
    child = os.fork()
    if child:
        return child
    try:
        while index := os.read(queue, INDEX):
            job = int.from_bytes(index, "big")
            module, name, *what = jobs[job]
            error = _compile(kernels[module, name], *what)
            os.write(results, (json.dumps([job, error]) + "\n").encode())
    finally:
        os._exit(0)


def _compile(kernel: Any, source: str, specialization: str, stamp: str) -> str | None:
    """None, or why not."""
    if kernel.cache_key != source:
        return "its source is not what the other process has"
    try:
        compiled = kernel.preload(specialization)
        with contextlib.suppress(Exception):  # without a compiler or a driver here, the launch says what is missing
            _build_launcher(compiled)
        Path(stamp).parent.mkdir(parents=True, exist_ok=True)
        Path(stamp).touch()
    except Exception as error:  # whoever launches it meets the same
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _build_launcher(compiled: Any) -> None:
    """Triton 3.6 has gcc build a launcher for each signature, also into its cache; later ones have one for all."""
    if compiled.metadata.target.backend == "cuda":
        nvidia = sys.modules["triton.backends.nvidia.driver"]
        if hasattr(nvidia, "make_launcher"):
            nvidia.CudaLauncher(compiled.src, compiled.metadata)


if __name__ == "__main__":
    main()
