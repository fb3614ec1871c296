"""The picture at the end of a run: loss.png and a report.html that needs no network: loss, throughput, router balance
and load per expert, activation maxima by kind of site and by layer.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from pathlib import Path
from typing import Any

from plait.train.metrics import read_metrics
from plait.train.probes import probes_section


def write_report(out: Path, config: dict[str, Any], summary: dict[str, Any]) -> list[Path]:
    """Write loss.png and report.html from metrics.jsonl; returns what was written. Without matplotlib: neither, and
    says so.
    """
    records = read_metrics(out / "metrics.jsonl")
    try:
        picture = _plot(records, str(config["name"]))
    except ImportError:
        print("matplotlib is not installed: no loss.png and no report.html (pip install plait[train])", file=sys.stderr)
        return []
    written = [out / "loss.png", out / "report.html"]
    _write(written[0], picture)
    sites = _sites(records[-1]) if records else {}
    _write(written[1], _page(picture, config, summary, sites, probes_section(out)).encode())
    return written


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def _plot(records: list[dict[str, Any]], name: str) -> bytes:
    from matplotlib.figure import Figure

    steps = [r["step"] for r in records]
    sizes = {"Mamba outputs": "max_mamba", "expert outputs": "max_experts"}
    sizes = {label: key for label, key in sizes.items() if any(r.get(key) for r in records)}  # a run may lack either
    has_router = any(r.get("balance") for r in records)
    has_rates = any("tokens_per_second" in r for r in records)
    load = _load(records)
    heights = [3] + [1] * (has_router + bool(sizes) + has_rates + (load is not None))
    figure = Figure(figsize=(8, 1 + 1.6 * sum(heights)), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    loss, *others = axes
    if load is not None:
        heat = others.pop()
        names, shares = load
        drawn = heat.imshow(shares, aspect="auto", vmin=0, vmax=2, cmap="coolwarm", interpolation="nearest",
                            extent=(steps[0] - 0.5, steps[-1] + 0.5, len(shares) - 0.5, -0.5))  # fmt: skip
        heat.set_yticks(range(0, len(shares), len(shares) // len(names)), names)
        heat.set_ylabel("experts' load")
        figure.colorbar(drawn, ax=heat, label="of an equal share", aspect=10)
    if has_rates:
        rates = others.pop()
        rates.plot(steps, [r.get("tokens_per_second") for r in records], color="#72b7b2")
        rates.set_ylabel("tokens/s")
    what = "ce" if not records or "ce" in records[0] else "loss"
    loss.plot(steps, [r[what] for r in records], color="#4c78a8", linewidth=1.5, label="training")
    held = [(r["step"], r["heldout_loss"]) for r in records if "heldout_loss" in r]
    if held:
        loss.plot(*zip(*held, strict=True), color="#e45756", marker="o", markersize=4, linewidth=1.5, label="held-out")
    loss.set_ylabel("cross entropy, nats per token" if what == "ce" else "preference loss")
    loss.set_title(name)
    loss.legend(frameon=False)
    if has_router:
        others[0].plot(steps, [r["balance"] for r in records], color="#54a24b")
        others[0].set_ylabel("balance loss")
    for (label, key), color in zip(sizes.items(), ("#b279a2", "#f58518"), strict=False):
        others[-1].plot(steps, [r[key] for r in records], color=color, label=label)
    if sizes:
        others[-1].set_yscale("log")
        others[-1].set_ylabel("largest activation")
        others[-1].legend(frameon=False)
    axes[-1].set_xlabel("step")
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _load(records: list[dict[str, Any]]) -> tuple[list[str], list[list[float]]] | None:
    """Names of the mixtures, and for each expert of each its load by logged step; None without any."""
    names = sorted(name for name in records[0] if name.startswith("load/"))
    if not names or len(records) < 2:
        return None
    rows = [[r[name][e] for r in records if name in r] for name in names for e in range(len(records[0][name]))]
    return [name.removeprefix("load/") for name in names], rows


def _sites(record: dict[str, Any]) -> dict[str, float]:
    """The largest activation of each site in one record."""
    return {name.removeprefix("max/"): size for name, size in record.items() if name.startswith("max/")}


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light
dark; } img { max-width: 100%; background: white; border-radius: 6px; }
table { border-collapse: collapse; margin: 1rem 0; }
td { padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
td + td { font-variant-numeric: tabular-nums; }
"""


def _page(picture: bytes, config: dict[str, Any], summary: dict[str, Any], sites: dict[str, float], probes: str) -> str:
    def rows(values: dict[str, Any]) -> str:
        return "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(_show(v))}</td></tr>" for k, v in values.items())

    flat = {f"{group}.{k}" if k else group: v for group, value in config.items() for k, v in _items(value)}
    encoded = base64.b64encode(picture).decode()
    title = html.escape(str(config["name"]))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1>"
        f"<table>{rows(summary)}</table><img alt='loss, router balance and activation maxima by step' "
        f"src='data:image/png;base64,{encoded}'>{probes}"
        + (f"<h2>Largest activations in the last step</h2><table>{rows(sites)}</table>" if sites else "")
        + f"<h2>Configuration</h2><table>{rows(flat)}</table></html>\n"
    )


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else [("", value)]


def _show(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
