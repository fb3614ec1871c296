"""Training text that holds items of an evaluation set: found by runs of words, whatever case, signs and spaces are."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.pipeline.near_duplicates import run_hashes, word_hashes

_READ = (".json", ".jsonl", ".txt", ".csv", ".tsv")  # and the same with .gz


@dataclass(frozen=True)
class EvaluationIndex:
    """`hashes[n]`: sorted uint64 of the items' runs of n words; `owners[n]`: which set each is from."""

    names: tuple[str, ...]
    hashes: dict[int, np.ndarray]
    owners: dict[int, np.ndarray]
    n_items: int
    n_short: int  # items of too few words to be told from ordinary text: not looked for

    def hit(self, words: np.ndarray) -> str:
        """The name of a set that `words` (word_hashes of a document) holds an item of; empty if there is none."""
        for n, known in self.hashes.items():
            if len(words) < n:
                continue
            runs = run_hashes(words, n)
            places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
            found = np.flatnonzero(known[places] == runs)
            if len(found):
                return self.names[int(self.owners[n][places[found[0]]])]
        return ""


def index_evaluation_sets(paths: tuple[str, ...], *, n_words: int, least_words: int) -> EvaluationIndex:
    """Read the sets: every string in them is an item. Raises ValueError for a path without any."""
    names: list[str] = []
    runs: dict[int, list[np.ndarray]] = {}
    owners: dict[int, list[np.ndarray]] = {}
    n_items = n_short = 0
    for path in [file for given in paths for file in _files(Path(given))]:
        before = n_items
        for item in items_of(path):
            words = word_hashes(item)
            n_items += 1
            if len(words) < least_words:
                n_short += 1
                continue
            n = min(n_words, len(words))
            runs.setdefault(n, []).append(run_hashes(words, n))
            owners.setdefault(n, []).append(np.full(len(runs[n][-1]), len(names), dtype=np.int32))
        if n_items == before:
            raise ValueError(f"evaluation set {path} holds no text: give a {', '.join(_READ)} file or a folder of them")
        names.append(path.name)
    hashes = {}
    for n in runs:
        hashes[n], first = np.unique(np.concatenate(runs[n]), return_index=True)
        owners[n] = [np.concatenate(owners[n])[first]]
    return EvaluationIndex(tuple(names), hashes, {n: each[0] for n, each in owners.items()}, n_items, n_short)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"evaluation set {path} does not exist")
    found = sorted(file for file in path.rglob("*") if file.name.removesuffix(".gz").endswith(_READ))
    if not found:
        raise ValueError(f"evaluation set {path} holds no text: it has no {', '.join(_READ)} file")
    return found


def items_of(path: Path) -> Iterator[str]:
    """Every string of a JSON or JSONL file, every line of a text, in all such files of a folder."""
    if path.is_dir():
        for file in _files(path):
            yield from items_of(file)
        return
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".json":
        yield from _strings(json.loads(text))
    elif kind == ".jsonl":
        for line in text.splitlines():
            if line.strip():
                yield from _strings(json.loads(line))
    else:
        yield from (line for line in text.splitlines() if line.strip())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
