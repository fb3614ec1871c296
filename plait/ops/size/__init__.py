"""How large a tensor's elements are: the sum of their squares and the greatest absolute value, by one read. What the
activation loss and the run's report are made of (paper section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.ops.dispatch import Implementation, anywhere, pick, why_not_triton
from plait.ops.size import reference


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.float32, torch.bfloat16, torch.float16))


# Imported when first called, so that this package needs no Triton; by statement, which torch.compile can follow.
def _triton(x: Tensor) -> tuple[Tensor, Tensor]:
    from plait.ops.size.triton import size as run

    return run(x)


IMPLEMENTATIONS = {
    "triton": Implementation(_triton, _why_not_triton),
    "reference": Implementation(reference.size, anywhere),
}


def size(x: Tensor) -> tuple[Tensor, Tensor]:
    """(sum x^2, max |x|), scalars in fp32 (fp64 for fp64); nan if any element is. No gradient."""
    with torch.no_grad():
        return pick("size", IMPLEMENTATIONS, x)(x)


def add_scaled(a: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """a + factor x, rounded once; factor is a scalar on the device. No gradient."""
    if _why_not_triton(x) is None:
        from plait.ops.size.triton import add_scaled as run

        return run(a, x, factor)
    wide = torch.promote_types(x.dtype, torch.float32)
    return (a.to(wide) + factor.to(wide) * x.to(wide)).to(a.dtype)
