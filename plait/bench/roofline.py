"""The roofline of a `plait bench ops` run: operations a second over operations a byte, below the measured ceilings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from plait.bench.ops import Row


def plot(rows: Sequence[Row], bytes_per_s: float, flops_per_s: float, path: Path) -> None:
    """Write a picture (by the suffix of path, PNG for one). Needs matplotlib (`plait[train]`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    shown = [(r.op, r.flops_per_byte, r.gflop_per_s) for r in rows if r.flops_per_byte and r.gflop_per_s]
    intensities = [intensity for _, intensity, _ in shown] or [1.0]
    low, high = min(*intensities, 0.5), 2 * max(*intensities, flops_per_s / bytes_per_s)
    corner = flops_per_s / bytes_per_s
    axes.plot([low, corner, high], [low * bytes_per_s / 1e9, flops_per_s / 1e9, flops_per_s / 1e9], color="black")
    for op in sorted({op for op, _, _ in shown}):
        own = [point[1:] for point in shown if point[0] == op]
        axes.scatter([x for x, _ in own], [y for _, y in own], s=18, label=op)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    if shown:
        axes.legend()
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format=path.suffix[1:] or "png", dpi=150)
    os.replace(unfinished, path)
