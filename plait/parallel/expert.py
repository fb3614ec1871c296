"""Expert parallelism: experts lie on different processes, and tokens travel to the ones they chose (MegaBlocks'
dropless idea: no capacity, no padding, no token lost).

Per mixture: counts are exchanged, then rows sorted by expert; each process runs its experts on what arrived, and the
outputs go back the same way. Every process takes part in both exchanges whatever it sends, so an expert without tokens,
or a process without any, hangs nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from plait.model.feed_forward import MoE, combine
from plait.model.network import LanguageModel
from plait.parallel.collectives import Group, exchange, reduce_from
from plait.parallel.placement import placements
from plait.parallel.tensor import slice_parameters


def expert_parallel(model: LanguageModel, group: Group) -> LanguageModel:
    """Keep this process's n_experts / processes experts of every mixture. Mutates and returns the model.

    ValueError unless they divide evenly.
    """
    if model.config.n_experts % group.size():
        raise ValueError(f"ep={group.size()} must divide n_experts={model.config.n_experts}")
    table = {name: place for name, place in placements(model.config, ep=group.size()).items() if place.is_expert}
    slice_parameters(model, table, ep=(group.rank(), group.size()))
    for ffn in model.feed_forwards():
        if isinstance(ffn, MoE):
            ffn.dispatcher = ExchangedExperts(group, model.config.n_experts)
    return model


def deal_experts(model: LanguageModel, group: Group) -> LanguageModel:
    """Every mixture's experts are those of this process (`slice_part` with whole_experts), and it has every token. For
    inference beside `tensor_parallel` with experts=False. Mutates and returns the model.
    """
    for ffn in model.feed_forwards():
        if isinstance(ffn, MoE):
            ffn.dispatcher = DealtExperts(group)
    return model


@dataclass(frozen=True, eq=False)
class ExchangedExperts:
    """Each process of the group holds the next n_experts / processes experts (the Dispatcher of expert parallelism)."""

    group: Group
    n_experts: int

    def outputs(self, moe: MoE, x: Tensor, expert_ids: Tensor) -> Tensor:
        tokens, top_k = expert_ids.shape
        chosen, order = expert_ids.flatten().sort(stable=True)
        counts = torch.bincount(chosen, minlength=self.n_experts).view(self.group.size(), -1)
        arriving = torch.empty_like(counts)  # [processes, own experts]
        dist.all_to_all_single(arriving, counts, group=self.group)
        sent, received = torch.stack([counts.sum(1), arriving.sum(1)]).tolist()  # the one wait for the device
        rows = exchange(x[order // top_k], sent, received, self.group)
        y = exchange(_run(moe, rows, arriving), received, sent, self.group)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return y[back].view(tokens, top_k, x.shape[1])

    def combined(self, moe: MoE, x: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        return combine(self.outputs(moe, x, expert_ids), weights)


@dataclass(frozen=True, eq=False)
class DealtExperts:
    """Each process holds whole experts, the next n_experts / processes, and has every token, as under tensor
    parallelism: it runs its own, and the sum over the processes is the mixture. For inference: nothing travels but that
    sum, no work is done for others' choices, and on a GPU nothing waits for what was chosen, so a step can be a graph.
    """

    group: Group

    def outputs(self, moe: MoE, x: Tensor, expert_ids: Tensor) -> Tensor:
        raise NotImplementedError("experts that were dealt out have no unweighted outputs: this is for inference")

    def combined(self, moe: MoE, x: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        n_own = len(moe.down)
        share = moe.own_share(x, weights, expert_ids, self.group.rank() * n_own, self.group.size() * n_own)
        return reduce_from(share, self.group)


def _run(moe: MoE, rows: Tensor, arriving: Tensor) -> Tensor:
    """Every row through the expert it came for; `arriving` counts rows by sender and expert, the order they lie in."""
    n_own = arriving.shape[1]
    ids = torch.arange(n_own, device=rows.device).repeat(arriving.shape[0])
    ids = torch.repeat_interleave(ids, arriving.flatten(), output_size=len(rows))
    if len(rows) == 0:  # a row of zeros, so that weights and the tokens' senders get their gradients all the same
        zero = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        return moe.own_outputs(zero, ids.new_zeros(1, 1))[:0, 0]
    return moe.own_outputs(rows, ids[:, None])[:, 0]
