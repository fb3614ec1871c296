"""RULER's scores: share of references found, effective length, weighted averages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

N_DEPTHS = 10  # rows of the map of needles by depth
EFFECTIVE_SCORE = 85.6  # Llama-2-7B-chat at 4K: RULER's bar for a length a model really handles

_CONTROL = re.compile("[\x00-\x1f]")


def clean(output: str) -> str:
    """What RULER compares: control characters are line ends, white space at the ends is gone."""
    return _CONTROL.sub("\n", output.strip()).strip()


def share_found(output: str, references: Sequence[str]) -> float:
    """`all`: which share of the references occurs, in any letter case (needles, variables, words)."""
    text = clean(output).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def any_found(output: str, references: Sequence[str]) -> float:
    """`part`: whether any reference occurs (question answering)."""
    text = clean(output).lower()
    return float(any(reference.lower() in text for reference in references))


def effective_length(scores: Mapping[int, float]) -> int | None:
    """The largest tested length with a score (0..100) of 85.6; scores are rounded to one decimal, as published."""
    return max((length for length, score in scores.items() if round(score, 1) >= EFFECTIVE_SCORE), default=None)


def weighted_averages(scores: Mapping[int, float]) -> tuple[float, float]:
    """wAvg(inc), wAvg(dec): weights 1..n that grow, or shrink, with length."""
    ordered = [scores[length] for length in sorted(scores)]
    weights = range(1, len(ordered) + 1)
    total = sum(weights)
    growing = sum(w * s for w, s in zip(weights, ordered, strict=True)) / total
    return growing, sum(w * s for w, s in zip(reversed(weights), ordered, strict=True)) / total


def as_length(name: int) -> str:
    """262144 -> 256K."""
    return f"{name // 1024}K" if name % 1024 == 0 else str(name)
