"""What a layer can report besides its output: router logits and the sizes of its activations (paper section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """The size of one activation: its mean square (differentiable) and its greatest absolute value, both fp32
    scalars.
    """

    mean_square: Tensor
    max_abs: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Activation:
        """Two reads of x and no copy of it; for the backward pass x itself is kept."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return cls(_MeanSquare.apply(x, wide), torch.linalg.vector_norm(x.detach(), torch.inf).to(wide))

    @classmethod
    def watched(cls, x: Tensor) -> Activation:
        """The same for a site that is only looked at: nothing is kept, and there is no gradient."""
        return cls.of(x.detach())


class _MeanSquare(torch.autograd.Function):
    """mean(x^2), summed in `wide`, without x in that type: of an activation that is the larger tensor of the two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wide: torch.dtype) -> Tensor:
        ctx.save_for_backward(x)
        return torch.linalg.vector_norm(x, dtype=wide).square() / x.numel()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return x * (2 / x.numel() * grad), None


@dataclass(frozen=True)
class LayerStats:
    """One layer's report. Sites of the activation loss are the Mamba mixers and the experts; the others are only
    watched.
    """

    mixer: Activation
    ffn: Activation
    experts: Activation | None = None  # over the unweighted outputs of all experts chosen by any token
    router_logits: Tensor | None = None  # [tokens, n_experts]
