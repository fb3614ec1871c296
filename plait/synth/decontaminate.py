"""Records that share word n-grams with evaluation sets are found, dropped and reported."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.synth.funnel import Stage
from plait.synth.record import Record, read_jsonl

N_GRAM = 13  # words; the length GPT-3 and most since compare
_WORD = re.compile(r"\w+")


class Decontaminator:
    """The n-grams of evaluation texts, as 64-bit hashes: 8 bytes of content each, whatever `n` is.

    An evaluation text shorter than `n` words, but of at least `shortest`, counts as one gram of its own length; still
    shorter ones would match everywhere and are counted in `too_short`.
    """

    def __init__(self, sets: Mapping[str, Iterable[str]], *, n: int = N_GRAM, shortest: int = 6) -> None:
        if not 1 <= shortest <= n:
            raise ValueError(f"n={n} must be at least shortest={shortest}, and that at least 1")
        self.n = n
        self.texts: Counter[str] = Counter()
        self.too_short: Counter[str] = Counter()
        self.found: Counter[str] = Counter()  # records dropped, by set
        self._sets = list(sets)
        self._grams: dict[int, int] = {}  # hash -> which set
        lengths = {n}
        for index, (name, texts) in enumerate(sets.items()):
            for text in texts:
                words = words_of(text)
                size = min(n, len(words))
                if size < shortest:
                    self.too_short[name] += 1
                    continue
                self.texts[name] += 1
                lengths.add(size)
                for gram in _hashes(words, size):
                    self._grams.setdefault(gram, index)
        self._lengths = sorted(lengths)

    def reject(self, record: Record) -> str | None:
        """The reason to drop a record, or None."""
        for text in texts_of([*record.messages, *record.documents]):
            words = words_of(text)
            for size in self._lengths:
                for start, gram in enumerate(_hashes(words, size)):
                    if gram in self._grams:
                        name = self._sets[self._grams[gram]]
                        self.found[name] += 1
                        return f"contaminated by {name}: {' '.join(words[start : start + size])!r}"
        return None

    def settings(self) -> dict[str, Any]:
        """What decides the output, JSON-like."""
        return {"n": self.n, "sets": {name: self.texts[name] + self.too_short[name] for name in self._sets}}

    def report(self) -> dict[str, Any]:
        """`found` counts since this object was made."""
        return self._report(self.found)

    def report_for(self, stages: Iterable[Stage]) -> dict[str, Any]:
        """The same for a run that may have been resumed: `found` is what its funnel counts."""
        return self._report(
            {name: sum(stage.dropped[f"contaminated by {name}"] for stage in stages) for name in self._sets}
        )

    def _report(self, found: Mapping[str, int]) -> dict[str, Any]:
        return {
            "n": self.n,
            "sets": [
                {"name": name, "texts": self.texts[name], "too_short": self.too_short[name], "found": found[name]}
                for name in self._sets
            ],
        }


def read_evaluation_set(path: Path) -> Iterator[str]:
    """Every text in a JSONL file, of any keys and depth, or the whole of a text file."""
    if path.suffix == ".jsonl":
        for line in read_jsonl(path):
            yield from texts_of(line)
    else:
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not text in UTF-8: {error}") from None


def texts_of(value: Any) -> Iterator[str]:
    """All strings in JSON-like `value`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _hashes(words: list[str], size: int) -> Iterator[int]:
    for start in range(len(words) - size + 1):
        gram = " ".join(words[start : start + size])
        yield int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "little")
