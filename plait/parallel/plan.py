"""All of it, applied to a finished model from outside, in the one order that works: tensor, expert, then FSDP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from plait.model.layout import Layout
from plait.model.network import LanguageModel
from plait.parallel.collectives import summed
from plait.parallel.context import cut_columns, cut_layout
from plait.parallel.cross_entropy import cross_entropy
from plait.parallel.expert import expert_parallel
from plait.parallel.fsdp import shard_parameters
from plait.parallel.gradients import finish_gradients, gradient_norm, plain_gradient_norm
from plait.parallel.mesh import Mesh
from plait.parallel.placement import Placement, placement_of, placements
from plait.parallel.tensor import TensorGroup, tensor_parallel


@dataclass(frozen=True, eq=False)
class Plan:
    """How one model is spread over the processes, and the few things a training step does differently for it.

    `mesh` None: one process, and every method does what a plain step would.
    """

    mesh: Mesh | None = None
    table: dict[str, Placement] = field(default_factory=dict)
    tp: TensorGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all: writes metrics and files."""
        return self.mesh is None or dist.get_rank() == 0

    @property
    def loader_place(self) -> tuple[int, int]:
        """(rank, number) of the share of a batch's rows that is read here."""
        return (0, 1) if self.mesh is None else (self.mesh.loader_rank, self.mesh.config.loader_ranks)

    def place(self, name: str) -> Placement:
        """Where a parameter's parts lie."""
        return placement_of(self.table, name)

    def cut(self, token_ids: Tensor, labels: Tensor, lengths: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Layout]:
        """Whole rows [rows, seq] and their documents' lengths -> the columns that this process computes."""
        if self.mesh is None or self.mesh.config.cp == 1:
            return token_ids, labels, Layout.packed(lengths, token_ids.shape[1], token_ids.device)
        group = self.mesh.cp_group
        layout = cut_layout(lengths, token_ids.shape[1], group, token_ids.device)
        return cut_columns(token_ids, group), cut_columns(labels, group), layout

    def next_token_sums(
        self, model: LanguageModel, hidden: Tensor, labels: Tensor, *, z_weight: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """`cross_entropy` of this process's columns, from `Output.hidden`; the same on every process of a tp group."""
        group = None
        if self.tp is not None:
            hidden, group = self.tp.enter(hidden), self.tp.group
        return cross_entropy(hidden, model.head_weight, labels, z_weight=z_weight, group=group)

    def release(self, model: LanguageModel) -> None:
        """After a forward pass without a backward one: parameters are shares again. Mutates the model."""
        if self.mesh is not None:
            cast(FSDPModule, model).reshard()

    def over_tokens(self, x: Tensor) -> Tensor:
        """The sum over processes whose tokens differ, of a number each computed from the tokens it holds between
        blocks. No gradient.
        """
        return x if self.mesh is None else summed(x, self.mesh.tokens_group)

    def over_rows(self, x: Tensor) -> Tensor:
        """The sum over processes whose columns differ (a tp group counts once). No gradient."""
        return x if self.mesh is None else summed(x, self.mesh.rows_group)

    def largest(self, x: Tensor) -> Tensor:
        """The elementwise maximum over all processes. No gradient."""
        if self.mesh is None:
            return x
        out = x.detach().clone()
        dist.all_reduce(out, op=dist.ReduceOp.MAX)
        return out

    def gradient_norm(self, model: LanguageModel) -> Tensor:
        """Complete the gradients after the last backward pass of a step; their norm over all processes. Mutates the
        gradients.
        """
        if self.mesh is None:
            return plain_gradient_norm(model)
        finish_gradients(model, self.mesh, self.table)
        return gradient_norm(model, self.mesh, self.table)


def split(model: LanguageModel, mesh: Mesh) -> LanguageModel:
    """Keep this process's slices over tp and ep, and join the slices' work. The model may lie on the meta device, to be
    filled through `Placement.share` afterwards: then it is never whole. Mutates and returns it.
    """
    config = mesh.config
    if config.tp > 1:
        tensor_parallel(model, mesh.tp_group, sequence=config.sequence, experts=config.ep == 1)
    if config.ep > 1:
        expert_parallel(model, mesh.ep_group)
    return model


def table_of(model: LanguageModel, mesh: Mesh) -> dict[str, Placement]:
    """Where the parts of every parameter lie."""
    config = mesh.config
    return placements(model.config, tp=config.tp, ep=config.ep, sequence=config.splits_tokens)


def parallelize(model: LanguageModel, mesh: Mesh, *, dtype: torch.dtype | None = None, is_split: bool = False) -> Plan:
    """Spread a finished model, the same on every process (or already `split`), over the mesh. `dtype`: of the products;
    None keeps the parameters'. Mutates the model; an optimizer is made afterwards.
    """
    if not is_split:
        split(model, mesh)
    table = table_of(model, mesh)
    shard_parameters(model, mesh, table, dtype=dtype)
    return Plan(mesh, table, TensorGroup(mesh.tp_group, mesh.config.sequence) if mesh.config.tp > 1 else None)
