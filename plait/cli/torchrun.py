"""This command again, several times, as processes of one torchrun."""

from __future__ import annotations

import subprocess
import sys

from plait.cli.screen import UsageError


def under_torchrun(n: int, words: list[str]) -> int:
    """`plait WORDS`, n times on this machine; its exit status. UsageError for n below 1."""
    if n < 1:
        raise UsageError(f"--nproc {n} must be at least 1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", "-m", "plait"]
    process = subprocess.Popen([*command, *words])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # torchrun got it too, and tells the processes
            continue
