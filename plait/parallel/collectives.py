"""Collectives with gradients. Each names what it does forward and what that means backward.

Groups of one process cost nothing: the tensor is returned as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup

# torch 2.13 renamed the two
_all_gather_into: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_into: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gathered(x: Tensor, group: Group) -> Tensor:
    """Every process's x, one after another along the first dim. No gradient."""
    out = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    _all_gather_into(out, x.contiguous(), group=group)
    return out


def summed(x: Tensor, group: Group | None) -> Tensor:
    """The sum over the group (None: all processes), in a new tensor. No gradient."""
    out = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, group=group)
    return out


def _reduced_share(x: Tensor, group: Group) -> Tensor:
    out = x.new_empty(x.shape[0] // group.size(), *x.shape[1:])
    _reduce_scatter_into(out, x.contiguous(), group=group)
    return out


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return summed(grads[0], ctx.group), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _SumBothWays(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return summed(grads[0], ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return gathered(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _reduced_share(grads[0], ctx.group), None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _reduced_share(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return gathered(grads[0], ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grads[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _all_to_all(x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    out = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out


def copy_to(x: Tensor, group: Group) -> Tensor:
    """x, the same on every process, into a region where each computes another part: gradients are summed."""
    return x if group.size() == 1 else _Copy.apply(x, group)


def reduce_from(x: Tensor, group: Group) -> Tensor:
    """The sum of every process's part; what follows is the same everywhere, so the gradient passes as it is."""
    return x if group.size() == 1 else _Reduce.apply(x, group)


def sum_both_ways(x: Tensor, group: Group) -> Tensor:
    """The sum of every process's part, into a region where each computes another part again: gradients are summed
    too.
    """
    return x if group.size() == 1 else _SumBothWays.apply(x, group)


def gather(x: Tensor, group: Group) -> Tensor:
    """[n, ...] -> [n * processes, ...] along the first dim; the gradient is summed and each takes its share back."""
    return x if group.size() == 1 else _Gather.apply(x, group)


def reduce_scatter(x: Tensor, group: Group) -> Tensor:
    """[n * processes, ...] -> the own share [n, ...] of the sum; gradients are gathered. The first dim must divide."""
    return x if group.size() == 1 else _ReduceScatter.apply(x, group)


def exchange(x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    """Rows of x to each process (`sent` says how many, in rank order) for the rows that each sends here."""
    return x if group.size() == 1 else _Exchange.apply(x, sent, received, group)
