"""report.html of a finished run: scores with intervals, plots, and samples to read."""

from __future__ import annotations

import json
from typing import Any

from plait.eval.page import details, page, pre, section, table
from plait.eval.plot import Bar, bars, heat_map, lines
from plait.eval.records import REPORT, Run, write_whole
from plait.eval.ruler.scoring import N_DEPTHS, as_length

MAX_SAMPLES = 100  # shown in full; samples.jsonl has them all
_MAX_CHARS = 4000


def write_report(run: Run) -> None:
    write_whole(run.folder / REPORT, render(run))


def render(run: Run) -> str:
    scores = run.scores
    return page(
        f"{scores['task']}: {scores['model']}",
        _facts(scores),
        section("Scores", _metric_table(scores["metrics"])),
        section("Summary", _summary_table(scores["summary"])),
        section("By length", _by_length(scores["summary"])),
        section("Needles: depth in percent by length", depth_map(scores["summary"])),
        section("By group", _group_bars(scores["groups"])),
        section("Samples, the lowest scores first", _samples(run)),
        section("Settings", table(("name", "value"), _flat(run.settings))),
    )


def _facts(scores: dict[str, Any]) -> str:
    shown = {
        "samples": scores["n"],
        "empty outputs": scores["empty"],
        "prompt tokens": scores["tokens"]["prompt"],
        "completion tokens": scores["tokens"]["completion"],
        "cost, US dollars": "no price given" if scores["cost_usd"] is None else f"{scores['cost_usd']:.4f}",
    }
    return table(("", ""), [*shown.items(), *scores["conditions"].items()])


def _metric_table(metrics: dict[str, Any]) -> str:
    rows = [(name, m["value"], f"{m['low']:,.2f} – {m['high']:,.2f}", m["unit"], m["n"]) for name, m in metrics.items()]
    return table(("metric", "value", "95 % interval", "unit", "samples"), rows)


def _summary_table(summary: dict[str, Any]) -> str:
    """What is a number, a text or an estimate; tables within have plots of their own."""
    rows = []
    for name, value in summary.items():
        if isinstance(value, dict) and "value" in value:
            rows.append((name, value["value"], f"{value['low']:,.2f} – {value['high']:,.2f}"))
        elif not isinstance(value, dict | list):
            rows.append((name, "none" if value is None else value, ""))
    if not any(interval for _, _, interval in rows):
        return table(("", "value"), [row[:2] for row in rows]) if rows else ""
    return table(("", "value", "95 % interval"), rows)


def _by_length(summary: dict[str, Any]) -> str:
    if len(summary.get("by_length", ())) < 2:
        return ""  # a line needs two points; the bars by group say the rest
    series = {"all tasks": summary["by_length"]} | summary.get("by_task", {})
    return lines({name: [(as_length(int(at)), y) for at, y in points.items()] for name, points in series.items()})


def depth_map(summary: dict[str, Any]) -> str:
    cells = summary.get("depths")
    if not cells:
        return ""
    lengths = sorted({cell["length"] for cell in cells})
    step = 100 // N_DEPTHS
    rows = [f"{depth}–{depth + step}" for depth in range(0, 100, step)]
    values = {(rows[round(cell["depth"]) // step], as_length(cell["length"])): cell["score"] for cell in cells}
    return heat_map(rows, [as_length(length) for length in lengths], values)


def _group_bars(groups: dict[str, Any]) -> str:
    items = []
    for name, group in groups.items():
        main = next(iter(group["metrics"].values()), None)
        if main is not None:
            items.append(Bar(f"{name} ({group['n']})", main["value"], main["low"], main["high"]))
    return bars(items, most=100 if all(item.high <= 100 for item in items) else 0) if items else ""


def _samples(run: Run) -> str:
    ordered = sorted(run.records, key=lambda record: next(iter(record["scores"].values()), 0.0))
    shown = "".join(_sample(record) for record in ordered[:MAX_SAMPLES])
    left_out = len(ordered) - MAX_SAMPLES
    return shown + (f"<p>{left_out:,} more are in samples.jsonl.</p>" if left_out > 0 else "")


def _sample(record: dict[str, Any]) -> str:
    prompt = record["prompt"] if isinstance(record["prompt"], str) else json.dumps(record["prompt"], ensure_ascii=False)
    content = pre(shorten(prompt + record["answer_prefix"])) + "<p>output</p>" + pre(shorten(record["output"]))
    content += "<p>references</p>" + pre("\n".join(record["references"])) if record["references"] else ""
    scores = ", ".join(f"{name} {value:.3g}" for name, value in record["scores"].items())
    return details(f"{record['id']}: {scores}", content)


def shorten(text: str) -> str:
    """Both ends of a long text."""
    half = _MAX_CHARS // 2
    return text if len(text) <= _MAX_CHARS else f"{text[:half]}\n[…]\n{text[-half:]}"


def _flat(values: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        rows += _flat(value, f"{before}{name}.") if isinstance(value, dict) else [(before + name, str(value))]
    return rows
