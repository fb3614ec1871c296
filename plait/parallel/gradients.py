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
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = local(parameter.grad)
            wide = torch.promote_types(grad.dtype, torch.float32)
            total += grad.to(wide).square().sum().double() / n_copies(placement_of(table, name), mesh)
    dist.all_reduce(total)
    return total.sqrt()


def clip_gradients(model: nn.Module, mesh: Mesh, table: dict[str, Placement], max_norm: float) -> Tensor:
    """Scale all gradients so that their norm is at most max_norm; returns the norm before. Mutates the gradients."""
    norm = gradient_norm(model, mesh, table)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            local(parameter.grad).mul_(scale.to(parameter.grad.dtype))
    return norm


def clip_plain_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """`clip_gradients` on one process. Mutates the gradients.

    A factor of each gradient's own type: with another, all are multiplied one by one, and three times slower.
    """
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for dtype in {grad.dtype for grad in grads}:
        torch._foreach_mul_([grad for grad in grads if grad.dtype == dtype], scale.to(dtype))
    return norm
