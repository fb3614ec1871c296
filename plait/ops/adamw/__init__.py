"""A step of AdamW (Loshchilov and Hutter, 2019) over tensors in place: every tensor is read once and written once.

    m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
    p = p (1 - lr weight_decay) - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

g is the gradient times `factor` (clipping), multiplied on its way in; a negative factor (or nan) leaves everything as
it is, so that nobody has to ask the device whether a step is good before it is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.ops.adamw import fused, reference
from plait.ops.adamw.numbers import Numbers as Numbers
from plait.ops.dispatch import Implementation, anywhere, lazily, pick, why_not_triton


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.float32, torch.bfloat16))


IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.adamw.triton", "step"), _why_not_triton),
    "fused": Implementation(fused.step, fused.why_not),
    "reference": Implementation(reference.step, anywhere),
}


def adamw_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    numbers: Numbers,
) -> None:
    """All parameters of one dtype, contiguous. Arithmetic in fp32 (fp64 for fp64).

    With `numbers.stochastic` bf16 parameters are rounded up or down at random, with the chances that keep them right on
    average: updates below 2^-9 of a weight are not lost. Mutates parameters, means and squares.
    """
    if parameters:
        pick("adamw", IMPLEMENTATIONS, parameters[0])(parameters, gradients, means, squares, numbers)
