"""Duplicates: exact by a hash of the words, near by MinHash with verification, boilerplate by paragraph (section 5.2).

Two documents are near duplicates if their sets of runs of five words overlap by the recipe's Jaccard similarity. A
signature holds the minimum of each of bands × rows hash functions over the set; the share of equal minima estimates
the similarity (standard deviation 0.04 at 125 functions). Bands only propose pairs. A document is dropped for one
that is kept, never by way of a third, so no chain of small steps removes what is different.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_WORD = re.compile(r"\w+")
_FEW = 12  # documents of one band bucket each is compared with: the nearest before it, and the first
_ROWS = 4096  # shingles hashed together, to stay in the cache


def word_hashes(text: str) -> np.ndarray:
    """uint64 [words]: a hash of each word without its case, the same in every process."""
    known: dict[str, int] = {}
    words = _WORD.findall(text.casefold())
    for word in words:
        if word not in known:
            data = word.encode("utf-8", "replace")
            known[word] = zlib.crc32(data) << 32 | zlib.adler32(data)
    return np.fromiter((known[word] for word in words), dtype=np.uint64, count=len(words))


def run_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """uint64 [words - n + 1]: a hash of each run of n words; a shorter text is one run. Wraps on purpose."""
    n = min(n, len(words))
    if n == 0:
        return np.zeros(0, dtype=np.uint64)
    hashes = np.zeros(len(words) - n + 1, dtype=np.uint64)
    for i in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[i : i + len(hashes)]
    return _mixed(hashes)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit out depends on every bit in."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def text_hash(words: np.ndarray) -> int:
    """One number for all the words in their order: equal for texts that differ in case, spaces and signs only."""
    place = np.arange(1, len(words) + 1, dtype=np.uint64)
    return int(
        _mixed(_mixed(words + place * np.uint64(0x9E3779B97F4A7C15)).sum(keepdims=True) + np.uint64(len(words)))[0]
    )


def signature(words: np.ndarray, shingle_words: int, n_hashes: int) -> np.ndarray:
    """uint32 [n_hashes]: the minima over the document's shingles."""
    shingles = np.unique(run_hashes(words, shingle_words))
    factors, offsets = _functions(n_hashes)
    lowest = np.full(n_hashes, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(shingles), _ROWS):
        hashed = (shingles[start : start + _ROWS, None] * factors + offsets) >> np.uint64(32)
        np.minimum(lowest, hashed.min(axis=0).astype(np.uint32), out=lowest)
    return lowest


def _functions(n_hashes: int) -> tuple[np.ndarray, np.ndarray]:
    """Multiply-shift hashing: odd factors and offsets, fixed for ever."""
    raw = np.random.PCG64(20240822).random_raw(2 * n_hashes)
    return raw[:n_hashes] | np.uint64(1), raw[n_hashes:]


@dataclass(frozen=True)
class Duplicate:
    """Document `index` repeats `kept`; `similarity` is an estimate unless it is exact."""

    index: int
    kept: int
    similarity: float
    is_exact: bool = False


def find_duplicates(
    text_hashes: np.ndarray, signatures: np.ndarray, *, bands: int, rows_per_band: int, similarity: float
) -> list[Duplicate]:
    """Whom to drop, in the order of `text_hashes` [documents] and `signatures` [documents, bands * rows_per_band]."""
    _, first, group = np.unique(text_hashes, return_index=True, return_inverse=True)
    original = first[group]
    copies = np.flatnonzero(original != np.arange(len(group))).tolist()
    found = {i: Duplicate(i, int(original[i]), 1.0, is_exact=True) for i in copies}
    single = np.sort(first)
    pairs = _candidates(signatures[single], bands, rows_per_band)
    for a, b in single[pairs].tolist():  # sorted by b, then a: everything about a is decided when b's turn comes
        if b not in found and a not in found:
            alike = float((signatures[a] == signatures[b]).mean())
            if alike >= similarity:
                found[b] = Duplicate(b, a, alike)
    final = {i: _at_the_end(found, d) for i, d in found.items()}
    return [final[i] for i in sorted(final)]


def _at_the_end(found: dict[int, Duplicate], duplicate: Duplicate) -> Duplicate:
    """An exact copy of a document that is itself dropped names the one that stays."""
    if duplicate.kept not in found:
        return duplicate
    there = found[duplicate.kept]
    return Duplicate(duplicate.index, there.kept, there.similarity)


def _candidates(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """int64 [pairs, 2], earlier document first: those that share a band."""
    n = len(signatures)
    keys: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    for band in range(bands):
        columns = signatures[:, band * rows : (band + 1) * rows].astype(np.uint64)
        hashes = np.zeros(n, dtype=np.uint64)
        for k in range(rows):
            hashes = _mixed(hashes * np.uint64(0x9E3779B97F4A7C15) + columns[:, k])
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        keys += [earlier * n + later for earlier, later in _near_in_bucket(order, ordered)]
    unique = np.unique(np.concatenate(keys))
    pairs = np.stack([unique // max(1, n), unique % max(1, n)], axis=1)
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]


def _near_in_bucket(order: np.ndarray, ordered: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for distance in range(1, _FEW + 1):
        same = ordered[distance:] == ordered[:-distance]
        if not same.any():
            return
        yield order[:-distance][same].astype(np.int64), order[distance:][same].astype(np.int64)
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    for early in range(_FEW):
        long = sizes > early + _FEW
        earlier = np.repeat(starts[long] + early, sizes[long] - early - 1)
        runs = zip(starts[long].tolist(), sizes[long].tolist(), strict=True)
        later = np.concatenate([np.zeros(0, np.int64), *(np.arange(s + early + 1, s + n) for s, n in runs)])
        yield order[earlier].astype(np.int64), order[later].astype(np.int64)


def paragraph_hashes(text: str, least_words: int) -> list[tuple[int, int, int]]:
    """(hash, start, end) of each paragraph of prose with so many words; code and tables are left alone."""
    found = []
    start = 0
    in_code = False
    for block in text.split("\n\n"):
        fences = block.count("```")
        if not in_code and not fences and not block.startswith("|") and block.count(" ") + 1 >= least_words:
            words = word_hashes(block)
            if len(words) >= least_words:
                found.append((text_hash(words), start, start + len(block)))
        in_code ^= bool(fences % 2)
        start += len(block) + 2
    return found
