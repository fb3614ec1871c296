"""Muon: momentum, made orthogonal (Jordan et al., 2024), for the matrices of a model.

A matrix that is split over processes is gathered for the orthogonalisation and cut again. Several matrices in one
tensor (experts; gate and up) are each orthogonalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from plait.parallel.gradients import local
from plait.parallel.plan import Plan
from plait.parallel.whole import gathered_whole_view, in_pairs, whole, with_local
from plait.train.config import OptimConfig

MOMENTUM = 0.95
# The quintic a x + b x^3 + c x^5, five times, brings every singular value into [0.7, 1.2].
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Steps of lr * 0.2 * sqrt(the longer side), the size of AdamW's (Moonlight), so that both share a schedule."""

    def __init__(self, named: Sequence[tuple[str, Tensor]], config: OptimConfig, plan: Plan) -> None:
        self.names = {parameter: name for name, parameter in named}
        self.plan = plan
        super().__init__([p for _, p in named], {"lr": config.lr, "weight_decay": config.weight_decay})

    def prepare(self) -> None:
        """Make the momentum, if there is none."""
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if not self.state[parameter]:
                self.state[parameter] = {"momentum": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, factor: Tensor | None = None) -> None:  # type: ignore[override]
        """With gradients times `factor`; none if it is negative or nan. Waits for the device. Mutates the gradients."""
        if factor is not None and not float(factor) >= 0:
            return
        self.prepare()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    grad = local(parameter.grad)
                    if factor is not None:
                        grad.mul_(factor.to(grad.dtype))
                    self._step(parameter, grad, group["lr"], group["weight_decay"])

    def _step(self, parameter: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
        momentum = local(self.state[parameter]["momentum"])
        momentum.lerp_(grad, 1 - MOMENTUM)
        update = self._orthogonal(parameter, grad.lerp(momentum, MOMENTUM))
        local(parameter).mul_(1 - lr * weight_decay).add_(update, alpha=-lr)

    def _orthogonal(self, parameter: Tensor, update: Tensor) -> Tensor:
        """This process's share of the whole's orthogonalised update."""
        place, mesh = self.plan.place(self.names[parameter]), self.plan.mesh
        if mesh is None:
            return _orthogonal(in_pairs(update, place)).reshape(update.shape)
        shares = whole(with_local(update, parameter), place, mesh)
        alike = [Replicate()] * len(shares.placements)
        matrix = _orthogonal(gathered_whole_view(shares))
        again = DTensor.from_local(matrix, shares.device_mesh, alike, run_check=False)
        return again.redistribute(placements=shares.placements).to_local().reshape(update.shape)


def _orthogonal(matrices: Tensor) -> Tensor:
    """[..., rows, columns], each nearly orthogonal and scaled, by Newton-Schulz in bf16 (fp32 on a CPU)."""
    a, b, c = QUINTIC
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    size = 0.2 * max(matrices.shape[-2:]) ** 0.5
    return (x.mT if tall else x).to(matrices.dtype) * size
