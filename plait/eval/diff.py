"""Two runs of one task side by side: paired difference of each metric, and the samples that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from html import escape
from typing import Any

from plait.eval.page import details, page, pre, section, table
from plait.eval.records import Run
from plait.eval.report import shorten
from plait.eval.statistics import Estimate, difference

MAX_SAMPLES = 100


@dataclass(frozen=True)
class Change:
    """A sample that both runs have, with different scores in the main metric."""

    id: str
    before: dict[str, Any]
    after: dict[str, Any]
    gain: float


@dataclass(frozen=True)
class Diff:
    before: Run
    after: Run
    metrics: dict[str, Estimate]  # after minus before, in the metric's unit
    changes: list[Change]
    n_shared: int

    def as_json(self) -> dict[str, Any]:
        return {
            "before": str(self.before.folder),
            "after": str(self.after.folder),
            "n_shared": self.n_shared,
            "metrics": {name: asdict(estimate) for name, estimate in self.metrics.items()},
            "better": [change.id for change in self.changes if change.gain > 0],
            "worse": [change.id for change in self.changes if change.gain < 0],
        }


def compare(before: Run, after: Run) -> Diff:
    """Raises ValueError when the runs share no samples: same task, and prompts made the same way."""
    if before.scores["task"] != after.scores["task"]:
        raise ValueError(f"{before.folder} ran {before.scores['task']}, {after.folder} ran {after.scores['task']}")
    others = {record["id"]: record for record in after.records}
    pairs = [
        (a, b) for a in before.records if (b := others.get(a["id"])) is not None and a["references"] == b["references"]
    ]
    if not pairs:
        raise ValueError(f"{before.folder} and {after.folder} have no samples in common (other seed or data?)")
    units = _units(before, pairs)
    metrics = {}
    for name, unit in units.items():
        both = [(a["scores"][name], b["scores"][name]) for a, b in pairs if name in a["scores"] and name in b["scores"]]
        if both:
            scale = 100.0 if unit == "%" else 1.0
            metrics[name] = difference([a * scale for a, _ in both], [b * scale for _, b in both])
    main = next(iter(units))
    changes = [
        Change(a["id"], a, b, b["scores"][main] - a["scores"][main])
        for a, b in pairs
        if main in a["scores"] and main in b["scores"] and a["scores"][main] != b["scores"][main]
    ]
    return Diff(before, after, metrics, sorted(changes, key=lambda change: change.gain), len(pairs))


def _units(before: Run, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, str]:
    """The run's metrics that single samples have too. The harness' runs have metrics by group only: all its shares."""
    in_samples = dict.fromkeys(name for record, _ in pairs for name in record["scores"])
    found = {name: metric["unit"] for name, metric in before.scores["metrics"].items() if name in in_samples}
    if not in_samples:
        raise ValueError(f"{before.folder} has no scores of single samples to compare")
    return found or dict.fromkeys(in_samples, "%")


def render(diff: Diff) -> str:
    rows = [(name, e.value, f"{e.low:+,.2f} – {e.high:+,.2f}", e.n) for name, e in diff.metrics.items()]
    return page(
        f"{diff.before.scores['task']}: {diff.before.folder.name} → {diff.after.folder.name}",
        f"<p>{escape(str(diff.before.scores['model']))} → {escape(str(diff.after.scores['model']))},"
        f" {diff.n_shared} samples in common.</p>",
        section("Difference, sample by sample", table(("metric", "after − before", "95 % interval", "samples"), rows)),
        section("Worse", "".join(_change(c) for c in diff.changes if c.gain < 0)),
        section("Better", "".join(_change(c) for c in reversed(diff.changes) if c.gain > 0)),
    )


def _change(change: Change) -> str:
    before, after = change.before["output"], change.after["output"]
    prompt = change.before["prompt"]
    shown = pre(shorten(prompt)) if isinstance(prompt, str) else ""
    outputs = f"<pre>{word_diff(shorten(before), shorten(after))}</pre>"
    references = pre("\n".join(change.before["references"]))
    return details(f"{change.id}: {change.gain:+.3g}", f"{outputs}<p>references</p>{references}<p>prompt</p>{shown}")


def word_diff(before: str, after: str) -> str:
    """HTML of both texts in one: words only in `before` struck out, words only in `after` marked."""
    old, new = before.split(" "), after.split(" ")
    parts = []
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(escape(" ".join(old[a:b])))
            continue
        if a < b:
            parts.append(f"<del>{escape(' '.join(old[a:b]))}</del>")
        if c < d:
            parts.append(f"<ins>{escape(' '.join(new[c:d]))}</ins>")
    return " ".join(parts)
