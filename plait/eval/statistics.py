"""Means with bootstrap confidence intervals, and the paired difference of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

N_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean and the limits of its 95 % interval (percentile bootstrap)."""

    value: float
    low: float
    high: float
    n: int


def mean_of(values: Sequence[float], *, seed: int = 0) -> Estimate:
    return mean_of_groups({"": values}, seed=seed)


def mean_of_groups(groups: Mapping[str, Sequence[float]], *, seed: int = 0) -> Estimate:
    """The unweighted mean of the groups' means; samples are drawn anew within each group."""
    import numpy as np

    if not groups or not all(groups.values()):
        raise ValueError("no samples to take the mean of")
    generator = np.random.default_rng(seed)
    resampled = np.zeros(N_RESAMPLES)
    for values in groups.values():
        resampled += _resampled_means(values, generator)
    low, high = np.percentile(resampled / len(groups), [2.5, 97.5])
    value = sum(sum(values) / len(values) for values in groups.values()) / len(groups)
    return Estimate(value, float(low), float(high), sum(map(len, groups.values())))


def _resampled_means(values, generator):  # type: ignore[no-untyped-def]
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    means = np.empty(N_RESAMPLES)
    step = max(1, 4_000_000 // len(array))
    for start in range(0, N_RESAMPLES, step):
        n = min(step, N_RESAMPLES - start)
        means[start : start + n] = array[generator.integers(0, len(array), (n, len(array)))].mean(axis=1)
    return means


def weighted_mean_of_kinds(
    values: Sequence[float], kinds: Sequence[Sequence[bool]], weights: Sequence[float], *, seed: int = 0
) -> Estimate:
    """The weighted mean of the kinds' means. `kinds` [values, kinds]: a value may be of several; a kind without values
    counts for nothing. Values are drawn anew all together."""
    import numpy as np

    member, value = np.asarray(kinds, dtype=np.float64), np.asarray(values, dtype=np.float64)

    def mean(counts):  # type: ignore[no-untyped-def]
        """counts [..., values] -> [...]"""
        n = counts @ member
        of_kind = (counts @ (member * value[:, None])) / np.maximum(n, 1)
        weight = np.asarray(weights) * (n > 0)
        return (of_kind * weight).sum(-1) / weight.sum(-1)

    drawn = np.random.default_rng(seed).multinomial(len(value), [1 / len(value)] * len(value), N_RESAMPLES)
    low, high = np.percentile(mean(drawn), [2.5, 97.5])
    return Estimate(float(mean(np.ones(len(value)))), float(low), float(high), len(value))


def difference(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Estimate:
    """How much better `after` is, sample by sample: both are scores of the same samples in the same order."""
    return mean_of([b - a for a, b in zip(before, after, strict=True)], seed=seed)
