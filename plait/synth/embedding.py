"""Texts by meaning, offline: latent semantic analysis of hashed words, so that texts which share no word can be alike.

A stand-in for a neural embedder that needs no download: term weights (1 + log tf) · idf over hashed words, reduced to
the strongest `size` directions of the texts at hand by a randomized singular value decomposition (Halko et al. 2011).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from zlib import crc32

import numpy as np

_WORD = re.compile(r"\w+")
_BUCKETS = 1 << 15
_SPARE, _ROUNDS = 16, 2  # columns and power iterations beyond the plain sketch, for accuracy


class Embedding:
    """Cosine similarity of texts in the latent space of `texts`; same interface as `BM25`."""

    def __init__(self, texts: Sequence[str], *, size: int = 96) -> None:
        counts = [_counts(text) for text in texts or [""]]
        holders = np.zeros(_BUCKETS)
        for count in counts:
            holders[list(count)] += 1
        self._idf = np.log((1 + len(texts)) / (1 + holders)) + 1
        rows = [self._weights(count) for count in counts]
        self._directions = _strongest(rows, size)  # [_BUCKETS, size]
        self._vectors = np.stack([self._project(row) for row in rows])[: len(texts)]

    def most_similar(self, query: str, n: int) -> list[int]:
        """Indices of the `n` nearest texts, best first."""
        scores = self._vectors @ self._project(self._weights(_counts(query)))
        return np.argsort(-scores, kind="stable")[:n].tolist()

    def _weights(self, count: Counter[int]) -> tuple[np.ndarray, np.ndarray]:
        """Buckets and their weights, of length 1 in all."""
        buckets = np.fromiter(count, dtype=np.int64, count=len(count))
        values = (1 + np.log(np.fromiter(count.values(), dtype=np.float64, count=len(count)))) * self._idf[buckets]
        return buckets, values / (np.linalg.norm(values) or 1.0)

    def _project(self, row: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        buckets, values = row
        vector = values @ self._directions[buckets]
        return vector / (np.linalg.norm(vector) or 1.0)


def _counts(text: str) -> Counter[int]:
    """Words as bucket numbers; crc32, since Python's own hash differs from process to process."""
    return Counter(crc32(word.encode()) % _BUCKETS for word in _WORD.findall(text.casefold()))


def _strongest(rows: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> np.ndarray:
    """Right singular vectors [_BUCKETS, size] of the sparse matrix with these rows."""

    def times(right: np.ndarray) -> np.ndarray:
        return np.stack([values @ right[buckets] for buckets, values in rows])

    def transposed_times(left: np.ndarray) -> np.ndarray:
        total = np.zeros((_BUCKETS, left.shape[1]))
        for (buckets, values), vector in zip(rows, left, strict=True):
            total[buckets] += values[:, None] * vector
        return total

    width = min(size + _SPARE, len(rows))
    basis = np.random.default_rng(0).standard_normal((_BUCKETS, width))
    for _ in range(_ROUNDS):
        basis, _ = np.linalg.qr(transposed_times(times(basis)))
    rotation, _, _ = np.linalg.svd(transposed_times(times(basis)).T @ basis)
    return basis @ rotation[:, : min(size, width)]
