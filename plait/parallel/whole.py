"""Shares of a tensor as what they are part of: a DTensor in one shape, whatever mesh it lies on. Checkpoints written
from one mesh are read on another through it.

A dim that holds several matrices in a row becomes two (gate and up: [2, d_ff]), so that every split is a plain one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor import Placement as TorchPlacement

from plait.parallel.gradients import local
from plait.parallel.mesh import Mesh
from plait.parallel.placement import Placement


def in_pairs(tensor: Tensor, place: Placement) -> Tensor:
    """A view in which the dim of two matrices is two dims; the tensor itself where there is none."""
    return tensor if place.pair_dim is None else tensor.unflatten(place.pair_dim, (2, -1))


def whole(tensor: Tensor, place: Placement, mesh: Mesh) -> DTensor:
    """A parameter, or anything of its shape (gradient, moment), as the DTensor of the whole. Shares its memory."""
    shape = list(tensor.shape)

    def on(dim: int | None) -> TorchPlacement:
        if dim is None:
            return Replicate()
        return Shard(dim if place.pair_dim is None or dim < place.pair_dim else dim + 1)

    if place.is_expert:
        grid, split_over, split_dim = mesh.expert, mesh.config.ep, place.ep_dim
    else:
        grid, split_over, split_dim = mesh.matrices, mesh.config.tp, place.tp_dim
    if split_dim is not None:
        shape[split_dim] *= split_over
    if place.pair_dim is not None:
        shape[place.pair_dim : place.pair_dim + 1] = [2, shape[place.pair_dim] // 2]
    on_fsdp = on(place.fsdp_dim if place.sharded else None)
    axes = [on_fsdp, on(split_dim)] if place.is_expert else [on(split_dim), on_fsdp]
    return _of(in_pairs(local(tensor), place), shape, grid, [Replicate(), *axes])


def gathered_whole_view(shares: DTensor) -> Tensor:
    """The whole of what `whole` gave, on every process; one axis after the other."""
    for axis in reversed(range(len(shares.placements))):
        placed = list(shares.placements)
        placed[axis] = Replicate()
        shares = shares.redistribute(placements=placed)
    return shares.to_local()


def gathered_whole(tensor: Tensor, place: Placement, mesh: Mesh, shape: torch.Size) -> Tensor:
    """The whole tensor, of `shape`, on every process."""
    return gathered_whole_view(whole(tensor, place, mesh)).reshape(shape)


def with_local(part: Tensor, like: Tensor) -> Tensor:
    """A process's share as a tensor of the kind `like` is: one of FSDP's DTensors, or plain."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _of(part: Tensor, shape: list[int], mesh: torch.distributed.DeviceMesh, placed: list[TorchPlacement]) -> DTensor:
    stride = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return DTensor.from_local(part, mesh, placed, run_check=False, shape=torch.Size(shape), stride=tuple(stride))
