"""Rows of token ids, in an order that is a pure function of (seed, index): there is no loader state to save.

Training reads an endless stream: epoch 0's documents in an order drawn from (seed, 0), then epoch 1's in one drawn
from (seed, 1), and so on, end to end. Row i is the window [i * seq, (i + 1) * seq) of that stream, batch k the rows
k * batch .. (k + 1) * batch - 1. A resumed run asks for the next index; a run on more processes slices the same
batches. Evaluation reads the documents once, as they are stored. Where shards have a loss mask (`plait synth mix`),
tokens that aren't to be learned are no labels.

A `Mixture` of weighted sources is read row by row: which source row i is of, and which of that source's rows it is,
follows from the weights and i alone (mixture.py). With planned packing a source's rows are those of planned.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plait.data.mixture import Mixture, Part, place_in_mixture
from plait.data.planned import PlannedRows
from plait.data.shards import TokenShards

IGNORE = -100  # label of a position that has no next token in its document


@dataclass(frozen=True)
class Batch:
    """`token_ids`, `labels`: int64 [rows, seq], a label being the next token of the same document, or IGNORE where that
    token isn't to be learned.

    `segment_lengths`: for each row the lengths of its pieces of documents in order, summing to seq. Attention,
    convolution and scan start afresh at each piece. `np.concatenate(segment_lengths)` describes the flattened batch.
    """

    token_ids: np.ndarray
    labels: np.ndarray
    segment_lengths: tuple[np.ndarray, ...]


class Loader:
    """Training batches over shuffled documents, of one shards folder end to end or of a `Mixture`.

    Random access costs O(log n_documents) plus the tokens read. The order of an epoch (16 bytes a document) is computed
    at its first use, O(n log n); two are kept, so that a batch may span an epoch's end. Planned packing holds the plan
    of a few million tokens instead, whatever the size of the shards.
    """

    def __init__(self, data: TokenShards | Mixture, *, seq: int, batch: int, seed: int) -> None:
        _check_shape(seq, batch)
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        self.seq = seq
        self.n_rows = batch
        if isinstance(data, Mixture):
            self._weights = [part.weight for part in data.parts]
            self._sources = [_source(data, k, part, seq, seed) for k, part in enumerate(data.parts)]
        else:
            self._sources = []
            self.stream = ShuffledStream(data, seed)

    def batch(self, index: int, rank: int = 0, world: int = 1) -> Batch:
        """Batch `index`, or the rows of it for process `rank` of `world`: in rank order these make the whole batch."""
        if index < 0:
            raise ValueError(f"index={index} must not be negative")
        first, n_rows = _rows_of_rank(index, self.n_rows, rank, world)
        if not self._sources:
            return _stream_rows(self.stream, first, n_rows, self.seq)
        return _joined([self._mixed_row(k) for k in range(first, first + n_rows)])

    def _mixed_row(self, index: int) -> Batch:
        number, place = place_in_mixture(self._weights, index)
        source = self._sources[number]
        if isinstance(source, ShuffledStream):
            return _stream_rows(source, place, 1, self.seq)
        tokens, labels, lengths = source.row(place)
        labels[labels < 0] = IGNORE
        return Batch(tokens[None], labels[None], (lengths,))

    def n_windows(self, epochs: int = 1) -> int:
        """Rows needed for every token to have been an input in each of the first `epochs` epochs."""
        return -(-epochs * self.stream.tokens_per_epoch // self.seq)


def _source(mixture: Mixture, number: int, part: Part, seq: int, seed: int) -> ShuffledStream | PlannedRows:
    stage = f"{mixture.stage}/{number}"
    if mixture.packing == "stream":
        return ShuffledStream(part.shards, seed, stage)
    least, most = part.min_tokens, part.max_tokens
    return PlannedRows(part.shards, seq=seq, seed=seed, stage=stage, min_tokens=least, max_tokens=most)


def _stream_rows(stream: ShuffledStream, first: int, n_rows: int, seq: int) -> Batch:
    start, stop = first * seq, (first + n_rows) * seq
    tokens, starts = stream.read(start, stop + 1)
    batch = _pack(tokens, starts, seq)
    is_learned = stream.read_mask(start + 1, stop + 1)  # of the labels
    if is_learned is not None:
        batch.labels.reshape(-1)[is_learned == 0] = IGNORE
    return batch


def _joined(rows: list[Batch]) -> Batch:
    return Batch(
        np.concatenate([row.token_ids for row in rows]),
        np.concatenate([row.labels for row in rows]),
        tuple(lengths for row in rows for lengths in row.segment_lengths),
    )


class ShuffledStream:
    """An endless stream of documents, permuted anew in every epoch."""

    def __init__(self, shards: TokenShards, seed: int, stage: str = "") -> None:
        self.shards = shards
        self._entropy = [seed, zlib.crc32(stage.encode())] if stage else [seed]
        self.tokens_per_epoch = shards.n_tokens
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [start, stop) of the stream, and where in them its pieces of documents begin: at 0 and at each bos."""
        tokens = np.empty(stop - start, dtype=self.shards.metadata.dtype)
        starts = []
        filled = 0
        for begin, size in self._pieces(start, stop):
            starts.append(filled)
            tokens[filled : filled + size] = self.shards.read(begin, begin + size)
            filled += size
        return tokens, np.array(starts, dtype=np.int64)

    def read_mask(self, start: int, stop: int) -> np.ndarray | None:
        """For tokens [start, stop) of the stream 1 where they are to be learned, uint8; None where all are."""
        mask = self.shards.loss_mask
        if mask is None:
            return None
        return np.concatenate([mask[begin : begin + size] for begin, size in self._pieces(start, stop)])

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The pieces of documents that make up [start, stop): where in the shards, and how many tokens."""
        while start < stop:
            epoch, position = divmod(start, self.tokens_per_epoch)
            order, ends = self._order(epoch)
            first, last = np.searchsorted(ends, [position, position + stop - start - 1], side="right")
            documents = order[first : last + 1]  # an epoch's end cuts this short
            begins = self.shards.offsets[documents]
            sizes = self.shards.offsets[documents + 1] - begins
            skip = position - int(ends[first] - sizes[0])  # tokens of the first document that lie before `position`
            for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
                taken = min(size - skip, stop - start)
                yield begin + skip, taken
                start += taken
                skip = 0

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Document ids as epoch `epoch` takes them, and where each ends in the epoch: int64 [n_documents] both."""
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            order = epoch_order(self._entropy, epoch, self.shards.n_documents)
            self._orders[epoch] = order, np.cumsum(np.diff(self.shards.offsets)[order])
        return self._orders[epoch]


def epoch_order(seed: int | list[int], epoch: int, n_documents: int) -> np.ndarray:
    """A permutation of the documents, fixed by (seed, epoch) for ever; a seed may be several numbers.

    Sorts raw PCG64 output: NumPy promises that stream for all its versions, and `Generator.permutation` not.
    """
    return np.argsort(
        np.random.PCG64([*(seed if isinstance(seed, list) else [seed]), epoch]).random_raw(n_documents), kind="stable"
    )


def evaluation_batches(shards: TokenShards, *, seq: int, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """All documents once, in stored order: every token but each document's first (bos) is a label exactly once.

    The rows are the same whatever `batch` and `world` are. What the last batch lacks is filled with eos, labels IGNORE,
    as a segment of its own in each row, so that all batches have one shape and all processes as many batches.
    """
    _check_shape(seq, batch)
    n_batches = -(-shards.n_tokens // (seq * batch))
    for index in range(n_batches):
        first, n_rows = _rows_of_rank(index, batch, rank, world)
        yield _evaluation_rows(shards, first * seq, n_rows, seq)


def _evaluation_rows(shards: TokenShards, start: int, n_rows: int, seq: int) -> Batch:
    tokens = np.full(n_rows * seq + 1, shards.metadata.eos_id, dtype=shards.metadata.dtype)
    begin, end = min(start, shards.n_tokens), min(start + len(tokens), shards.n_tokens)
    tokens[: end - begin] = shards.read(begin, end)
    first, last = np.searchsorted(shards.offsets, [start, start + len(tokens)])
    batch = _pack(tokens, shards.offsets[first:last] - start, seq)  # the last offset, n_tokens, begins the filling
    labels = batch.labels.reshape(-1)
    labels[end - begin :] = IGNORE
    if shards.loss_mask is not None:
        is_learned = shards.loss_mask[begin + 1 : end]
        labels[: len(is_learned)][is_learned == 0] = IGNORE
    return batch


def _pack(tokens: np.ndarray, piece_starts: np.ndarray, seq: int) -> Batch:
    """Rows from `tokens` [n_rows * seq + 1], the last a label only; pieces after the one at 0 begin with bos."""
    labels = tokens[1:].astype(np.int64)
    labels[piece_starts[piece_starts > 0] - 1] = IGNORE
    row_starts = np.arange(0, len(tokens), seq)  # and their end
    cuts = np.union1d(row_starts, piece_starts)
    lengths = np.split(np.diff(cuts), np.searchsorted(cuts, row_starts[1:-1]))
    return Batch(tokens[:-1].astype(np.int64).reshape(-1, seq), labels.reshape(-1, seq), tuple(lengths))


def _check_shape(seq: int, batch: int) -> None:
    if seq < 1 or batch < 1:
        raise ValueError(f"seq={seq} and batch={batch} must be at least 1")


def _rows_of_rank(index: int, batch: int, rank: int, world: int) -> tuple[int, int]:
    """(first row, number of rows) of batch `index` for one process."""
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} must be in 0..{world - 1}, world being {world}")
    if batch % world:
        raise ValueError(f"batch={batch} must be a multiple of world={world}, so that every process has as many rows")
    return index * batch + rank * (batch // world), batch // world
