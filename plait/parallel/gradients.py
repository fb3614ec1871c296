"""Gradients over several meshes at once: what FSDP does not sum, and one norm of it all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from plait.parallel.collectives import Group
from plait.parallel.mesh import Mesh
from plait.parallel.placement import Placement, placement_of


def local(tensor: Tensor) -> Tensor:
    """This process's share, as a plain tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def finish_gradients(model: nn.Module, mesh: Mesh, table: dict[str, Placement]) -> None:
    """Sum the gradients that FSDP left alone: of unsharded parameters over all rows, and over tp of those that saw a
    part of the tokens or of the work. Call it once, after the last backward pass of a step. Mutates the gradients.
    """
    named = [(placement_of(table, name), local(p.grad)) for name, p in model.named_parameters() if p.grad is not None]
    _sum_together((grad for place, grad in named if not place.sharded), mesh.rows_group)
    if mesh.config.tp > 1:
        _sum_together((grad for place, grad in named if place.partial), mesh.tp_group)


def _sum_together(tensors: Iterable[Tensor], group: Group) -> None:
    """One all-reduce a dtype for all of them, in place."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for same in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.all_reduce(flat, group=group)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


def n_copies(place: Placement, mesh: Mesh) -> int:
    """How many processes hold the same element of a tensor."""
    if place.is_expert:
        return mesh.config.dp_replicate
    over_rows = mesh.config.dp_replicate * (1 if place.sharded else mesh.config.fsdp)
    return over_rows * (mesh.config.tp if place.tp_dim is None else 1)


def gradient_norm(model: nn.Module, mesh: Mesh, table: dict[str, Placement]) -> Tensor:
    """The norm of the whole gradient, fp64, the same on every process: local squares over the number of copies, summed
    over all. Axes of any kind need no rule of their own.
    """
    by_copies: dict[int, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            by_copies.setdefault(n_copies(placement_of(table, name), mesh), []).append(local(parameter.grad))
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for copies, grads in by_copies.items():
        total += _sum_of_squares(grads) / copies
    dist.all_reduce(total)
    return total.sqrt()


def plain_gradient_norm(model: nn.Module) -> Tensor:
    """`gradient_norm` on one process."""
    return _sum_of_squares([p.grad for p in model.parameters() if p.grad is not None]).sqrt()


def _sum_of_squares(tensors: list[Tensor]) -> Tensor:
    """fp64, by one read: each tensor's own sum in fp32 or wider."""
    sums = []
    for dtype in {tensor.dtype for tensor in tensors}:
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        norms = torch._foreach_norm(same, 2, dtype=torch.promote_types(dtype, torch.float32))
        sums.append(torch.stack(norms).double().square().sum())
    return torch.stack(sums).sum()
