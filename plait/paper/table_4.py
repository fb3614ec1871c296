"""Table 4: RULER by context length, and effective lengths (paper section 6.3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.eval.records import read_run
from plait.eval.ruler.scoring import as_length

if TYPE_CHECKING:
    from rich.console import Console

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072, 262144)


@dataclass(frozen=True)
class Row:
    """As printed: claimed and effective length, then scores at LENGTHS (None where there is none) and their mean."""

    claimed: str
    effective: str
    scores: tuple[float | None, ...]
    average: float


PAPER = {
    "Jamba-1.5-Large": Row("256K", "256K", (96.7, 96.6, 96.4, 96.0, 95.4, 95.1, 93.9), 95.7),
    "Jamba-1.5-Mini": Row("256K", "256K", (95.7, 95.2, 94.7, 93.8, 92.7, 89.8, 86.1), 92.6),
    "Gemini-1.5-pro": Row("1M", ">128K", (96.7, 95.8, 96, 95.9, 95.9, 94.4, 65.1), 91.4),
    "GPT-4-1106-preview": Row("128K", "64K", (96.6, 96.3, 95.2, 93.2, 87, 81.2, None), 91.6),
    "LLaMA 3.1 70B": Row("128K", "64K", (96.5, 95.8, 95.4, 94.8, 88.4, 66.6, None), 89.6),
    "Qwen2 72B": Row("128K", "32K", (96.9, 96.1, 94.9, 94.1, 79.8, 53.7, None), 85.9),
    "Command-R+": Row("128K", "32K", (95.6, 95.2, 94.2, 92, 84.3, 63.1, None), 87.4),
    "LLaMA 3.1 8B": Row("128K", "32K", (95.5, 93.8, 91.6, 87.4, 84.7, 77, None), 88.3),
    "Command-R": Row("128K", "32K", (93.8, 93.3, 92.4, 89.5, 84.9, 76, None), 88.3),
    "Mistral Large 2": Row("128K", "32K", (96.2, 96.1, 95.1, 93, 78.8, 23.7, None), 80.5),
    "Mixtral 8x22B": Row("64K", "32K", (95.6, 94.9, 93.4, 90.9, 84.7, 31.7, None), 81.9),
    "Yi 34B": Row("200K", "32K", (93.3, 92.2, 91.3, 87.5, 83.2, 77.3, None), 87.5),
    "Phi3 mini 3.8B": Row("128K", "32K", (92.2, 91.5, 90.7, 87.5, 80.6, 66.7, None), 84.8),
    "Phi3 medium 14B": Row("128K", "32K", (93.3, 93.2, 91.1, 86.8, 78.6, 46.1, None), 81.5),
    "Mixtral 8x7B": Row("32K", "32K", (94.9, 92.1, 92.5, 85.9, 72.4, 44.5, None), 80.4),
    "Mistral Nemo 12B": Row("128K", "16K", (87.8, 87.2, 87.7, 69, 46.8, 19, None), 66.2),
    "DBRX": Row("32K", "8K", (95.1, 93.8, 83.6, 63.1, 2.4, 0, None), 56.3),
}


def our_rows(runs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Folder -> what its RULER run found. Raises ValueError for runs of another task."""
    rows = {}
    for folder in runs:
        scores = read_run(folder).scores
        if scores["task"] != "ruler":
            raise ValueError(f"{folder} is a run of {scores['task']}; Table 4 takes runs of ruler")
        summary = scores["summary"]
        groups = {name: group["n"] for name, group in scores["groups"].items()}
        rows[str(folder)] = {"model": scores["model"], "n": scores["n"], "samples": groups} | summary
    return rows


def as_json(runs: Sequence[Path] = ()) -> dict[str, Any]:
    return {
        "lengths": list(LENGTHS),
        "paper": {
            name: {"claimed": r.claimed, "effective": r.effective, "scores": list(r.scores), "average": r.average}
            for name, r in PAPER.items()
        },
        "ours": our_rows(runs),
    }


def show(console: Console, runs: Sequence[Path] = ()) -> None:
    """The paper's rows, then ours with the lengths that were run."""
    from rich import box
    from rich.table import Table

    ours = our_rows(runs)
    lengths = sorted({*LENGTHS, *(int(length) for row in ours.values() for length in row["by_length"])})
    room = 1 if len(lengths) == len(LENGTHS) else 0  # more of them, and 80 columns are full without
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 0, 0, room))
    table.add_column("Table 4", no_wrap=True)
    for heading in ("claim", "eff.", *map(as_length, lengths), "avg."):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in PAPER.items():
        scores = dict(zip(LENGTHS, row.scores, strict=True))
        cells = [_number(scores.get(length)) for length in lengths]
        table.add_row(name, row.claimed, row.effective, *cells, _number(row.average))
    for found in ours.values():
        cells = [_number(found["by_length"].get(str(length))) for length in lengths]
        table.add_row(Path(found["model"]).name, "", effective(found), *cells, _number(found["average"]))
    console.print(table)
    _show_tasks(console, ours)
    console.print(
        "\nClaimed and effective length; the bar is a score of 85.6. Needle scores by depth: a run's report.html."
    )
    if not runs:
        console.print("Ours beside them: --run DIR, the folder of a `plait eval ruler` run; may be repeated.")


def effective(row: dict[str, Any]) -> str:
    """`>` when even the longest tested length reaches the bar, `-` when none does."""
    if row["effective_length"] is None:
        return "-"
    return (">" if row["passes_longest"] else "") + as_length(row["effective_length"])


def _show_tasks(console: Console, ours: dict[str, dict[str, Any]]) -> None:
    for folder, row in ours.items():
        stand_ins = [task for task in row["by_task"] if task not in _OFFICIAL]
        said = f"; {', '.join(stand_ins)} use other texts than RULER's" if stand_ins else ""
        console.print(f"\n{folder}: {row['n']} samples in {len(row['by_task'])} tasks{said}.")


_OFFICIAL = frozenset(
    [
        "niah_single_1",
        "niah_single_2",
        "niah_single_3",
        "niah_multikey_1",
        "niah_multikey_2",
        "niah_multikey_3",
        "niah_multivalue",
        "niah_multiquery",
        "vt",
        "cwe",
        "fwe",
        "qa_1",
        "qa_2",
    ]
)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
