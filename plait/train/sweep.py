"""Many small runs that differ in a setting or two: mixtures, learning rates (how section 5.2 chose its data).

    plait train tiny_cpu --sweep 'optim.lr=1e-3|3e-3' --sweep 'data.train=A:0.7,B:0.3|A:0.5,B:0.5' --out runs/sweep

Every combination is a run of its own in OUT; sweep.json, sweep.png and the table compare them. Starting the same sweep
again goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.train.config import TrainConfig, with_settings
from plait.train.loop import train
from plait.train.metrics import read_metrics
from plait.train.probes import Probe


@dataclass(frozen=True)
class Trial:
    """One combination: `settings` by key, where it ran, and how it ended (losses are nan if it diverged)."""

    settings: dict[str, str]
    folder: str
    first_loss: float
    heldout_loss: float
    tokens_per_second: float
    diverged: bool = False


@dataclass(frozen=True)
class Sweep:
    """`trials` in the order of the combinations; `stopped`: a signal ended it before the last."""

    trials: tuple[Trial, ...]
    stopped: bool

    @property
    def best(self) -> Trial | None:
        whole = [trial for trial in self.trials if math.isfinite(trial.heldout_loss)]
        return min(whole, key=lambda trial: trial.heldout_loss, default=None)


def combinations(axes: Sequence[str]) -> list[dict[str, str]]:
    """`["a=1|2", "b=x|y"]` -> the four of them. ValueError for an axis that isn't KEY=VALUE|VALUE."""
    values: dict[str, list[str]] = {}
    for axis in axes:
        key, equals, text = axis.partition("=")
        given = text.split("|")
        if not equals or not key or not all(given):
            raise ValueError(f"--sweep {axis}: it must be KEY=VALUE|VALUE, for example optim.lr=1e-3|3e-3")
        if key in values or len(set(given)) != len(given):
            raise ValueError(f"--sweep {axis}: each key and each of its values may be given once")
        values[key] = given
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def sweep(config: TrainConfig, axes: Sequence[str], out: Path, probe: Probe | None = None) -> Sweep:
    """Run every combination of `axes` over `config`, one after the other. All are checked before the first begins."""
    chosen = combinations(axes)
    configs = [with_settings(config, [f"{k}={v}" for k, v in each.items()]) for each in chosen]
    trials: list[Trial] = []
    for number, (settings, each) in enumerate(zip(chosen, configs, strict=True)):
        folder = out / _folder_name(number, settings)
        trial = _trial(settings, each, folder, probe)
        if trial is None:
            return Sweep(tuple(trials), stopped=True)
        trials.append(trial)
        _write(out, trials)
    return Sweep(tuple(trials), stopped=False)


def _trial(settings: dict[str, str], config: TrainConfig, folder: Path, probe: Probe | None) -> Trial | None:
    """None if a signal stopped the run."""
    try:
        result = train(config, folder, resume=folder.exists(), probe=probe)
    except FloatingPointError:
        return Trial(settings, folder.name, math.nan, math.nan, 0.0, diverged=True)
    if result.stopped:
        return None
    return Trial(settings, folder.name, result.first_loss, result.heldout_loss, result.tokens_per_second)


def _folder_name(number: int, settings: dict[str, str]) -> str:
    """A number, and as much of the settings as reads well."""
    text = "_".join(f"{key.rpartition('.')[2]}={Path(value).name}" for key, value in settings.items())
    return f"{number:02d}_{re.sub(r'[^A-Za-z0-9=._+-]+', '-', text)[:60]}"


def _write(out: Path, trials: list[Trial]) -> None:
    """sweep.json, and sweep.png where matplotlib is installed."""
    values = [
        asdict(trial) | ({"first_loss": None, "heldout_loss": None} if trial.diverged else {}) for trial in trials
    ]
    unfinished = out / ".sweep.json.tmp"
    unfinished.write_text(json.dumps(values, indent=1), encoding="utf-8")
    os.replace(unfinished, out / "sweep.json")
    try:
        _plot(out, trials)
    except ImportError:
        return


def _plot(out: Path, trials: list[Trial]) -> None:
    """Left: held-out loss by tokens, a line a run. Right: where each ended."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.5 + max(3.0, 0.35 * len(trials))), layout="constrained")
    curves, ends = figure.subplots(1, 2)
    for number, trial in enumerate(trials):
        records = [r for r in _records(out / trial.folder) if "heldout_loss" in r]
        color = f"C{number % 10}"
        curves.plot([r["tokens"] for r in records], [r["heldout_loss"] for r in records], color=color, marker=".")
        if math.isfinite(trial.heldout_loss):
            ends.plot(trial.heldout_loss, number, "o", color=color)
            ends.annotate(f" {trial.heldout_loss:.3f}", (trial.heldout_loss, number), va="center")
    curves.set_xlabel("tokens")
    curves.set_ylabel("held-out loss, nats per token")
    ends.set_yticks(range(len(trials)), [_label(trial) for trial in trials])
    ends.invert_yaxis()
    ends.margins(x=0.25)
    ends.set_xlabel("at the end")
    for axes in (curves, ends):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    unfinished = out / ".sweep.png.tmp"
    figure.savefig(unfinished, format="png", dpi=130)
    os.replace(unfinished, out / "sweep.png")


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def _label(trial: Trial) -> str:
    text = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in trial.settings.items())
    return (text if len(text) <= 48 else text[:45] + "…") + (" (diverged)" if trial.diverged else "")
