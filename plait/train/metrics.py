"""What a run reports while it runs: metrics.jsonl, TensorBoard, and a progress line with rate and time left."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class MetricsFile:
    """metrics.jsonl: one object a logged step. Resuming drops what was logged after the checkpoint it resumes from."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        if path.exists():
            kept = (
                [line for line in path.read_text().splitlines() if _step_of(line) <= resumed_step]
                if resumed_step
                else []
            )
            partial = path.with_suffix(".partial")
            partial.write_text("".join(line + "\n" for line in kept))
            os.replace(partial, path)
        self.file = path.open("a")

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`."""
        self.file.close()
        kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        os.replace(partial, self.path)
        self.file = self.path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Write one line, on the disk when this returns: a checkpoint must not outlive the lines before it."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half a line, from a killed run


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TensorBoard:
    """The same numbers as TensorBoard scalars, where tensorboard is installed (the `train` extra); says once when it
    isn't.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("tensorboard is not installed: metrics go to metrics.jsonl only", file=sys.stderr)
            self.writer = None
        else:
            self.writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        if self.writer is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self.writer.add_scalar(name, value, record["step"])
                elif isinstance(value, list):
                    for i, each in enumerate(value):
                        self.writer.add_scalar(f"{name}/expert_{i:02}", each, record["step"])

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()


class Wandb:
    """The same numbers to Weights & Biases, in the project that a run names; none without a name.

    ValueError where a project is named and the package isn't there.
    """

    def __init__(self, project: str, name: str, folder: Path) -> None:
        self.run: Any = None
        if project:
            try:
                wandb = importlib.import_module("wandb")
            except ImportError as error:
                raise ValueError(
                    f"wandb={project}: the package isn't installed (pip install wandb), or leave out wandb"
                ) from error
            self.run = wandb.init(project=project, name=name, dir=str(folder), resume="allow", id=_run_id(folder))

    def write(self, record: dict[str, Any]) -> None:
        if self.run is not None:
            flat = {k: v for k, v in record.items() if isinstance(v, int | float)}
            flat |= {f"{k}/expert_{i:02}": x for k, v in record.items() if isinstance(v, list) for i, x in enumerate(v)}
            self.run.log(flat, step=record["step"])

    def __enter__(self) -> Wandb:
        return self

    def __exit__(self, *_: object) -> None:
        if self.run is not None:
            self.run.finish()


def _run_id(folder: Path) -> str:
    """The same for a run that is resumed."""
    path = folder / "wandb-id"
    if not path.exists():
        path.write_text(os.urandom(8).hex())
    return path.read_text()


SHOWN = (
    ("loss", "loss", ".4f"), ("heldout_loss", "held-out", ".4f"), ("accuracy", "accuracy", ".2f"),
    ("balance", "balance", ".3f"), ("max_mamba", "|act| mamba", ".2g"), ("max_experts", "experts", ".2g"),
    ("grad_norm", "grad", ".2f"), ("lr", "lr", ".1e"),
)  # fmt: skip  # of a logged line: name, label, format


class TrainProgress:
    """A progress bar on a terminal, a line a log elsewhere."""

    def __init__(self, name: str, steps: int, done: int) -> None:
        self.console = Console(markup=False, highlight=False)
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
        ]
        columns += [TextColumn("{task.fields[now]}"), TimeElapsedColumn(), TimeRemainingColumn()]
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=steps, completed=done, now="")

    def __enter__(self) -> TrainProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def step(self, done: int) -> None:
        self.bar.update(self.task, completed=done)

    def log(self, record: dict[str, Any], steps: int, seconds_left: float) -> None:
        rate = record.get("tokens_per_second")
        self.bar.update(self.task, now=f"loss {record['loss']:.3f}" + (f"  {rate:,.0f} tok/s" if rate else ""))
        parts = [f"step {record['step']:>{len(str(steps))}}/{steps}"]
        parts += [f"{label} {record[name]:{form}}" for name, label, form in SHOWN if name in record]
        if rate:
            parts.append(f"{rate:,.0f} tok/s")
        parts.append(f"left {int(seconds_left) // 60}:{int(seconds_left) % 60:02}")
        self.console.print("  ".join(parts), soft_wrap=True)


class Reporter:
    """All of them at once, on the process that `speaks`; the others' do nothing."""

    def __init__(self, out: Path, name: str, steps: int, done: int, *, speaks: bool, project: str = "") -> None:
        self.project = project
        self.stack, self.steps, self.first, self.speaks = ExitStack(), steps, done, speaks
        self.out, self.name = out, name

    def __enter__(self) -> Reporter:
        if self.speaks:
            self.metrics = self.stack.enter_context(MetricsFile(self.out / "metrics.jsonl", self.first))
            self.board = self.stack.enter_context(TensorBoard(self.out / "tensorboard", self.first))
            self.wandb = self.stack.enter_context(Wandb(self.project, self.name, self.out))
            self.progress = self.stack.enter_context(TrainProgress(self.name, self.steps, self.first))
            self.began = time.perf_counter()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def say(self, line: str) -> None:
        if self.speaks:
            self.progress.say(line)

    def step(self, done: int) -> None:
        if self.speaks:
            self.progress.step(done)

    def rewind(self, step: int) -> None:
        if self.speaks:
            self.metrics.rewind(step)
            self.progress.say(f"the loss went wrong: back to step {step}, and on with other batches")

    def log(self, record: dict[str, Any]) -> None:
        if self.speaks:
            self.metrics.write(record)
            self.board.write(record)
            self.wandb.write(record)
            per_step = (time.perf_counter() - self.began) / max(1, record["step"] - self.first)
            self.progress.log(record, self.steps, (self.steps - record["step"]) * per_step)
