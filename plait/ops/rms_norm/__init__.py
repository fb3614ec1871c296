"""RMSNorm over the last dim (used before every mixer and feed-forward, and on dt, B and C inside the Mamba mixer)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plait.ops.dispatch import Implementation, anywhere, pick, why_not_triton
from plait.ops.rms_norm import native, reference
from plait.ops.shapes import Shapes

Norm = Callable[[Tensor, Tensor, float], Tensor]

_NORM = Shapes("rms_norm", x="... d", weight="d")
_ADD = Shapes("add_rms_norm", x="... d", weight="d")  # and a residual that is shaped as x


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.float32, torch.bfloat16, torch.float16))


# Imported when first called, so that this package needs no Triton; by statement, which torch.compile can follow.
def _triton(*arguments: Any) -> Tensor:
    from plait.ops.rms_norm.triton import rms_norm as run

    return run(*arguments)


def _triton_after_add(*arguments: Any) -> tuple[Tensor, Tensor]:
    from plait.ops.rms_norm.triton import add_rms_norm as run

    return run(*arguments)


def _triton_sections(*arguments: Any) -> tuple[Tensor, ...]:
    from plait.ops.rms_norm.triton import rms_norm_sections as run

    return run(*arguments)


def _after_add(norm: Norm) -> Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        added = x + residual
        return norm(added, weight, eps), added

    return run


def _of_each(norm: Norm) -> Callable[[Tensor, tuple[Tensor, ...], float], tuple[Tensor, ...]]:
    def run(x: Tensor, weights: tuple[Tensor, ...], eps: float) -> tuple[Tensor, ...]:
        sections = x.split([w.shape[0] for w in weights], dim=-1)
        return tuple(norm(section, w, eps) for section, w in zip(sections, weights, strict=True))

    return run


IMPLEMENTATIONS = {
    "triton": Implementation(_triton, _why_not_triton),
    "native": Implementation(native.rms_norm, native.why_not),
    "reference": Implementation(reference.rms_norm, anywhere),
}
ADD_IMPLEMENTATIONS = {
    "triton": Implementation(_triton_after_add, _why_not_triton),
    "native": Implementation(native.add_rms_norm, native.why_not),
    "reference": Implementation(_after_add(reference.rms_norm), anywhere),
}
SECTIONS_IMPLEMENTATIONS = {
    "triton": Implementation(_triton_sections, _why_not_triton),
    "native": Implementation(_of_each(native.rms_norm), native.why_not),
    "reference": Implementation(_of_each(reference.rms_norm), anywhere),
}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight.

    x [..., d], weight [d]. The mean and the scaling are fp32, the result is cast to x.dtype before it meets the weight.
    """
    _NORM.check(x, weight)
    run = pick("rms_norm", IMPLEMENTATIONS, x)
    if torch.compiler.is_compiling() and run is not _triton:
        from plait.ops.compiled import RMS_NORM

        return RMS_NORM(x, weight, constant=eps)[0]
    return run(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), where a block's output joins the residual stream: one pass, not two.

    x and residual [..., d]; the sum is rounded to the wider of their dtypes (autocast has fp32 residuals).
    """
    _ADD.check(x, weight)
    if x.shape != residual.shape or x.device != residual.device:
        given, wanted = (f"{list(t.shape)} on {t.device}" for t in (residual, x))
        raise ValueError(f"add_rms_norm: residual is {given}; it must be as x, {wanted}")
    run = pick("rms_norm", ADD_IMPLEMENTATIONS, x)
    if torch.compiler.is_compiling() and run is not _triton_after_add:
        from plait.ops.compiled import ADD_RMS_NORM

        normed, added = ADD_RMS_NORM(x, residual, weight, constant=eps)
        return normed, added
    return run(x, residual, weight, eps)


def rms_norm_sections(x: Tensor, weights: tuple[Tensor, ...], eps: float) -> tuple[Tensor, ...]:
    """Cut the last dim into sections as wide as the weights and normalise each: dt, B and C of x_proj in one pass.

    x [..., sum of widths]; weights: three. Returns a contiguous [..., width] for each.
    """
    widths = [w.shape[0] for w in weights]
    if x.shape[-1] != sum(widths):
        raise ValueError(f"rms_norm_sections: x has shape {list(x.shape)}; its last dim must be {widths} together")
    run = pick("rms_norm", SECTIONS_IMPLEMENTATIONS, x)
    if torch.compiler.is_compiling() and run is not _triton_sections:
        from plait.ops.compiled import RMS_NORM_SECTIONS

        return tuple(RMS_NORM_SECTIONS(x, *weights, constant=eps))
    return run(x, weights, eps)
