"""How many records each step took, gave and dropped, and why: counted, shown, saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from plait.synth.record import write_text


@dataclass
class Stage:
    """One step of the funnel. A record may become several, so `n_out + dropped` may exceed `n_in`."""

    name: str
    n_in: int = 0
    n_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> records
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the id and the detail of the first one

    def drop(self, reason: str, example: str = "") -> None:
        """`reason` up to its first colon is counted; what follows is the detail of this case."""
        kind = reason.partition(":")[0]
        self.dropped[kind] += 1
        self.examples.setdefault(kind, f"{example} {reason}".strip())

    def as_dict(self) -> dict[str, Any]:
        counts = dict(self.dropped.most_common())
        return {
            "name": self.name,
            "n_in": self.n_in,
            "n_out": self.n_out,
            "dropped": counts,
            "examples": {reason: self.examples[reason] for reason in counts},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Stage:
        return cls(values["name"], values["n_in"], values["n_out"], Counter(values["dropped"]), values["examples"])


def rows(stages: Iterable[Stage]) -> list[tuple[str, str, str, str]]:
    """(step, in, out, reason and count of what was dropped): a line per step and one per further reason."""
    lines = []
    for stage in stages:
        reasons = [f"{reason}: {count}" for reason, count in stage.dropped.most_common()] or [""]
        lines.append((stage.name, str(stage.n_in), str(stage.n_out), reasons[0]))
        lines += [("", "", "", reason) for reason in reasons[1:]]
    return lines


def save_funnel(
    stages: Sequence[Stage],
    conditions: dict[str, Any],
    folder: Path,
    contamination: dict[str, Any] | None = None,
) -> None:
    """folder/funnel.json and funnel.html; `conditions`: what was run, `contamination`: a Decontaminator's report."""
    values = {
        "conditions": conditions,
        "stages": [stage.as_dict() for stage in stages],
        "decontamination": contamination,
    }
    write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", folder / "funnel.json")
    write_text(funnel_html(stages, conditions, contamination), folder / "funnel.html")


def funnel_html(
    stages: Sequence[Stage], conditions: dict[str, Any], contamination: dict[str, Any] | None = None
) -> str:
    """One page that needs nothing else: a bar per step, dark for what went on, and the reasons for the rest."""
    widest = max((max(stage.n_in, stage.n_out) for stage in stages), default=0) or 1
    body = "".join(_stage_html(stage, widest) for stage in stages)
    if contamination is not None:
        keys = ("name", "texts", "too_short", "found")
        rows = [[found[key] for key in keys] for found in contamination["sets"]]
        heading = ("evaluation set", "texts", "too short to compare", "records dropped")
        body += f"<h2>decontamination, {contamination['n']} words in a row</h2>{_table(heading, rows)}"
    body += f"<h2>settings</h2>{_table(('name', 'value'), [(name, str(value)) for name, value in conditions.items()])}"
    skill = escape(str(conditions.get("skill", "")))
    n_in, n_out = (stages[0].n_in, stages[-1].n_out) if stages else (0, 0)
    return _PAGE.format(skill=skill, summary=f"{n_in:,} prompts gave {n_out:,} conversations.", body=body)


def _stage_html(stage: Stage, widest: int) -> str:
    rows = [[reason, n, stage.examples.get(reason, "")[:300]] for reason, n in stage.dropped.most_common()]
    table = _table(("dropped because", "records", "first"), rows) if rows else ""
    went_in, went_on = (100 * n / widest for n in (stage.n_in, stage.n_out))
    return (
        f"<h2>{escape(stage.name)}</h2><p>{stage.n_in:,} in, {stage.n_out:,} out</p>"
        f'<div class="in" style="width:{went_in:.1f}%"></div>'
        f'<div class="out" style="width:{went_on:.1f}%"></div>{table}'
    )


def _table(heading: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heading)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return f'<td class="n">{value:,}</td>' if is_number else f"<td>{escape(str(value))}</td>"


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Funnel: {skill}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
color-scheme: light dark }}
h2 {{ font-size: 1.05rem; margin: 1.8rem 0 0 }} p {{ margin: 0 }}
.in, .out {{ height: .6rem; min-width: 2px; background: #8884 }} .out {{ background: #3b7dd8 }}
table {{ border-collapse: collapse; margin-top: .6rem }} tr + tr {{ border-top: 1px solid #8883 }}
td, th {{ text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top }}
td {{ overflow-wrap: anywhere }}
td:first-child {{ min-width: 11rem }} .n {{ text-align: right; font-variant-numeric: tabular-nums }}
</style>
<h1>Funnel: {skill}</h1><p>{summary}</p>{body}</html>
"""
