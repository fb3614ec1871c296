"""The command line: `plait COMMAND …`, one module per command.

A command's module has `add(commands)`, which declares its arguments, and `run(args) -> int`, which does the work and
returns the exit code. Imports that cost time go inside functions, so that `plait --help` needs neither torch nor a
second.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted. What a user can cause (UsageError, ValueError,
OSError, a loss that diverges, too little memory) becomes one line on stderr; all else is our bug and keeps its
traceback. PLAIT_TRACEBACK=1 keeps them all.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import NoReturn

import plait
from plait.cli.screen import UsageError

COMMANDS = (
    "account", "generate", "chat", "serve", "batch", "train", "quantize", "convert", "data", "synth", "eval", "bench",
    "paper",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. argparse's own exits (--help, wrong arguments) raise SystemExit."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.handler(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `plait … | head` closed our stdout; without this the interpreter complains at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if os.environ.get("PLAIT_TRACEBACK") or (isinstance(error, RuntimeError) and not _is_out_of_memory(error)):
            raise
        print(f"plait {args.command}: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch has a class for a GPU's memory, and for the host's only a text."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"out of memory: {text}" if isinstance(error, MemoryError | RuntimeError) else text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="plait", description="Hybrid Transformer-Mamba mixture-of-experts language models.")
    parser.add_argument("--version", action="version", version=f"plait {plait.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"plait.cli.{name}").add(commands)
    return parser
