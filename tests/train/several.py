"""One process of a run in test_processes.py: `several.py CONFIG OUT [--resume] [--kill STEP | --stop STEP]`."""

from __future__ import annotations

import json
import os
import signal
import sys
import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch

from plait.train import loop
from plait.train.config import TrainConfig

PARTS = {name: kind for name, kind in typing.get_type_hints(TrainConfig).items() if is_dataclass(kind)}


def main() -> None:
    given, out, *options = sys.argv[1:]
    values = json.loads(given)
    config = TrainConfig(**values | {name: kind(**values[name]) for name, kind in PARTS.items()})
    torch.set_num_threads(1)
    if len(options) > 1:
        _at_step(int(options[-1]), signal.SIGKILL if options[-2] == "--kill" else signal.SIGTERM)
    loop.train(config, Path(out), resume="--resume" in options)


def _at_step(wanted: int, number: signal.Signals) -> None:
    """The process of the last rank gets the signal in its `wanted`-th step from here."""
    real, taken = loop.train_step, []

    def step(*args: Any) -> dict[str, float]:
        taken.append(1)
        if len(taken) == wanted and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            os.kill(os.getpid(), number)
        return real(*args)

    loop.train_step = step


if __name__ == "__main__":
    main()
