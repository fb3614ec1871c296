"""What a layer can report besides its output: router logits and the sizes of its activations (paper section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plait.ops.size import add_scaled, size


@dataclass(frozen=True)
class Activation:
    """The size of one activation: its mean square (differentiable) and its greatest absolute value, both fp32
    scalars.
    """

    mean_square: Tensor
    max_abs: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Activation:
        """One read of x and no copy of it; for the backward pass x itself is kept."""
        return cls.carried(x)[1]

    @classmethod
    def carried(cls, x: Tensor) -> tuple[Tensor, Activation]:
        """x again, and its size. Whoever goes on with that x gets the gradients of both by one pass over them."""
        squares, max_abs = size(x.detach())
        again, mean_square = _Carried.apply(x, squares)
        return again, cls(mean_square, max_abs)

    @classmethod
    def watched(cls, x: Tensor) -> Activation:
        """The same for a site that is only looked at: nothing is kept, and there is no gradient."""
        squares, max_abs = size(x.detach())
        return cls(squares / x.numel(), max_abs)


class _Carried(torch.autograd.Function):
    """x and mean(x^2), from the sum of squares."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        return x.view_as(x), squares / x.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        (x,), (dx, dmean) = ctx.saved_tensors, grads
        if dmean is None:
            return dx, None
        factor = 2 / x.numel() * dmean
        return (x * factor).to(x.dtype) if dx is None else add_scaled(dx, x, factor), None


@dataclass(frozen=True)
class LayerStats:
    """One layer's report. Sites of the activation loss are the Mamba mixers and the experts; the others are only
    watched.
    """

    mixer: Activation
    ffn: Activation
    experts: Activation | None = None  # over the unweighted outputs of all experts chosen by any token
    router_logits: Tensor | None = None  # [tokens, n_experts]
