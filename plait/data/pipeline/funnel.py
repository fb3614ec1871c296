"""The funnel of a build: documents, characters and tokens in and out of each step, by source and language, and why."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table

from plait.data.shards import SourceCount

STEPS = (
    "extract", "program text", "language", "quality", "repetition", "personal data", "duplicates", "boilerplate",
    "mixed languages", "contamination",
)  # fmt: skip
_SHOWN = 3  # samples a reason


def make_funnel(
    books: Iterable[dict[str, Any]], tokens: Iterable[SourceCount], manuals: Iterable[SourceCount] = ()
) -> dict[str, Any]:
    """All tasks' books in one. `manuals` are made of documents that are in `tokens`, and add nothing to them.

    Tokens of what was dropped were never counted: they are characters times the ratio of what was kept of the same
    language. Raises AssertionError if a document is neither out nor dropped with a reason.
    """
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    reasons: dict[tuple[str, str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    samples: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for book in books:
        for step, source, language, *values in book["counts"]:
            counts[step, source, language] = [
                a + b for a, b in zip(counts[step, source, language], values, strict=True)
            ]
        for step, source, language, reason, *values in book["reasons"]:
            key = (step, source, language, reason)
            reasons[key] = [a + b for a, b in zip(reasons[key], values, strict=True)]
        for sample in book["samples"]:
            samples[sample["step"], sample["reason"]].append(sample)
    kept = list(tokens)
    ratio = _Ratio(kept)
    steps = [_step(name, counts, reasons, ratio) for name in STEPS if any(key[0] == name for key in counts)]
    out = sum(count.n_documents for count in kept)
    dropped = sum(step["documents_dropped"] for step in steps)
    read = steps[0]["documents_in"] if steps else 0
    assert read == out + dropped, f"{read} documents were read, {out} kept and {dropped} dropped: some are lost"
    return {
        "documents_read": read,
        "documents_kept": out,
        "documents_dropped": dropped,
        "tokens_kept": sum(count.n_tokens for count in kept),
        "steps": steps,
        "kept": [{**vars(count)} for count in kept],
        "manuals": [{**vars(count)} for count in manuals],
        "samples": [s for each in samples.values() for s in _varied(each)],
    }


class _Ratio:
    """Tokens per character, by language, and over all where a language has none left."""

    def __init__(self, kept: Iterable[SourceCount]) -> None:
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for count in kept:
            for name in (count.source.rpartition("/")[2], ""):
                sums[name][0] += count.n_tokens
                sums[name][1] += count.n_characters
        self._ratios = {name: tokens / max(1, characters) for name, (tokens, characters) in sums.items()}

    def tokens(self, language: str, characters: int) -> int:
        return round(characters * self._ratios.get(language, self._ratios.get("", 0.0)))


def _step(name: str, counts: dict[Any, list[int]], reasons: dict[Any, list[int]], ratio: _Ratio) -> dict[str, Any]:
    own = {key[1:]: count for key, count in counts.items() if key[0] == name}
    lost = {key[1:]: count for key, count in reasons.items() if key[0] == name}
    step: dict[str, Any] = {"step": name, **_sums(own, lost, ratio, of_files=name == "extract")}
    by_reason: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (_, _, reason), (documents, characters) in lost.items():
        by_reason[reason][0] += documents
        by_reason[reason][1] += characters
    ordered = sorted(by_reason.items(), key=lambda item: -item[1][0])
    step["reasons"] = [{"reason": r, "documents": d, "characters": c} for r, (d, c) in ordered]
    for place, group in ((0, "by_source"), (1, "by_language")):
        names = sorted({key[place] for key in own})
        step[group] = {
            each: _sums(
                {k: v for k, v in own.items() if k[place] == each},
                {k: v for k, v in lost.items() if k[place] == each},
                ratio,
                of_files=name == "extract",
            )
            for each in names
        }
    return step


def _sums(own: dict[Any, list[int]], lost: dict[Any, list[int]], ratio: _Ratio, *, of_files: bool) -> dict[str, int]:
    """`of_files`: what comes in is markup, whose bytes say nothing about tokens."""
    documents_in, characters_in, documents_out, characters_out = (sum(c[i] for c in own.values()) for i in range(4))
    dropped = sum(count[0] for count in lost.values())
    assert documents_in == documents_out + dropped, f"{documents_in} in, {documents_out} out, {dropped} dropped"
    return {
        "documents_in": documents_in,
        "documents_out": documents_out,
        "documents_dropped": dropped,
        "characters_in": characters_in,
        "characters_out": characters_out,
        "tokens_in": 0 if of_files else sum(ratio.tokens(key[1], count[1]) for key, count in own.items()),
        "tokens_out": sum(ratio.tokens(key[1], count[3]) for key, count in own.items()),
    }


def _varied(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few of a reason's samples, of different sources and languages first."""
    seen: set[tuple[str, str]] = set()
    fresh: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for sample in samples:
        key = (sample["source"], sample["language"])
        (rest if key in seen else fresh).append(sample)
        seen.add(key)
    return (fresh + rest)[:_SHOWN]


def funnel_table(funnel: dict[str, Any]) -> RenderableType:
    """For a terminal: the steps, and what was kept of each source and language."""
    first = Column("step", no_wrap=True)
    steps = Table(first, "documents in", "out", "dropped", "≈ tokens out", "most frequent reasons", title="funnel")
    for step in funnel["steps"]:
        reasons = ", ".join(f"{each['reason']} {each['documents']:,}" for each in step["reasons"][:3])
        numbers = (f"{step[key]:,}" for key in ("documents_in", "documents_out", "documents_dropped", "tokens_out"))
        steps.add_row(step["step"], *numbers, reasons)
    kept = Table("source/language", "documents", "tokens", "tokens per character", title="kept")
    for count in funnel["kept"]:
        ratio = count["n_tokens"] / max(1, count["n_characters"])
        kept.add_row(count["source"], f"{count['n_documents']:,}", f"{count['n_tokens']:,}", f"{ratio:.3f}")
    if not funnel["manuals"]:
        return Group(steps, kept)
    manuals = Table("source", "manuals", "tokens", title="whole manuals, of the same pages")
    for count in funnel["manuals"]:
        manuals.add_row(count["source"].partition("/")[0], f"{count['n_documents']:,}", f"{count['n_tokens']:,}")
    return Group(steps, kept, manuals)


_STYLE = """
:root { color-scheme: light dark; --bar: #4c78a8; --lost: #e4575688; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child, .text { text-align: left; }
th { font-weight: 600; }
.bar { display: flex; height: .9rem; min-width: 12rem; background: none; }
.bar i { background: var(--bar); } .bar b { background: var(--lost); }
details { margin: .4rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6rem; border-radius: 6px; }
pre { font-size: 13px; }
.note { opacity: .75; } .scroll { overflow-x: auto; }
"""


def funnel_page(funnel: dict[str, Any], name: str) -> str:
    """The same as a page that needs nothing from a network, with samples of what was dropped."""
    title = html.escape(f"Funnel of {name}")
    share = funnel["documents_kept"] / max(1, funnel["documents_read"])
    body = (
        f"<h1>{title}</h1><p>{funnel['documents_read']:,} documents read, {funnel['documents_kept']:,} kept "
        f"({share:.1%}), {funnel['documents_dropped']:,} dropped, each with a reason. {funnel['tokens_kept']:,} tokens."
        "</p>"
        "<p class=note>Tokens of what was dropped are estimated from its characters and the kept text of its language; "
        "characters into “extract” are bytes of the files.</p>"
        + _steps_section(funnel)
        + _groups_section(funnel, "by_source", "Sources")
        + _groups_section(funnel, "by_language", "Languages")
        + _kept_section(funnel)
        + _samples_section(funnel)
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>{body}</html>\n"
    )


def _steps_section(funnel: dict[str, Any]) -> str:
    largest = max((step["documents_in"] for step in funnel["steps"]), default=1) or 1
    rows = []
    for step in funnel["steps"]:
        kept, lost = (100 * step[key] / largest for key in ("documents_out", "documents_dropped"))
        reasons = "<br>".join(f"{html.escape(r['reason'])}: {r['documents']:,}" for r in step["reasons"])
        rows.append(
            f"<tr><td>{step['step']}<td>{step['documents_in']:,}<td>{step['documents_out']:,}"
            f"<td>{step['documents_dropped']:,}<td>{_number(step['tokens_in'])}<td>{step['tokens_out']:,}"
            f"<td><div class=bar><i style='width:{kept:.2f}%'></i><b style='width:{lost:.2f}%'></b></div>"
            f"<td class=text>{reasons}"
        )
    head = "<tr><th>step<th>documents in<th>out<th>dropped<th>≈ tokens in<th>≈ tokens out<th><th class=text>reasons"
    return f"<h2>Steps</h2><div class=scroll><table>{head}{''.join(rows)}</table></div>"


def _groups_section(funnel: dict[str, Any], group: str, title: str) -> str:
    steps = funnel["steps"]
    names = sorted({name for step in steps for name in step[group]})
    rows = []
    for name in names:
        cells = []
        for step in steps:
            one = step[group].get(name)
            cells.append("<td>" if one is None else _passed(one))
        rows.append(f"<tr><td>{html.escape(name or '(not known yet)')}{''.join(cells)}")
    head = "<tr><th>" + "".join(f"<th>{step['step']}" for step in steps)
    note = "<p class=note>Documents that passed, below them those that did not, and the tokens that passed.</p>"
    return f"<h2>{title}</h2>{note}<div class=scroll><table>{head}{''.join(rows)}</table></div>"


def _passed(one: dict[str, int]) -> str:
    lost = f"−{one['documents_dropped']:,}" if one["documents_dropped"] else "&nbsp;"
    return f"<td>{one['documents_out']:,}<br><span class=note>{lost}<br>{_thousands(one['tokens_out'])}</span>"


def _thousands(tokens: int) -> str:
    """1,234,567 -> 1,235K."""
    return f"{tokens / 1000:,.0f}K" if tokens >= 10_000 else f"{tokens / 1000:.1f}K"


def _kept_section(funnel: dict[str, Any]) -> str:
    """What the shards hold, by source and language, and the whole manuals beside them."""
    parts = ["<h2>Kept</h2>", _counts_table(funnel["kept"], "source/language")]
    if funnel["manuals"]:
        parts.append("<h2>Whole manuals</h2><p class=note>The same pages, joined in the order they name as next.</p>")
        parts.append(_counts_table(funnel["manuals"], "source"))
    return "".join(parts)


def _counts_table(counts: list[dict[str, Any]], of: str) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(count['source'])}<td>{count['n_documents']:,}<td>{count['n_tokens']:,}"
        f"<td>{count['n_tokens'] / max(1, count['n_characters']):.3f}"
        for count in counts
    )
    return f"<div class=scroll><table><tr><th>{of}<th>documents<th>tokens<th>tokens per character{rows}</table></div>"


def _number(value: int) -> str:
    return f"{value:,}" if value else "–"


def _samples_section(funnel: dict[str, Any]) -> str:
    parts = ["<h2>Samples of what was dropped</h2>"]
    for sample in sorted(funnel["samples"], key=lambda s: (STEPS.index(s["step"]), s["reason"])):
        about = " · ".join(filter(None, (sample["language"], f"{sample['characters']:,} characters", sample["detail"])))
        parts.append(
            f"<details><summary><b>{sample['step']}: {html.escape(sample['reason'])}</b> "
            f"{html.escape(sample['id'])} <span class=note>{html.escape(about)}</span></summary>"
            f"<pre>{html.escape(sample['text']) or '(no text)'}</pre></details>"
        )
    return "".join(parts)
