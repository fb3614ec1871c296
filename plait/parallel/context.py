"""Context parallelism: each process holds a contiguous cut of every row, and sequences go on from one to the next.

A Mamba-1 segment is affine in the state it begins with, h_out = decay * h_in + ended, elementwise. So every process
scans from zero, all exchange (decay, ended), and each folds what lies on its left; d_inner * d_state numbers a row
cross, whatever the length. The convolution needs the d_conv - 1 inputs before the cut, attention the keys and values of
the whole row. Documents may begin and end anywhere: what a boundary cuts off has a decay of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from plait.model.layout import Layout
from plait.parallel.collectives import Group, gather, gathered


def cut_columns(x: Tensor, group: Group) -> Tensor:
    """[rows, seq] -> the columns [rows, seq / processes] that lie here."""
    return x.chunk(group.size(), dim=1)[group.rank()].contiguous()


def cut_layout(lengths: Sequence[Sequence[int]], seq: int, group: Group, device: torch.device | str = "cpu") -> Layout:
    """The layout of this process's columns of packed rows; lengths[r] are row r's documents, which fill it.

    ValueError for rows that aren't full, or don't divide evenly.
    """
    if seq % group.size():
        raise ValueError(f"cp={group.size()} must divide seq={seq}")
    if bad := [r for r, row in enumerate(lengths) if sum(row) != seq]:
        raise ValueError(f"row {bad[0]}: documents of {sum(lengths[bad[0]])} tokens must fill seq={seq} when it is cut")
    local = seq // group.size()
    begin = group.rank() * local
    pieces = [_pieces(row, begin, begin + local) for row in lengths]
    layout = Layout.packed([[p.length for p in row] for row in pieces], local, device)
    return replace(layout, carry=CutRows.of(pieces, local, group, device))


@dataclass(frozen=True)
class Piece:
    """A document's part in one process's columns of a row."""

    first: int  # column of the row where the document begins
    start: int  # column where the part begins
    length: int


def _pieces(lengths: Sequence[int], begin: int, end: int) -> list[Piece]:
    bounds = list(accumulate(lengths, initial=0))
    return [
        Piece(a, max(a, begin), min(b, end) - max(a, begin)) for a, b in pairwise(bounds) if max(a, begin) < min(b, end)
    ]


@dataclass(frozen=True, eq=False)
class CutRows:
    """What a process needs of the others for its cut of some rows (a model.layout.Carry)."""

    group: Group
    local: int  # columns of each row that lie here
    pieces: tuple[tuple[Piece, ...], ...]  # of each row
    masks: tuple[Tensor, ...]  # of each segment: shapes, no memory; selective recomputation can't make them on its way
    first: Tensor  # [rows] index of each row's first segment here
    last: Tensor  # [rows] of its last
    goes_on: Tensor  # [rows] whether the first began further left
    passes: Tensor  # [rows] whether that segment fills the whole cut, so that its state passes through
    tail: Tensor  # [rows] tokens here of the last segment

    @classmethod
    def of(cls, pieces: list[list[Piece]], local: int, group: Group, device: torch.device | str) -> CutRows:
        counts = torch.tensor([len(row) for row in pieces])
        ends = counts.cumsum(0)
        goes_on = torch.tensor([row[0].first < row[0].start for row in pieces])
        return cls(
            group,
            local,
            tuple(tuple(row) for row in pieces),
            tuple(causal_lower_right(p.length, p.start + p.length - p.first) for row in pieces for p in row),
            first=(ends - counts).to(device),
            last=(ends - 1).to(device),
            goes_on=goes_on.to(device),
            passes=(goes_on & (counts == 1)).to(device),
            tail=torch.tensor([row[-1].length for row in pieces], device=device),
        )

    @property
    def n_segments(self) -> int:
        return sum(map(len, self.pieces))

    def columns(self, x: Tensor, d_conv: int) -> Tensor:
        back = torch.arange(d_conv - 1, 0, -1, device=x.device)
        ends = x.unflatten(0, (-1, self.local))[:, self.local - (d_conv - 1) :]  # [rows, d_conv - 1, channels]
        ends = ends * (back <= self.tail[:, None])[:, :, None]
        left = gather(ends, self.group).unflatten(0, (self.group.size(), -1))[self.group.rank() - 1]
        return self._before(left.transpose(1, 2))

    def states(self, ended: Tensor, decay: Tensor) -> Tensor:
        left = _Fold.apply(ended[self.last], decay[self.first] * self.passes[:, None, None], self.group)
        return self._before(left)

    def _before(self, left: Tensor) -> Tensor:
        """[rows, ...] from the left -> [n_segments, ...]: zeros but for the segments that go on from there."""
        left = left * self.goes_on.view(-1, *[1] * (left.dim() - 1))
        return left.new_zeros(self.n_segments, *left.shape[1:]).index_copy(0, self.first, left)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keys and values of whole rows are gathered: with one attention layer in eight, and few KV heads, that is
        cheaper than passing them around in a ring.
        """
        rows = gather(torch.stack([k, v], 1), self.group).unflatten(0, (self.group.size(), -1, self.local))
        rows = rows.transpose(0, 1).flatten(1, 2)  # [rows, seq, 2, n_kv_heads, d_head]
        outputs, at, masks = [], 0, iter(self.masks)
        for row, pieces in zip(rows, self.pieces, strict=True):
            for piece in pieces:
                keys, values = row[piece.first : piece.start + piece.length].unbind(1)
                outputs.append(_attend(q[at : at + piece.length], keys, values, next(masks)))
                at += piece.length
        return torch.cat(outputs)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """A sequence's last queries [n, n_heads, d_head] over all its keys and values [total, n_kv_heads, d_head]."""
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)


def fold(ended: Tensor, decay: Tensor) -> Tensor:
    """[processes, rows, ...] both -> the states that each process's cut begins with, of the same shape."""
    states = [torch.zeros_like(ended[0])]
    for gained, kept in zip(ended[:-1], decay[:-1], strict=True):
        states.append(kept * states[-1] + gained)
    return torch.stack(states)


class _Fold(torch.autograd.Function):
    """The state that comes from the left. One exchange forward and one backward, on every process whatever it uses:
    were it left to autograd, the first process, which uses nothing, would not answer the others.
    """

    @staticmethod
    def forward(ctx: Any, ended: Tensor, decay: Tensor, group: Group) -> Tensor:
        both = gathered(torch.stack([ended, decay])[None], group)  # [processes, 2, rows, d_inner, d_state]
        ctx.save_for_backward(both)
        ctx.group = group
        return fold(*both.unbind(1))[group.rank()]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (both,) = ctx.saved_tensors
        wanted = gathered(grads[0][None], ctx.group)
        with torch.enable_grad():
            both = both.detach().requires_grad_()
            (grad,) = torch.autograd.grad(fold(*both.unbind(1)), both, wanted)
        return (*grad[ctx.group.rank()].unbind(0), None)
