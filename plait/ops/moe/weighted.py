"""The weighted sum of experts' outputs for training, in plain Triton: a program a token, which reads its outputs once,
forward, and once more, with the gradient, backward.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import direct, next_power_of_2, on_device_of
from plait.ops.operator import operator
from plait.ops.size.triton import size


@direct
@triton.jit
def combine_kernel(outputs_ptr, weights_ptr, sum_ptr, width, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    token, n = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(TOP_K):
        y = tl.load(outputs_ptr + (token * TOP_K + j) * width + n, n < width, 0.0).to(tl.float32)
        total += tl.load(weights_ptr + token * TOP_K + j).to(tl.float32) * y
    tl.store(sum_ptr + token * width + n, total.to(sum_ptr.dtype.element_ty), n < width)


@direct
@triton.jit
def combine_backward_kernel(
    outputs_ptr, weights_ptr, dsum_ptr, dsquares_ptr, doutputs_ptr, dweights_ptr, width,
    TOP_K: tl.constexpr, BLOCK: tl.constexpr, SIZED: tl.constexpr,
):  # fmt: skip
    """SIZED: the sum of the outputs' squares has a gradient too."""
    token, n = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    dsum = tl.load(dsum_ptr + token * width + n, n < width, 0.0).to(tl.float32)
    for j in tl.static_range(TOP_K):
        row = token * TOP_K + j
        y = tl.load(outputs_ptr + row * width + n, n < width, 0.0).to(tl.float32)
        weight = tl.load(weights_ptr + row).to(tl.float32)
        dy = weight * dsum
        if SIZED:
            dy += 2.0 * tl.load(dsquares_ptr).to(tl.float32) * y
        tl.store(doutputs_ptr + row * width + n, dy.to(doutputs_ptr.dtype.element_ty), n < width)
        tl.store(dweights_ptr + row, tl.sum(y * dsum, axis=0).to(dweights_ptr.dtype.element_ty))


@operator("plait::moe_combine_triton")
def _combine(outputs: Tensor, weights: Tensor) -> Tensor:
    tokens, top_k, width = outputs.shape
    out = outputs.new_empty(tokens, width)
    if tokens:
        block = next_power_of_2(width)
        with on_device_of(outputs):
            combine_kernel[(tokens,)](
                outputs.contiguous(),
                weights.contiguous(),
                out,
                width,
                TOP_K=top_k,
                BLOCK=block,
                num_warps=_warps(block),
            )
    return out


@operator("plait::moe_combine_triton_backward")
def _combine_backward(outputs: Tensor, weights: Tensor, dsum: Tensor, dsquares: Tensor | None) -> tuple[Tensor, Tensor]:
    tokens, top_k, width = outputs.shape
    doutputs, dweights = outputs.new_empty(outputs.shape), weights.new_empty(weights.shape)
    if tokens:
        block = next_power_of_2(width)
        with on_device_of(outputs):
            combine_backward_kernel[(tokens,)](
                outputs.contiguous(), weights.contiguous(), dsum.contiguous(), dsquares, doutputs, dweights, width,
                TOP_K=top_k, BLOCK=block, SIZED=dsquares is not None, num_warps=_warps(block),
            )  # fmt: skip
    return doutputs, dweights


def _warps(block: int) -> int:
    return min(8, max(1, block // 256))


@_combine.register_fake
def _(outputs, weights):
    return outputs.new_empty(outputs.shape[0], outputs.shape[2])


@_combine_backward.register_fake
def _(outputs, weights, dsum, dsquares):
    return outputs.new_empty(outputs.shape), weights.new_empty(weights.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dsum: Tensor) -> tuple[Tensor, Tensor]:
    outputs, weights = ctx.saved_tensors
    return _combine_backward(outputs, weights, dsum, None)


_combine.register_autograd(_differentiate, setup_context=_remember)


@operator("plait::moe_combine_sized_triton")
def _combine_sized(outputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    squares, max_abs = size(outputs)
    return combine(outputs, weights), squares, max_abs


@_combine_sized.register_fake
def _(outputs, weights):
    scalars = (outputs.new_empty((), dtype=torch.float32) for _ in range(2))
    return outputs.new_empty(outputs.shape[0], outputs.shape[2]), *scalars


def _remember_sized(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_sized(
    ctx: Any, dsum: Tensor | None, dsquares: Tensor | None, _: Tensor | None
) -> tuple[Tensor, Tensor]:
    outputs, weights = ctx.saved_tensors
    dsum = outputs.new_zeros(outputs.shape[0], outputs.shape[2]) if dsum is None else dsum
    return _combine_backward(outputs, weights, dsum, dsquares)


_combine_sized.register_autograd(_differentiate_sized, setup_context=_remember_sized)


def combine_sized(outputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out, squares, max_abs = _combine_sized(outputs, weights)
    return out, squares, max_abs


def combine(outputs: Tensor, weights: Tensor) -> Tensor:
    return _combine(outputs, weights)
