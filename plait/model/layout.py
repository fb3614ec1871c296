"""Which token belongs to which sequence, and what the state already holds of it.

The network runs on a flat list of real tokens. A `Layout` says how that list is cut into sequences and how it is taken
from (and put back into) `token_ids [batch, seq]`: padding never reaches a layer, packed documents and mixed serving
batches are the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Mode = Literal["fresh", "resume", "decode"]


class Carry(Protocol):
    """What a segment is given of its sequence's tokens that lie before the cut, on other processes (training only).

    The model knows the arithmetic, whoever cuts the sequences (`plait.parallel.context`) knows where the rest lies. All
    results are differentiable, also for the other processes' share.
    """

    def columns(self, x: Tensor, d_conv: int) -> Tensor:
        """x [tokens, channels] -> [n_segments, channels, d_conv - 1], the inputs before each segment; zeros where it
        starts its sequence.
        """
        ...

    def states(self, ended: Tensor, decay: Tensor) -> Tensor:
        """Each segment's end when begun from zero, and what it leaves of the state it begins with, both [n_segments,
        d_inner, d_state] -> the states they begin with, of the same shape.
        """
        ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `ops.attention.attention`, with keys and values that lie elsewhere too."""
        ...


class Exports(NamedTuple):
    """States wanted from inside segments: what a prefix cache keeps of a prompt that goes on."""

    at: Tensor  # [n_segments - n_decode] int32, after so many of its tokens; its length where nothing is wanted
    segments: Tensor  # [n] int64, those that want one, counted from the first that doesn't decode
    slots: Tensor  # [n] int64, where it goes: none of the slots that segments run on


@dataclass(frozen=True)
class Segment:
    """A run of consecutive tokens of one sequence in one call.

    `mode` is always said and never inferred from counts: a *fresh* segment starts its sequence (whatever its slot held
    before is ignored), a *resume* segment continues one with any number of tokens, a *decode* segment continues one
    with a single token.
    """

    start: int  # of its first token in token_ids.flatten()
    length: int
    mode: Mode = "fresh"
    slot: int = -1  # where the recurrent state lies
    context_len: int = 0  # tokens of this sequence that the state already holds
    pages: tuple[int, ...] = ()  # KV pages in order, enough for context_len + length tokens

    def __post_init__(self) -> None:
        if self.mode not in ("fresh", "resume", "decode"):
            raise ValueError(f"mode={self.mode!r} must be 'fresh', 'resume' or 'decode'")
        if self.length < 1:
            raise ValueError(f"length={self.length}: a segment has at least one token")
        if self.mode == "decode" and self.length != 1:
            raise ValueError(f"length={self.length}: a decode segment has exactly one token; use 'resume' for more")
        if self.mode == "fresh" and self.context_len:
            raise ValueError(f"context_len={self.context_len}: a fresh segment has no context; use 'resume'")
        if self.mode != "fresh" and self.context_len < 1:
            raise ValueError(f"context_len={self.context_len}: a {self.mode} segment continues at least one token")
        if self.mode != "fresh" and self.slot < 0:
            raise ValueError(f"slot={self.slot}: a {self.mode} segment needs the slot of its state")


@dataclass(frozen=True, eq=False)
class Layout:
    """The segments of one call, decode segments first, as the tensors that ops read. Build one with the class methods.

    Everything below runs over the flat tokens: segment i is tokens cu_seqlens[i] to cu_seqlens[i + 1].
    """

    batch: int
    seq: int
    segments: tuple[Segment, ...]  # none if the layout was made `flat`
    n_tokens: int
    n_decode: int  # decode segments; they are the first, so also the number of leading decode tokens
    token_index: (
        Tensor | None
    )  # [tokens] where each flat token lies in token_ids.flatten(); None: all of them, in order
    cu_seqlens: Tensor  # [n_segments + 1] int32
    slots: Tensor  # [n_segments] int64
    fresh: Tensor  # [n_segments] bool
    context_lens: Tensor  # [n_segments] int32
    page_table: Tensor  # [n_segments, max_pages] int32, padded with page 0
    carry: Carry | None = None  # where sequences are cut over processes
    exports: Exports | None = None
    lengths: tuple[list[int], list[int]] | None = None  # cu_seqlens and context_lens on the host, of a `flat` one

    @classmethod
    def of(cls, segments: Sequence[Segment], batch: int, seq: int, device: torch.device | str = "cpu") -> Layout:
        """Any set of segments that do not overlap; tokens in none of them are padding."""
        if not segments:
            raise ValueError("a layout needs at least one segment")
        ordered = tuple(sorted(segments, key=lambda s: (s.mode != "decode", s.start)))
        _check(ordered, batch * seq)
        pieces = [torch.arange(s.start, s.start + s.length) for s in ordered]
        token_index = torch.cat(pieces)
        in_order = len(token_index) == batch * seq and bool((token_index == torch.arange(batch * seq)).all())
        lengths = torch.tensor([0] + [s.length for s in ordered])
        max_pages = max(len(s.pages) for s in ordered)
        table = [list(s.pages) + [0] * (max_pages - len(s.pages)) for s in ordered]
        return cls(
            batch=batch,
            seq=seq,
            segments=ordered,
            n_tokens=len(token_index),
            n_decode=sum(s.mode == "decode" for s in ordered),
            token_index=None if in_order else token_index.to(device),
            cu_seqlens=lengths.cumsum(0).to(torch.int32).to(device),
            slots=torch.tensor([s.slot for s in ordered], device=device),
            fresh=torch.tensor([s.mode == "fresh" for s in ordered], device=device),
            context_lens=torch.tensor([s.context_len for s in ordered], dtype=torch.int32, device=device),
            page_table=torch.tensor(table, dtype=torch.int32, device=device),
        )

    @classmethod
    def flat(
        cls,
        *,
        n_tokens: int,
        n_decode: int,
        cu_seqlens: Tensor,
        slots: Tensor,
        fresh: Tensor,
        context_lens: Tensor,
        page_table: Tensor,
        exports: Exports | None = None,
        lengths: tuple[list[int], list[int]] | None = None,
    ) -> Layout:
        """For token_ids [1, n_tokens] without padding, from tensors as this class has them. They are neither copied nor
        looked at: who makes them has put decode segments first and checked slots and pages. lengths: cu_seqlens and
        context_lens again, on the host, so that long chunks needn't wait for the device.
        """
        return cls(
            batch=1,
            seq=n_tokens,
            segments=(),
            n_tokens=n_tokens,
            n_decode=n_decode,
            token_index=None,
            cu_seqlens=cu_seqlens,
            slots=slots,
            fresh=fresh,
            context_lens=context_lens,
            page_table=page_table,
            exports=exports,
            lengths=lengths,
        )

    @classmethod
    def dense(cls, batch: int, seq: int, device: torch.device | str = "cpu") -> Layout:
        """Every row is one whole sequence."""
        return cls.of([Segment(row * seq, seq) for row in range(batch)], batch, seq, device)

    @classmethod
    def padded(cls, mask: Tensor) -> Layout:
        """Every row is one sequence, padded on either side. mask [batch, seq] is nonzero at real tokens, which must be
        contiguous; a row of padding alone is no sequence.
        """
        if mask.dim() != 2:
            raise ValueError(f"mask has shape {list(mask.shape)}; it must be [batch, seq]")
        batch, seq = mask.shape
        segments = []
        for row, real in enumerate((mask != 0).tolist()):
            length = sum(real)
            first = real.index(True) if length else 0
            if not all(real[first : first + length]):
                raise ValueError(f"attention mask of row {row} has holes; real tokens must be contiguous")
            if length:
                segments.append(Segment(row * seq + first, length))
        return cls.of(segments, batch, seq, mask.device)

    @classmethod
    def packed(cls, lengths: Sequence[Sequence[int]], seq: int, device: torch.device | str = "cpu") -> Layout:
        """Row r holds documents of lengths[r], one after another; what is left of the row is padding."""
        segments = []
        for row, row_lengths in enumerate(lengths):
            start = row * seq
            for length in row_lengths:
                segments.append(Segment(start, length))
                start += length
            if start > (row + 1) * seq:
                raise ValueError(f"row {row}: documents of {sum(row_lengths)} tokens do not fit in seq={seq}")
        return cls.of(segments, len(lengths), seq, device)

    @property
    def n_segments(self) -> int:
        return self.slots.shape[0]

    @cached_property
    def bounds(self) -> list[int] | None:
        """cu_seqlens on the host, if the layout was made from segments."""
        return [0, *accumulate(s.length for s in self.segments)] if self.segments else None

    @cached_property
    def on_host(self) -> tuple[list[int], list[int]] | None:
        """cu_seqlens and context_lens on the host, if they are known there."""
        return (self.bounds, [s.context_len for s in self.segments]) if self.bounds else self.lengths

    @cached_property
    def prefill_cu_seqlens(self) -> Tensor:
        """Bounds of the segments that are not decode, counted from the first of their tokens."""
        return self.cu_seqlens[self.n_decode :] - self.n_decode if self.n_decode else self.cu_seqlens

    @cached_property
    def last_tokens(self) -> Tensor:
        """[n_segments] the flat index of each segment's last token."""
        return self.cu_seqlens[1:].long() - 1

    def take(self, x: Tensor) -> Tensor:
        """[batch, seq, ...] -> [tokens, ...], padding left out."""
        if x.shape[:2] != (self.batch, self.seq):
            raise ValueError(f"the layout is of batch={self.batch}, seq={self.seq}; given {tuple(x.shape[:2])}")
        flat = x.flatten(0, 1)
        return flat if self.token_index is None else flat[self.token_index]

    def put_back(self, flat: Tensor) -> Tensor:
        """[tokens, ...] -> [batch, seq, ...], zero at padding."""
        if flat.shape[0] != self.n_tokens:
            raise ValueError(f"the layout has {self.n_tokens} tokens; given {flat.shape[0]}")
        if self.token_index is None:
            return flat.unflatten(0, (self.batch, self.seq))
        out = flat.new_zeros(self.batch * self.seq, *flat.shape[1:])
        return out.index_copy(0, self.token_index, flat).unflatten(0, (self.batch, self.seq))


def _check(segments: tuple[Segment, ...], n_positions: int) -> None:
    end = 0
    for s in sorted(segments, key=lambda s: s.start):
        if s.start < end or s.start + s.length > n_positions:
            raise ValueError(
                f"segment of tokens {s.start} to {s.start + s.length} overlaps another, "
                f"or lies outside the {n_positions} given"
            )
        end = s.start + s.length
    slots = [s.slot for s in segments if s.slot >= 0]
    if len(set(slots)) != len(slots):
        raise ValueError(f"slots {slots}: two segments of one call can't share a state slot")
