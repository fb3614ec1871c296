"""Planned packing: which pieces of which documents make up each row, so that few are cut and no row has a gap.

Rows end to end through a stream (`ShuffledStream`) cut a document at every row's end. Here whole rows of long documents
come first; what is left of them and all shorter documents go, longest first, each into the fullest row that it fits in;
only what fits nowhere is cut, to fill the gaps. Of n tokens ceil(n / seq) rows come out, whatever the lengths are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

Piece = tuple[int, int, int]  # (document's place in the given lengths, first token, tokens)


@dataclass(frozen=True)
class Packed:
    """Rows of pieces that sum to seq in each but perhaps the last one; `n_cuts`: pieces beyond one a document that no
    row's length forced.
    """

    rows: list[list[Piece]]
    n_cuts: int


def pack(lengths: np.ndarray, seq: int) -> Packed:
    """Plan rows of `seq` tokens for documents of `lengths` [documents], all at least 1. Every token is in one piece."""
    n_rows = -(-int(lengths.sum()) // seq)
    rows: list[list[Piece]] = []
    pieces: list[Piece] = []
    for document, length in enumerate(lengths.tolist()):
        whole = length // seq
        rows += [[(document, k * seq, seq)] for k in range(whole)]
        if length % seq:
            pieces.append((document, whole * seq, length % seq))
    room = n_rows - len(rows)
    opened, left_over = _best_fit(sorted(pieces, key=lambda piece: -piece[2]), seq, room)
    n_cuts = _fill(opened, left_over, seq, room)
    rows += opened
    return Packed(rows, n_cuts)


def _best_fit(pieces: list[Piece], seq: int, room: int) -> tuple[list[list[Piece]], list[Piece]]:
    """At the most `room` rows, and the pieces that found no place."""
    rows: list[list[Piece]] = []
    free: list[tuple[int, int]] = []  # (free tokens, row), sorted
    left_over = []
    for piece in pieces:
        size = piece[2]
        place = bisect_left(free, (size, 0))
        if place < len(free):
            left, row = free.pop(place)
        elif len(rows) < room:
            left, row = seq, len(rows)
            rows.append([])
        else:
            left_over.append(piece)
            continue
        rows[row].append(piece)
        if left > size:
            insort(free, (left - size, row))
    return rows, left_over


def _fill(rows: list[list[Piece]], pieces: list[Piece], seq: int, room: int) -> int:
    """Put `pieces` into what is free in `rows`, the largest gaps first, cutting them; returns the cuts."""
    rows += [[] for _ in range(room - len(rows))]
    gaps = sorted(((seq - sum(size for _, _, size in row), k) for k, row in enumerate(rows)), reverse=True)
    n_cuts = 0
    place, used = 0, 0
    for document, start, size in pieces:
        while size:
            gap, row = gaps[place]
            taken = min(gap - used, size)
            if taken:
                rows[row].append((document, start, taken))
            start, size, used = start + taken, size - taken, used + taken
            n_cuts += size > 0
            if used == gap:
                place, used = place + 1, 0
    return n_cuts
