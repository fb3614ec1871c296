"""AdamW by torch's own kernel, for the CPU: there the host knows the factor, and multiplies gradients only where it is
not 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.ops.adamw import reference
from plait.ops.adamw.numbers import Numbers


def why_not(probe: Tensor) -> str | None:
    return None if probe.is_cpu else f"waits for the device, got {probe.device}"


def step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    numbers: Numbers,
) -> None:
    """Mutates the gradients too."""
    if numbers.stochastic and parameters[0].dtype == torch.bfloat16:
        return reference.step(parameters, gradients, means, squares, numbers)
    factor = float(numbers.factor)
    if not factor >= 0:
        return None
    if factor != 1:
        torch._foreach_mul_(list(gradients), numbers.factor.to(gradients[0].dtype))
    torch._fused_adamw_(
        list(parameters), list(gradients), list(means), list(squares), [],
        [numbers.steps.float() + 1 for _ in parameters],
        lr=float(numbers.lr), beta1=numbers.beta1, beta2=numbers.beta2, weight_decay=numbers.weight_decay,
        eps=numbers.eps, amsgrad=False, maximize=False,
    )  # fmt: skip
    return None
