"""What one pass over some rows costs: the next-token loss and everything added to it, the same on any mesh.

Each process computes its tokens' share of every mean (the denominators are global), so the shares add up to the loss of
one process that saw all rows, and so do the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.config import ModelConfig
from plait.data.loader import Batch, Loader
from plait.model.feed_forward import MoE
from plait.model.layout import Layout
from plait.model.losses import IGNORE, activation_loss, balance_loss, router_z_loss
from plait.model.network import LanguageModel
from plait.model.stats import LayerStats
from plait.parallel.gradients import local
from plait.parallel.plan import Plan
from plait.train.config import LossConfig, TrainConfig
from plait.train.graphed import Graphs
from plait.train.optimizer import AnyOptimizer


@dataclass(frozen=True)
class PassLoss:
    """`loss` is this process's share, to call backward on; `parts` are the whole passes' values, on every process."""

    loss: Tensor
    parts: dict[str, Tensor]
    stats: tuple[LayerStats, ...]


def pass_loss(
    model: LanguageModel,
    plan: Plan,
    token_ids: Tensor,
    labels: Tensor,
    layout: Layout,
    losses: LossConfig,
    *,
    n_labels: float | Tensor,
    n_passes: int = 1,
) -> PassLoss:
    """token_ids and labels [rows, columns] as `Plan.cut` gives them; n_labels: of the whole step, on all processes.

    In `parts`, ce and logit_z are sums over n_labels (over a step's passes they add up), the others means of this pass.
    """
    out = model(token_ids, layout, keep="none", observe=True if losses.activation else "watch")
    with_z, squares = plan.next_token_sums(model, out.hidden, layout.take(labels), z_weight=losses.logit_z)
    own = _added(out.stats, model.config, out.hidden, plan)
    weights = {"balance": losses.balance, "router_z": losses.router_z, "activation": losses.activation}
    loss = with_z / n_labels + sum((w * own[k] / n_passes for k, w in weights.items() if w), with_z.new_zeros(()))
    logit_z = plan.over_rows(squares.detach()) / n_labels
    parts = {
        "ce": plan.over_rows(with_z.detach()) / n_labels - losses.logit_z * logit_z,
        "logit_z": logit_z,
        **{name: plan.over_tokens(value.detach()) for name, value in own.items()},
    }
    added = sum((w * parts[k] / n_passes for k, w in weights.items()), losses.logit_z * logit_z)
    return PassLoss(loss, {**parts, "loss": parts["ce"] + added}, out.stats)


def _added(stats: tuple[LayerStats, ...], config: ModelConfig, hidden: Tensor, plan: Plan) -> dict[str, Tensor]:
    """This process's shares of the means."""
    routers = [s.router_logits for s in stats if s.router_logits is not None]
    mamba = [i for i, kind in enumerate(config.layer_kinds()) if kind.mixer != "attention"]
    n_tokens = hidden.new_full((), float(len(hidden)), dtype=torch.float64)
    share = (n_tokens / plan.over_tokens(n_tokens)).to(torch.promote_types(hidden.dtype, torch.float32))
    return {
        "balance": balance_loss(routers, config.top_k, plan.over_tokens).to(hidden.device),
        "router_z": router_z_loss(routers, plan.over_tokens).to(hidden.device),
        "activation": activation_loss(stats, mamba).to(hidden.device) * share,
    }


def own_rows(loader: Loader, index: int, config: TrainConfig, plan: Plan) -> Batch:
    """This process's rows of batch `index`, pass after pass. A pass is made of the same rows on any mesh."""
    rank, world = plan.loader_place
    passes = [loader.batch(index * config.accumulate + i, rank, world) for i in range(config.accumulate)]
    return Batch(
        np.concatenate([p.token_ids for p in passes]),
        np.concatenate([p.labels for p in passes]),
        tuple(lengths for p in passes for lengths in p.segment_lengths),
    )


def train_step(
    model: LanguageModel,
    optimizer: AnyOptimizer,
    batch: Batch,
    config: TrainConfig,
    device: torch.device,
    plan: Plan | None = None,
    most_loss: float = math.inf,
    graphs: Graphs | None = None,
) -> dict[str, Any]:
    """One optimizer step over a batch (this process's rows of it), in config.accumulate passes; the loss is a mean over
    all of the batch's labels. The step is not taken when the loss or the gradient is not finite, or the loss is above
    `most_loss`; the returned `skipped` says so. `graphs`: of `whole_step` with the same arguments.
    """
    plan = plan or Plan()
    cuts = [plan.cut(*part) for part in tensors_of(batch, config.accumulate, device)]
    most = torch.full((), most_loss, dtype=torch.float64, device=device)
    numbers = (
        graphs(cuts, most) if graphs is not None else whole_step(cuts, most, model, optimizer, config, device, plan)
    )
    record = _recorded(numbers, model.config)
    return record if record.pop("taken") else {**record, "skipped": 1.0}


def whole_step(
    cuts: Sequence[tuple[Tensor, Tensor, Layout]],
    most_loss: Tensor,
    model: LanguageModel,
    optimizer: AnyOptimizer,
    config: TrainConfig,
    device: torch.device,
    plan: Plan,
) -> dict[str, Tensor]:
    """From the passes to the changed parameters. Returns what there is to report, in fp64, on the device: with AdamW on
    a GPU the host waits for nothing, and whether the step is `taken` is decided there.
    """
    numbers = gradients(cuts, model, config, device, plan)
    loss, norm = numbers["loss"], numbers["grad_norm"]
    taken = torch.isfinite(loss + norm) & (loss <= most_loss)
    optimizer.step(torch.where(taken, clip_factor(norm, config.optim.grad_clip), -1.0))
    optimizer.zero_grad(set_to_none=True)
    return {"taken": taken.double(), **numbers}


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients are multiplied with so that their norm is at most max_norm."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def gradients(
    cuts: Sequence[tuple[Tensor, Tensor, Layout]],
    model: LanguageModel,
    config: TrainConfig,
    device: torch.device,
    plan: Plan,
) -> dict[str, Tensor]:
    """Fill the parameters' gradients, complete but not clipped, from a step's passes; returns what there is to
    report.
    """
    n_labels = torch.stack([(labels != IGNORE).sum() for _, labels, _ in cuts]).sum().float()
    n_labels = plan.over_rows(n_labels).clamp_min(1.0)
    passes = []
    for token_ids, labels, layout in cuts:
        with autocast(config, device, plan):
            found = pass_loss(
                model, plan, token_ids, labels, layout, config.losses, n_labels=n_labels, n_passes=config.accumulate
            )
        found.loss.backward()
        sites = _sites(found.stats)
        sizes = plan.largest(torch.stack(list(sites.values())))
        passes.append(_Pass(found.parts, sizes, _load(found.stats, model, plan)))
        del found  # and with it what was kept for its backward pass
    return _together(passes, list(sites), plan.gradient_norm(model))


def autocast(config: TrainConfig, device: torch.device, plan: Plan) -> torch.autocast:
    """Products in bf16 where the parameters are fp32 and no FSDP casts them."""
    wanted = plan.mesh is None and config.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


@dataclass(frozen=True)
class _Pass:
    """What one pass reports, on the device."""

    parts: dict[str, Tensor]
    sizes: Tensor  # [sites], in the order of `_sites`
    load: Tensor  # [mixtures, n_experts]


def _together(passes: Sequence[_Pass], names: Sequence[str], grad_norm: Tensor) -> dict[str, Tensor]:
    """Sums (or means) over a step's passes, the largest sizes, and the gradient norm."""
    values = {"grad_norm": local(grad_norm).double()}
    for name in passes[0].parts:
        total = torch.stack([found.parts[name] for found in passes]).sum().double()
        values[name] = total / (len(passes) if name in ("balance", "router_z", "activation") else 1)
    sizes = torch.stack([found.sizes for found in passes]).amax(0).double()
    values |= dict(zip(names, sizes.unbind(), strict=True))
    values["load"] = torch.stack([found.load for found in passes]).mean(0).double()
    return values


def _recorded(numbers: dict[str, Tensor], config: ModelConfig) -> dict[str, Any]:
    """As plain numbers, by one copy to the host: the one wait for the device in a step. `load/layer_03` is a list, of
    each expert's share of the tokens in units of an equal share.
    """
    flat = torch.cat([value.reshape(-1) for value in numbers.values()]).tolist()
    load = flat[len(flat) - numbers["load"].numel() :]
    record: dict[str, Any] = dict(zip((name for name in numbers if name != "load"), flat, strict=False))
    sites = [name for name in record if name.startswith("max/")]
    experts = [record[name] for name in sites if name.endswith("/experts")]
    mamba = [i for i, kind in enumerate(config.layer_kinds()) if kind.mixer != "attention"]
    record["max_mamba"] = max((record[f"max/layer_{i:02}/mixer"] for i in mamba), default=0.0)
    record["max_experts"] = max(experts, default=0.0)
    mixtures = [i for i, kind in enumerate(config.layer_kinds()) if kind.ffn == "moe"]
    for place, i in enumerate(mixtures):
        record[f"load/layer_{i:02}"] = load[place * config.n_experts : (place + 1) * config.n_experts]
    return record


def tensors_of(batch: Batch, n_passes: int, device: torch.device) -> list[tuple[Tensor, Tensor, list[list[int]]]]:
    """A batch in equal passes: token ids and labels [rows, seq], and the lengths of each row's documents."""
    rows = len(batch.token_ids) // n_passes
    parts = []
    for first in range(0, rows * n_passes, rows):
        here = slice(first, first + rows)
        ids, labels = (torch.from_numpy(np.ascontiguousarray(a[here])) for a in (batch.token_ids, batch.labels))
        lengths = [row.tolist() for row in batch.segment_lengths[here]]
        parts.append((ids.to(device), labels.to(device), lengths))
    return parts


def _sites(stats: Sequence[LayerStats]) -> dict[str, Tensor]:
    """The largest activation of each site: max/layer_03/mixer …"""
    return {
        f"max/layer_{i:02}/{site}": size.max_abs
        for i, layer in enumerate(stats)
        for site, size in (("mixer", layer.mixer), ("ffn", layer.ffn), ("experts", layer.experts))
        if size is not None
    }


def _load(stats: Sequence[LayerStats], model: LanguageModel, plan: Plan) -> Tensor:
    """[mixtures, n_experts]: how many tokens chose each expert, over its fair share."""
    routers = [layer.router_logits.detach() for layer in stats if layer.router_logits is not None]
    if not routers:
        return stats[0].mixer.max_abs.new_zeros(0, model.config.n_experts)
    mixtures = [ffn for ffn in model.feed_forwards() if isinstance(ffn, MoE)]
    chosen = torch.stack([ffn.choose(logits)[1] for ffn, logits in zip(mixtures, routers, strict=True)])
    experts = torch.arange(model.config.n_experts, device=chosen.device)
    counts = plan.over_tokens((chosen[..., None] == experts).sum((1, 2)).double())
    return model.config.n_experts * counts / counts.sum(1, keepdim=True)
