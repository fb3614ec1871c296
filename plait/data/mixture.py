"""Weighted sources as one: a row comes from one source, and of any number of rows each has its share, to a row.

    runs/corpus/shards/books:0.3,runs/corpus/shards/code:0.2,runs/corpus/shards/web@65536-:0.5

is three sources with their shares of the tokens; `@MIN-MAX` takes only documents of that many tokens (a length bucket).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal

from plait.data.shards import METADATA_FILE, ShardsMetadata, TokenShards, open_shards

Packing = Literal["stream", "planned"]
_PART = re.compile(r"(?P<path>.+?)(?:@(?P<least>\d*)-(?P<most>\d*))?(?::(?P<weight>[0-9.eE+-]+))?")


@dataclass(frozen=True)
class Part:
    """A source, its share, and the lengths of documents taken (0: any)."""

    shards: TokenShards
    weight: float = 1.0
    min_tokens: int = 0
    max_tokens: int = 0


@dataclass(frozen=True)
class Mixture:
    """What a Loader draws from. `stage` sets its order apart from other stages' with the same seed."""

    parts: tuple[Part, ...]
    packing: Packing = "planned"
    stage: str = ""

    def __post_init__(self) -> None:
        if not self.parts or any(not 0 < part.weight < float("inf") for part in self.parts):
            raise ValueError(f"weights {[part.weight for part in self.parts]} must be numbers greater than 0")
        first = self.parts[0].shards
        for part in self.parts:
            if part.shards.metadata.tokenizer_hash != first.metadata.tokenizer_hash:
                raise ValueError(f"{part.shards.path} and {first.path} are of different tokenizers: mix those of one")
        if self.packing not in ("stream", "planned"):
            raise ValueError(f"packing={self.packing!r} must be 'stream' or 'planned'")
        if self.packing == "stream" and any(part.min_tokens or part.max_tokens for part in self.parts):
            raise ValueError("documents of certain lengths (@MIN-MAX) need packing='planned'")

    @property
    def metadata(self) -> ShardsMetadata:
        """Of the first source: what all have in common is its tokenizer."""
        return self.parts[0].shards.metadata

    @property
    def path(self) -> Path:
        return self.parts[0].shards.path


def place_in_mixture(weights: Sequence[float], index: int) -> tuple[int, int]:
    """(source, which row of that source) of the mixture's row `index`.

    Among the first n rows each source has its share of n, give or take one for every source before it: row i goes to
    the first source if floor(i p + 1/2) steps up there, else the rest share the rows left over in the same way.
    """
    for source, (over, under) in enumerate(_shares(tuple(weights))):
        before, after = ((2 * i * over + under) // (2 * under) for i in (index, index + 1))
        if after > before:
            return source, before
        index -= before
    return len(weights) - 1, index


@cache
def _shares(weights: tuple[float, ...]) -> list[tuple[int, int]]:
    """For all sources but the last: its share of what the sources before it left, as a fraction."""
    left = [Fraction(weight).limit_denominator(1_000_000) for weight in weights]
    return [(left[k] / sum(left[k:])).as_integer_ratio() for k in range(len(left) - 1)]


def is_mixture(text: str) -> bool:
    """Whether `text` names shards folders with weights or lengths, and not one plain path."""
    if Path(text).exists() or text == "default":
        return False
    matched = [_PART.fullmatch(item) for item in text.split(",")]
    return all(m is not None and (Path(m["path"]) / METADATA_FILE).exists() for m in matched)


def open_mixture(
    text: str, *, packing: Packing = "planned", stage: str = "", long_tokens: int = 0, long_share: float = 0.0
) -> Mixture:
    """The mixture that `text` describes (see above; a plain shards folder is one of one source).

    `long_share` of the tokens then comes from documents of at least `long_tokens`, the rest from shorter ones, with the
    sources' weights in both. ValueError for a part that isn't a shards folder, or if there is no such document.
    """
    parts = tuple(_part(item) for item in text.split(","))
    if long_share or long_tokens:
        parts = _with_long_documents(parts, long_tokens, long_share)
    return Mixture(parts, packing, stage)


def _part(item: str) -> Part:
    matched = _PART.fullmatch(item)
    if matched is None or not (Path(matched["path"]) / METADATA_FILE).exists():
        raise ValueError(f"{item!r} must be a shards folder, FOLDER:WEIGHT or FOLDER@MIN-MAX:WEIGHT")
    try:
        weight = float(matched["weight"] or 1)
    except ValueError:
        raise ValueError(f"{item!r}: {matched['weight']!r} is not a number") from None
    return Part(open_shards(matched["path"]), weight, int(matched["least"] or 0), int(matched["most"] or 0))


def _with_long_documents(parts: tuple[Part, ...], long_tokens: int, long_share: float) -> tuple[Part, ...]:
    if not 0 < long_share < 1 or long_tokens < 2:
        raise ValueError(
            f"long_share={long_share} must be between 0 and 1 and long_tokens={long_tokens} at least 2: both or neither"
        )
    found: dict[bool, list[Part]] = {True: [], False: []}
    for part in parts:
        if part.min_tokens or part.max_tokens:
            raise ValueError("give long_share and long_tokens, or lengths (@MIN-MAX) in the mixture, not both")
        lengths = part.shards.offsets[1:] - part.shards.offsets[:-1]
        for is_long in (True, False):
            if ((lengths >= long_tokens) == is_long).any():
                found[is_long].append(part)
    if not found[True] or not found[False]:
        what = "at least" if not found[True] else "less than"
        raise ValueError(f"no document has {what} {long_tokens:,} tokens: change long_tokens, or the sources")
    made = []
    for is_long, share in ((True, long_share), (False, 1 - long_share)):
        total = sum(part.weight for part in found[is_long])
        least, most = (long_tokens, 0) if is_long else (0, long_tokens - 1)
        made += [Part(part.shards, share * part.weight / total, least, most) for part in found[is_long]]
    return tuple(made)
