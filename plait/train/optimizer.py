"""AdamW, or Muon for matrices beside it, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from plait.model.init import no_decay
from plait.model.network import LanguageModel
from plait.parallel.plan import Plan
from plait.train.config import OptimConfig
from plait.train.muon import Muon


class Optimizer:
    """One or two torch optimizers behind one face."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


AnyOptimizer = torch.optim.Optimizer | Optimizer


def states(optimizer: AnyOptimizer) -> dict[Tensor, dict[str, Tensor]]:
    """What each parameter's next step depends on, made if there was no step yet. The tensors themselves."""
    found: dict[Tensor, dict[str, Tensor]] = {}
    for part in optimizer.parts if isinstance(optimizer, Optimizer) else (optimizer,):
        moments = ("momentum",) if isinstance(part, Muon) else ("exp_avg", "exp_avg_sq")
        for parameter in (p for group in part.param_groups for p in group["params"]):
            if not part.state[parameter]:
                part.state[parameter] = {name: torch.zeros_like(parameter) for name in moments}
                if not isinstance(part, Muon):
                    part.state[parameter]["step"] = torch.zeros((), device=parameter.device)
            found[parameter] = part.state[parameter]
    return found


def make_optimizer(model: LanguageModel, config: OptimConfig, plan: Plan) -> AnyOptimizer:
    """What `config.kind` names, over the parameters as the plan left them."""
    if config.kind == "adamw":
        return adamw(model, config)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and _is_matrix(name, p)]
    matrices = {name for name, _ in named}
    return Optimizer(adamw(model, config, leave=matrices), Muon(named, config, plan))


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """What maps activations to activations: not tables of vectors (embedding, head, convolution, A)."""
    return parameter.dim() > 1 and not name.endswith(("embed.weight", "head.weight", "conv.weight", "A_log"))


def adamw(model: LanguageModel, config: OptimConfig, leave: set[str] | None = None) -> torch.optim.AdamW:
    """Fused AdamW; weight decay only on matrices (see `no_decay`). Not over the parameters named in `leave`."""
    kept = no_decay(model)
    groups: dict[tuple[bool, Any], list[Tensor]] = {(False, None): [], (True, None): []}
    for name, parameter in model.named_parameters():
        if name not in (leave or ()) and parameter.requires_grad:
            mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None  # a fused step takes one mesh
            groups.setdefault((name in kept, mesh), []).append(parameter)
    lists = [
        {"params": parameters, "weight_decay": 0.0 if is_kept else config.weight_decay}
        for (is_kept, _), parameters in groups.items()
        if parameters
    ]
    return torch.optim.AdamW(lists, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of step 0 <= step < steps: linear warm-up, then cosine, or constant and linear over the last
    decay_share.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
        return config.lr * (config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress)))
    decay_steps = max(1, round(config.decay_share * steps))
    left = min(1.0, (steps - 1 - step) / decay_steps)
    return config.lr * (config.final_share + (1 - config.final_share) * left)


def set_learning_rate(optimizer: AnyOptimizer, config: OptimConfig, step: int, steps: int) -> float:
    """Give every group of parameters the rate of `step`, and return it. Mutates the optimizer."""
    lr = learning_rate(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr
