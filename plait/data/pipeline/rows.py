"""Documents between the stages of a build: zstd-packed JSONL, one file a task, whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(slots=True)
class Row:
    """`id`: source, file and number in it; `language`: a code, "code" for program text, "" while it isn't known."""

    id: str
    text: str
    source: str
    language: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


class RowWriter:
    """Writes `path` under a temporary name; it gets its own when the block ends without an exception."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self.path = path
        self._unfinished = path.with_name(f".{path.name}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = zstandard.ZstdCompressor(level=1).stream_writer(self._unfinished.open("wb"))

    def write(self, row: Row | dict[str, Any]) -> None:
        import orjson

        values = asdict(row) if isinstance(row, Row) else row
        self._file.write(orjson.dumps(values) + b"\n")

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._unfinished, self.path)
        else:
            self._unfinished.unlink(missing_ok=True)


def read_rows(path: Path) -> Iterator[Row]:
    """The documents of one task, one in memory at a time."""
    for values in read_objects(path):
        yield Row(**values)


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file that RowWriter wrote."""
    import io

    import orjson
    import zstandard

    with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as file:
        for line in io.BufferedReader(file, 1 << 20):
            yield orjson.loads(line)


def write_note(folder: Path, kind: str, rank: int, value: Any) -> None:
    """Something small that task `rank` found out, as JSON."""
    path = _note_file(folder, kind, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(value), encoding="utf-8")
    os.replace(unfinished, path)


def read_note(folder: Path, kind: str, rank: int) -> Any:
    return json.loads(_note_file(folder, kind, rank).read_text(encoding="utf-8"))


def _note_file(folder: Path, kind: str, rank: int) -> Path:
    return folder / kind / f"{rank:05d}.json"


def task_file(folder: Path, rank: int) -> Path:
    """Where task `rank` of a stage keeps its documents."""
    return folder / "documents" / f"{rank:05d}.jsonl.zst"
