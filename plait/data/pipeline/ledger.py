"""The books of a build: what went into each step, what came out, and why the rest did not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from plait.data.pipeline.rows import Row, RowWriter

SAMPLE_CHARACTERS = 400
SAMPLES_PER_REASON = 2  # kept by a task for each step, reason and language


class Ledger:
    """One task's books: counts per (step, source, language) in books/, each dropped document in dropped/."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / "books" / f"{rank:05d}.json"
        self._dropped = RowWriter(folder / "dropped" / f"{rank:05d}.jsonl.zst")
        self._counts: dict[tuple[str, str, str], list[int]] = {}
        self._reasons: dict[tuple[str, str, str, str], list[int]] = {}
        self._samples: dict[tuple[str, str, str], list[dict[str, Any]]] = {}

    def keep(self, step: str, row: Row, characters_in: int | None = None) -> None:
        """`row` passed `step`; it had `characters_in` before, if the step changed it."""
        count = self._count(step, row)
        size = len(row.text)
        count[0] += 1
        count[1] += size if characters_in is None else characters_in
        count[2] += 1
        count[3] += size

    def drop(self, step: str, row: Row, reason: str, detail: str = "", characters_in: int | None = None) -> None:
        """`row` ends at `step`. `reason`: one of few words, for counting; `detail`: about this document."""
        size = len(row.text) if characters_in is None else characters_in
        count = self._count(step, row)
        count[0] += 1
        count[1] += size
        lost = self._reasons.setdefault((step, row.source, row.language, reason), [0, 0])
        lost[0] += 1
        lost[1] += size
        record = {
            "step": step,
            "reason": reason,
            "detail": detail,
            "id": row.id,
            "source": row.source,
            "language": row.language,
            "characters": size,
            "text": row.text[:SAMPLE_CHARACTERS],
        }
        self._dropped.write(record)
        samples = self._samples.setdefault((step, reason, row.language), [])
        if len(samples) < SAMPLES_PER_REASON:
            samples.append(record)

    def _count(self, step: str, row: Row) -> list[int]:
        return self._counts.setdefault((step, row.source, row.language), [0, 0, 0, 0])

    def __enter__(self) -> Ledger:
        self._dropped.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dropped.__exit__(kind, error, trace)
        if kind is None:
            books = {
                "counts": [[*key, *count] for key, count in self._counts.items()],
                "reasons": [[*key, *count] for key, count in self._reasons.items()],
                "samples": [sample for samples in self._samples.values() for sample in samples],
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(books), encoding="utf-8")
            os.replace(unfinished, self._path)


def read_books(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """All tasks' books of some stages."""
    files = (file for folder in folders for file in sorted((folder / "books").glob("*.json")))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]
