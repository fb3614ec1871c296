"""What a model can do besides predicting held-out text, measured before a run's first step and after its last one.

What is measured comes from outside (recipes/probes.py: RULER and recall). Here is when, and where the numbers go:
probes.jsonl, TensorBoard, and the table in report.html. "Before" is the model that the run starts from; a run that
draws its weights has none.
"""

from __future__ import annotations

import html
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from plait.train.config import TrainConfig
from plait.train.metrics import TensorBoard

Probe = Callable[[TrainConfig, Path, Path], Mapping[str, float]]
"""(the run, a model's folder, a folder for samples) -> numbers by name"""
When = Literal["before", "after"]
PROBES = "probes.jsonl"


def check_probe(config: TrainConfig, probe: Probe | None) -> None:
    """Raises ValueError if the run has probes and nobody to measure them."""
    if config.probes.any and probe is None:
        raise ValueError(
            "the run has probes, so train() needs what measures them: train(…, probe=plait.recipes.probes.measure), or "
            "probes.ruler_samples=0 and probes.recall_samples=0"
        )


def run_probe(config: TrainConfig, probe: Probe | None, when: When, step: int, out: Path) -> None:
    """Measure the model before (`config.start`) or after (`out`/model), unless that was done, and note it."""
    model = Path(config.start) if when == "before" else out / "model"
    if probe is None or not config.probes.any or (when == "before" and not config.start):
        return
    if any(record["when"] == when for record in read_probes(out)):
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"probes {when} training: {model}", flush=True)
    started = time.perf_counter()
    values = dict(probe(config, model, out / "probes" / when))
    seconds = round(time.perf_counter() - started, 1)
    _append(out / PROBES, {"when": when, "step": step, "seconds": seconds, "scores": values})
    with TensorBoard(out / "tensorboard", step) as board:
        board.write({"step": step, **{f"probe/{name}": value for name, value in values.items()}})
    print(f"  {'  '.join(f'{name} {values[name]:.1f}' for name in averages(values))}  ({seconds:.0f} s)", flush=True)


def read_probes(out: Path) -> list[dict[str, Any]]:
    """The lines of probes.jsonl: `when`, `step`, `seconds` and `scores` by name; none if nothing was measured."""
    path = out / PROBES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def averages(values: Mapping[str, float]) -> list[str]:
    """Names of at most two parts, as in `ruler/4K`: single tasks have three."""
    return [name for name in values if name.count("/") < 2]


def _append(path: Path, record: dict[str, Any]) -> None:
    before = path.read_text() if path.exists() else ""
    partial = path.with_suffix(".partial")
    partial.write_text(before + json.dumps(record) + "\n")
    os.replace(partial, path)


def probes_section(out: Path) -> str:
    """The table of the run's page: every number before and after, with bars; empty without probes."""
    found = {record["when"]: record for record in read_probes(out)}
    if not found:
        return ""
    names = list(found.values())[-1]["scores"]
    columns = [when for when in ("before", "after") if when in found]
    head = "".join(f"<td><b>{when} (step {found[when]['step']:,})</b></td>" for when in columns)
    head += "<td><b>change</b></td>" * (len(columns) == 2)
    rows = "".join(_row(name, [found[when]["scores"].get(name) for when in columns]) for name in names)
    took = " and ".join(f"{found[when]['seconds']:,.0f} s {when}" for when in columns)
    return (
        "<h2>Probes</h2><p>Scores from 0 to 100, of the same samples before and after; measuring took "
        f"{took}. All prompts and answers lie in probes/.</p><table><tr><td></td>{head}</tr>{rows}</table>"
    )


def _row(name: str, values: list[float | None]) -> str:
    cells = "".join("<td></td>" if value is None else f"<td>{_bar(value)} {value:.1f}</td>" for value in values)
    if len(values) == 2:
        before, after = values
        cells += "<td></td>" if before is None or after is None else f"<td>{after - before:+.1f}</td>"
    shown = f"&nbsp;&nbsp;{html.escape(name)}" if name.count("/") > 1 else f"<b>{html.escape(name)}</b>"
    return f"<tr><td>{shown}</td>{cells}</tr>"


def _bar(value: float) -> str:
    width = min(100.0, max(0.0, value))
    return (
        "<span style='display:inline-block;width:6rem;background:#8883'>"
        f"<span style='display:block;height:.7rem;background:#4c78a8;width:{width:.1f}%'></span></span>"
    )
