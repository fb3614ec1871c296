"""Packed rows of shards of any size: memory is that of a group of documents, never of the whole.

The shards are seen as blocks of about two million tokens. An epoch takes the blocks in an order drawn from the seed, 16
at a time; the documents of such a group, from 16 places, are shuffled and packed together (`pack`). Which group row i
is in follows from the blocks' sizes alone, so any row can be asked for at any time.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from plait.data.packing import Piece, pack
from plait.data.shards import TokenShards

BLOCK_TOKENS = 1 << 21
GROUP_BLOCKS = 16
_KEPT_GROUPS = 4


@dataclass(frozen=True)
class _Group:
    documents: np.ndarray  # ids
    rows: list[list[Piece]]  # pieces by place in `documents`


class PlannedRows:
    """Rows of `seq` tokens over documents with between `min_tokens` and `max_tokens` (0: any number)."""

    def __init__(
        self, shards: TokenShards, *, seq: int, seed: int, stage: str = "", min_tokens: int = 0, max_tokens: int = 0,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:  # fmt: skip
        self.shards, self.seq = shards, seq
        self._seed = (seed, zlib.crc32(stage.encode()))
        self._lengths = (min_tokens, max_tokens)
        self._bounds, self._block_tokens = self._blocks(max(block_tokens, seq))
        if not self._block_tokens.sum():
            raise ValueError(f"{shards.path} has no document of {length_range(min_tokens, max_tokens)} tokens")
        self.n_tokens = int(self._block_tokens.sum())
        self._ends: list[int] = []  # rows in epochs 0, 0-1, 0-2, …
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids [seq], labels [seq] with -1 where there is none, lengths of the pieces."""
        epoch, place = self._place(index)
        order, ends = self._order(epoch)
        number = int(np.searchsorted(ends, place, side="right"))
        group = self._group(epoch, number, order)
        return self._tokens(group, group.rows[place - (int(ends[number - 1]) if number else 0)])

    def n_rows(self, epoch: int = 0) -> int:
        """Rows of one epoch: the last of each group may be padded, so epochs differ by a few."""
        return int(self._order(epoch)[1][-1])

    def _blocks(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the blocks in documents [blocks + 1], and the tokens of each that count [blocks]."""
        shards, (least, most) = self.shards, self._lengths
        starts = np.arange(0, shards.n_tokens, size, dtype=np.int64)
        bounds = np.unique(np.append(np.searchsorted(shards.offsets, starts), shards.n_documents))
        if not least and not most:
            return bounds, np.diff(shards.offsets[bounds])
        sums = [int(self._wanted(a, b)[1].sum()) for a, b in pairwise(bounds.tolist())]
        return bounds, np.array(sums, dtype=np.int64)

    def _wanted(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and lengths of the documents start..stop-1 that have the right length."""
        lengths = np.diff(self.shards.offsets[start : stop + 1])
        least, most = self._lengths
        fits = (lengths >= least) & (lengths <= (most or np.iinfo(np.int64).max))
        return np.flatnonzero(fits) + start, lengths[fits]

    def _place(self, index: int) -> tuple[int, int]:
        """Epoch of row `index`, and its place there."""
        while not self._ends or index >= self._ends[-1]:
            self._ends.append((self._ends[-1] if self._ends else 0) + self.n_rows(len(self._ends)))
        epoch = int(np.searchsorted(self._ends, index, side="right"))
        return epoch, index - (self._ends[epoch - 1] if epoch else 0)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's blocks in order, and where each group of them ends in rows."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.argsort(self._draw(len(self._block_tokens), epoch, -1), kind="stable")
            n_groups = -(-len(order) // GROUP_BLOCKS)
            tokens = np.add.reduceat(self._block_tokens[order], np.arange(n_groups) * GROUP_BLOCKS)
            self._epoch = epoch, order, np.cumsum(-(-tokens // self.seq))
        return self._epoch[1:]

    def _draw(self, n: int, epoch: int, group: int) -> np.ndarray:
        """n numbers fixed by seed, stage, epoch and group: NumPy promises this stream for all its versions."""
        return np.random.PCG64([*self._seed, epoch, group + 1]).random_raw(n)

    def _group(self, epoch: int, number: int, order: np.ndarray) -> _Group:
        key = (epoch, number)
        if key not in self._groups:
            while len(self._groups) >= _KEPT_GROUPS:
                self._groups.popitem(last=False)
            self._groups[key] = self._planned(epoch, number, order)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _planned(self, epoch: int, number: int, order: np.ndarray) -> _Group:
        blocks = order[number * GROUP_BLOCKS : (number + 1) * GROUP_BLOCKS].tolist()
        found = [self._wanted(int(self._bounds[k]), int(self._bounds[k + 1])) for k in blocks]
        ids, lengths = (np.concatenate(parts) for parts in zip(*found, strict=True))
        draws = self._draw(2 * len(ids) + 1, epoch, number)
        shuffled = np.argsort(draws[: len(ids)], kind="stable")
        packed = pack(lengths[shuffled], self.seq)
        n = len(packed.rows)
        row_order = np.argsort(self._draw(len(draws) + n, epoch, number)[len(draws) :], kind="stable")
        return _Group(ids[shuffled], [packed.rows[k] for k in row_order.tolist()])

    def _tokens(self, group: _Group, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        offsets, mask = self.shards.offsets, self.shards.loss_mask
        tokens = np.full(self.seq, self.shards.metadata.eos_id, dtype=np.int64)
        labels = np.full(self.seq, -1, dtype=np.int64)
        filled = 0
        sizes = []
        for place, start, size in pieces:
            document = group.documents[place]
            begin, end = int(offsets[document]) + start, int(offsets[document + 1])
            read = self.shards.read(begin, min(begin + size + 1, end))
            tokens[filled : filled + size] = read[:size]
            labels[filled : filled + len(read) - 1] = read[1:]
            if mask is not None:
                labels[filled : filled + len(read) - 1][mask[begin + 1 : begin + len(read)] == 0] = -1
            sizes.append(size)
            filled += size
        if filled < self.seq:
            sizes.append(self.seq - filled)  # filling, no labels
        return tokens, labels, np.array(sizes, dtype=np.int64)


def length_range(min_tokens: int, max_tokens: int) -> str:
    return f"{min_tokens:,} to {max_tokens:,}" if max_tokens else f"at least {min_tokens:,}"
