"""Run a program that a model wrote: a process of its own with limits on time, memory and output, which the kernel
allows to read and to compute, and nothing else (`sandboxed.py`).

No file is written, no process or thread begun, no connection opened. What the user may read the program may read, and
it has no way to tell anyone; a program made to cheat could still claim to have passed. Run it in a container that holds
nothing of value.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("sandboxed.py")
_MAX_SAID = 1 << 20  # bytes of stderr


@dataclass(frozen=True)
class Outcome:
    passed: bool
    said: str  # the end of what the program wrote to stderr, or why it was stopped


def need_sandbox() -> None:
    """Raises ValueError where programs can't be shut in."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise ValueError(
            f"programs of a model are run on Linux on x86_64 or aarch64 only, whose kernel can shut them in, not on"
            f" {sys.platform} {platform.machine()}: use a container or virtual machine"
        )


def run_program(source: str, *, timeout_s: float = 10, memory_bytes: int = 1 << 30) -> Outcome:
    """Whether `source` runs to its end without an exception."""
    need_sandbox()
    limits = {"CPU": int(timeout_s) + 1, "AS": memory_bytes, "FSIZE": _MAX_SAID, "NOFILE": 64, "CORE": 0}
    token, program = secrets.token_hex(16).encode(), source.encode("utf-8", "replace")
    told, verdict = os.pipe()
    with tempfile.TemporaryDirectory(prefix="plait-sandbox-") as folder, tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SCRIPT), str(verdict), json.dumps(limits)],
                cwd=folder,
                env={"PATH": "", "HOME": folder, "PYTHONHASHSEED": "0"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=(verdict,),
                start_new_session=True,
            )
        finally:
            os.close(verdict)
        with os.fdopen(told, "rb") as found:
            try:
                process.communicate(f"{len(program):012}".encode() + program + token, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
                process.communicate()
                return Outcome(False, f"stopped after {timeout_s:g} seconds")
            is_whole = found.read(len(token) + 1) == token
        said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
        return Outcome(process.returncode == 0 and is_whole, said.read().decode("utf-8", "replace"))
