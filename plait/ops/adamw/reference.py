"""AdamW, slow and obvious, and the rounding at random that the kernels repeat bit for bit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.ops.adamw.numbers import Numbers

WORD = 0xFFFFFFFF


def step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    numbers: Numbers,
) -> None:
    factor, decay, size, scale, t = numbers.vector.tolist()
    if not factor >= 0:
        return
    for place, (p, g, m, v) in enumerate(zip(parameters, gradients, means, squares, strict=True)):
        wide = torch.promote_types(p.dtype, torch.float32)
        g = g.to(wide) * factor
        mean = torch.lerp(m.to(wide), g, 1 - numbers.beta1)
        square = v.to(wide) * numbers.beta2 + g * g * (1 - numbers.beta2)
        new = p.to(wide) * decay - size * mean / (square.sqrt() * scale + numbers.eps)
        m.copy_(mean)
        v.copy_(square)
        p.copy_(
            rounded_at_random(new, seed(int(t), place)) if numbers.stochastic and p.dtype == torch.bfloat16 else new
        )


def seed(t: int, place: int) -> int:
    """Of one tensor in one step."""
    return (t * 0x9E3779B1 + place * 0x85EBCA77) & WORD


def rounded_at_random(x: Tensor, seed: int) -> Tensor:
    """fp32 -> bf16: up with a chance of what is lost by rounding down. Element i's chance is a hash of i and the seed
    (murmur3's finalizer).
    """
    r = (torch.arange(x.numel(), device=x.device).view(x.shape) * 0x9E3779B1 + seed) & WORD
    r = ((r ^ (r >> 16)) * 0x85EBCA6B) & WORD
    r = ((r ^ (r >> 13)) * 0xC2B2AE35) & WORD
    r = r ^ (r >> 16)
    bits = x.view(torch.int32).long() & WORD
    kept = ((bits + (r & 0xFFFF)) >> 16) & 0xFFFF
    kept = torch.where(x.isfinite(), kept, bits >> 16)
    return torch.where(kept > 0x7FFF, kept - 0x10000, kept).to(torch.int16).view(torch.bfloat16)
