"""AdamW, or Muon for matrices beside it, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from plait.model.init import no_decay
from plait.model.network import LanguageModel
from plait.model.update import Numbers, adamw_step
from plait.parallel.gradients import local
from plait.parallel.plan import Plan
from plait.train.config import OptimConfig
from plait.train.muon import Muon


class AdamW(torch.optim.Optimizer):
    """AdamW whose step takes the factor of clipping along, and waits for nothing on a GPU (`plait.ops.adamw`).

    `rate` and `steps`, scalars on the device, are what all groups step with.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimConfig) -> None:
        super().__init__(groups, {"lr": config.lr})
        self.config = config
        device = local(groups[0]["params"][0]).device
        self.rate = torch.tensor(config.lr, dtype=torch.float64, device=device)
        self.steps = torch.zeros((), device=device)

    def prepare(self) -> None:
        """Make the moments, if there are none."""
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if not self.state[parameter]:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {**moments, "step": self.steps}

    @torch.no_grad()
    def step(self, factor: Tensor | None = None) -> None:  # type: ignore[override]
        """With gradients times `factor`, a scalar on the device; none if it is negative or nan."""
        self.prepare()
        factor = torch.ones((), device=self.steps.device) if factor is None else factor
        config = self.config
        for group in self.param_groups:
            numbers = Numbers(
                self.rate, self.steps, factor, config.beta1, config.beta2, config.eps, group["weight_decay"],
                stochastic=config.stochastic_rounding,
            )  # fmt: skip
            with_grad = [p for p in group["params"] if p.grad is not None]
            means, squares = ([local(self.state[p][name]) for p in with_grad] for name in ("exp_avg", "exp_avg_sq"))
            adamw_step([local(p) for p in with_grad], [local(p.grad) for p in with_grad], means, squares, numbers)
        self.steps.add_(factor >= 0)


class Optimizer:
    """AdamW, and Muon beside it."""

    def __init__(self, adamw: AdamW, muon: Muon) -> None:
        self.parts = (adamw, muon)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self, factor: Tensor | None = None) -> None:
        for part in self.parts:
            part.step(factor)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


AnyOptimizer = AdamW | Optimizer


def states(optimizer: AnyOptimizer) -> dict[Tensor, dict[str, Tensor]]:
    """What each parameter's next step depends on, made if there was no step yet. The tensors themselves."""
    found: dict[Tensor, dict[str, Tensor]] = {}
    for part in optimizer.parts if isinstance(optimizer, Optimizer) else (optimizer,):
        part.prepare()
        found |= {p: part.state[p] for group in part.param_groups for p in group["params"]}
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


def adamw(model: LanguageModel, config: OptimConfig, leave: set[str] | None = None) -> AdamW:
    """Weight decay only on matrices (see `no_decay`). Not over the parameters named in `leave`."""
    kept = no_decay(model)
    groups: dict[tuple[bool, torch.dtype], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name not in (leave or ()) and parameter.requires_grad:
            groups.setdefault((name in kept, parameter.dtype), []).append(parameter)
    lists = [
        {"params": parameters, "weight_decay": 0.0 if is_kept else config.weight_decay}
        for (is_kept, _), parameters in sorted(groups.items(), key=lambda item: (item[0][0], str(item[0][1])))
    ]
    return AdamW(lists, config)


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
    (optimizer.parts[0] if isinstance(optimizer, Optimizer) else optimizer).rate.fill_(lr)
    return lr
