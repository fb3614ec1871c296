"""What a step of AdamW depends on besides its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Numbers:
    """lr, steps (taken before this one) and factor are scalars on the device of the tensors."""

    lr: Tensor
    steps: Tensor
    factor: Tensor  # of the gradients; below 0, or nan: the step is not taken
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    stochastic: bool = False

    @property
    def vector(self) -> Tensor:
        """fp64 [5]: factor, 1 - lr weight_decay, lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), t."""
        lr, t = self.lr.double(), self.steps.double() + 1
        return torch.stack([
            self.factor.double(),
            1 - lr * self.weight_decay,
            lr / (1 - self.beta1**t),
            (1 - self.beta2**t).rsqrt(),
            t,
        ])  # fmt: skip
