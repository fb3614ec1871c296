"""RMSNorm in plain Triton: alone, with the residual addition before it, and several side by side in one pass over a
row.

A program takes ROWS rows at a time, as many as make about 1024 elements, so that the 16 columns of B or C fill lanes as
well as the 4096 of the residual stream do. Floor: every input read once, every output written once.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import cdiv, direct, next_power_of_2, on_device_of
from plait.ops.operator import operator

BACKWARD_PROGRAMS = 528  # each adds up the weight gradient of its rows; four to a multiprocessor of an H100


@triton.jit
def normed(x, weight, eps, d, DTYPE: tl.constexpr):
    """x [ROWS, BLOCK] fp32 -> x rsqrt(mean(x^2) + eps), rounded to DTYPE before it meets the weight, and the rsqrt
    [ROWS].
    """
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / d + eps)
    return (x * scale[:, None]).to(DTYPE).to(tl.float32) * weight[None, :], scale


@direct
@triton.jit(do_not_specialize=["n_rows"])
def forward_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, sum_ptr, x_stride, residual_stride, n_rows, d, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = sum_ptr.dtype.element_ty if HAS_RESIDUAL else x_ptr.dtype.element_ty
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (row < n_rows)[:, None] & (column < d)[None, :]
    weight = tl.load(weight_ptr + column, column < d, 0.0).to(tl.float32)
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], inside, 0.0).to(tl.float32)
    at = row[:, None] * d + column[None, :]
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row[:, None] * residual_stride + column[None, :], inside, 0.0).to(tl.float32)
        x = x.to(DTYPE).to(tl.float32)
        tl.store(sum_ptr + at, x, inside)
    out, _ = normed(x, weight, eps, d, DTYPE)
    tl.store(out_ptr + at, out, inside)


@triton.jit
def section(x_ptr, weight_ptr, out_ptr, row, x_stride, n_rows, start, d, eps, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = (row < n_rows)[:, None] & (column < d)[None, :]
    weight = tl.load(weight_ptr + column, column < d, 0.0).to(tl.float32)
    x = tl.load(x_ptr + row[:, None] * x_stride + start + column[None, :], inside, 0.0).to(tl.float32)
    out, _ = normed(x, weight, eps, d, x_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * d + column[None, :], out, inside)


@direct
@triton.jit(do_not_specialize=["n_rows"])
def three_sections_kernel(
    x_ptr, weight0_ptr, weight1_ptr, weight2_ptr, out0_ptr, out1_ptr, out2_ptr, x_stride, n_rows, d0, d1, d2, eps,
    ROWS: tl.constexpr, BLOCK0: tl.constexpr, BLOCK1: tl.constexpr, BLOCK2: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    section(x_ptr, weight0_ptr, out0_ptr, row, x_stride, n_rows, 0, d0, eps, BLOCK0)
    section(x_ptr, weight1_ptr, out1_ptr, row, x_stride, n_rows, d0, d1, eps, BLOCK1)
    section(x_ptr, weight2_ptr, out2_ptr, row, x_stride, n_rows, d0 + d1, d2, eps, BLOCK2)


@direct
@triton.jit(do_not_specialize=["n_rows"])
def backward_kernel(
    x_ptr, weight_ptr, dout_ptr, dsum_ptr, dx_ptr, partials_ptr, x_stride, dx_stride, n_rows, d, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_SUM: tl.constexpr,
):  # fmt: skip
    """dx = scale (g - x scale^2 mean(g x)) with g = dout weight; partial sums of dout x scale, one row a program."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    column = tl.arange(0, BLOCK)
    in_d = column < d
    weight = tl.load(weight_ptr + column, in_d, 0.0).to(tl.float32)
    dweight = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(tl.program_id(0) * ROWS, n_rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < n_rows)[:, None] & in_d[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], inside, 0.0).to(tl.float32)
        dout = tl.load(dout_ptr + row[:, None] * d + column[None, :], inside, 0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / d + eps)[:, None]
        n = x * scale
        g = dout * weight[None, :]
        dx = scale * (g - n * (tl.sum(g * n, axis=1) / d)[:, None])
        if HAS_SUM:
            dx += tl.load(dsum_ptr + row[:, None] * d + column[None, :], inside, 0.0).to(tl.float32)
        dweight += dout * n.to(DTYPE).to(tl.float32)
        tl.store(dx_ptr + row[:, None] * dx_stride + column[None, :], dx, inside)
    tl.store(partials_ptr + tl.program_id(0) * d + column, tl.sum(dweight, axis=0), in_d)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _add_norm(x, residual, weight, eps)


def rms_norm_sections(x: Tensor, weights: tuple[Tensor, ...], eps: float) -> tuple[Tensor, ...]:
    if len(weights) != 3:
        raise ValueError(f"{len(weights)} weights: the Triton kernel normalises three sections of a row (dt, B and C)")
    return _sections(x, *weights, eps)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, d = _rows(x), x.shape[-1]
    if residual is None:
        added = out = _normed_like(x, x.shape, weight)
        other = rows
    else:
        added, other = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype)), _rows(residual)
        out = _normed_like(added, x.shape, weight)
    ROWS, BLOCK, num_warps = _shape(d)
    with on_device_of(x):
        forward_kernel[(cdiv(rows.shape[0], ROWS),)](
            rows, other, weight, out, added, rows.stride(0), other.stride(0), rows.shape[0], d, eps,
            ROWS=ROWS, BLOCK=BLOCK, HAS_RESIDUAL=residual is not None, num_warps=num_warps,
        )  # fmt: skip
    return out, added


def _launch_backward(x: Tensor, weight: Tensor, dout: Tensor, dsum: Tensor | None, eps: float, dx: Tensor) -> Tensor:
    """Writes dx, whose rows may be strided. Returns the weight's gradient."""
    rows, d = _rows(x), x.shape[-1]
    ROWS, BLOCK, num_warps = _shape(d)
    n_programs = max(1, min(cdiv(rows.shape[0], ROWS), BACKWARD_PROGRAMS))
    partials = x.new_empty((n_programs, d), dtype=torch.float32)
    with on_device_of(x):
        backward_kernel[(n_programs,)](
            rows, weight, dout.contiguous(), None if dsum is None else dsum.contiguous(), dx, partials, rows.stride(0),
            dx.stride(-2) if dx.dim() > 1 else d, rows.shape[0], d, eps,
            ROWS=ROWS, BLOCK=BLOCK, HAS_SUM=dsum is not None, num_warps=num_warps,
        )  # fmt: skip
    return partials.sum(0).to(weight.dtype)


def _normed_like(x: Tensor, shape: Sequence[int], weight: Tensor) -> Tensor:
    """Room for what a norm gives."""
    if x.dtype == weight.dtype:
        return x.new_empty(shape)
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, weight.dtype))


@operator("plait::rms_norm_triton")
def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _launch(x, None, weight.contiguous(), eps)[0]


@operator("plait::add_rms_norm_triton")
def _add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _launch(x, residual, weight.contiguous(), eps)


@operator("plait::rms_norm_sections_triton")
def _sections(
    x: Tensor, weight0: Tensor, weight1: Tensor, weight2: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows, weights = _rows(x), [w.contiguous() for w in (weight0, weight1, weight2)]
    d = [w.shape[0] for w in weights]
    outs = [_normed_like(x, (*x.shape[:-1], w.shape[0]), w) for w in weights]
    ROWS, _, num_warps = _shape(max(d))
    with on_device_of(x):
        three_sections_kernel[(cdiv(rows.shape[0], ROWS),)](
            rows, *weights, *outs, rows.stride(0), rows.shape[0], *d, eps,
            ROWS=ROWS, BLOCK0=next_power_of_2(d[0]), BLOCK1=next_power_of_2(d[1]),
            BLOCK2=next_power_of_2(d[2]), num_warps=num_warps,
        )  # fmt: skip
    return outs[0], outs[1], outs[2]


@operator("plait::rms_norm_triton_backward")
def _norm_backward(x: Tensor, weight: Tensor, dout: Tensor, dsum: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape)
    return dx, _launch_backward(x, weight.contiguous(), dout, dsum, eps, dx)


@operator("plait::rms_norm_sections_triton_backward")
def _sections_backward(
    x: Tensor,
    weight0: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    dout0: Tensor,
    dout1: Tensor,
    dout2: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = _rows(x)
    dx = x.new_empty(rows.shape)
    dweights, start = [], 0
    for weight, dout in ((weight0, dout0), (weight1, dout1), (weight2, dout2)):
        here = slice(start, start + weight.shape[0])
        dweights.append(_launch_backward(rows[:, here], weight.contiguous(), dout, None, eps, dx[:, here]))
        start += weight.shape[0]
    return dx.view(x.shape), dweights[0], dweights[1], dweights[2]


@_norm.register_fake
def _(x, weight, eps):
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))


@_add_norm.register_fake
def _(x, residual, weight, eps):
    wide = torch.promote_types(x.dtype, residual.dtype)
    return x.new_empty(x.shape, dtype=torch.promote_types(wide, weight.dtype)), x.new_empty(x.shape, dtype=wide)


@_sections.register_fake
def _(x, weight0, weight1, weight2, eps):
    weights = (weight0, weight1, weight2)
    return tuple(x.new_empty((*x.shape[:-1], w.shape[0]), dtype=torch.promote_types(x.dtype, w.dtype)) for w in weights)


@_norm_backward.register_fake
def _(x, weight, dout, dsum, eps):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@_sections_backward.register_fake
def _(x, weight0, weight1, weight2, dout0, dout1, dout2, eps):
    return x.new_empty(x.shape), *(w.new_empty(w.shape) for w in (weight0, weight1, weight2))


def _remember_norm(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _differentiate_norm(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return *_norm_backward(*ctx.saved_tensors, dout, None, ctx.eps), None


def _remember_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, ctx.eps = inputs
    ctx.dtypes = x.dtype, residual.dtype
    ctx.save_for_backward(output[1], weight)


def _differentiate_add(ctx: Any, dout: Tensor | None, dsum: Tensor | None) -> tuple[Tensor | None, ...]:
    added, weight = ctx.saved_tensors
    dout = added.new_zeros(added.shape) if dout is None else dout
    dx, dweight = _norm_backward(added, weight, dout, dsum, ctx.eps)
    return *(dx.to(dtype) for dtype in ctx.dtypes), dweight, None


def _remember_sections(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_sections(ctx: Any, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
    x, *weights = ctx.saved_tensors
    given = [x.new_zeros((*x.shape[:-1], w.shape[0])) if g is None else g for w, g in zip(weights, douts, strict=True)]
    return *_sections_backward(x, *weights, *given, ctx.eps), None


_norm.register_autograd(_differentiate_norm, setup_context=_remember_norm)
_add_norm.register_autograd(_differentiate_add, setup_context=_remember_add)
_sections.register_autograd(_differentiate_sections, setup_context=_remember_sections)


def _rows(t: Tensor) -> Tensor:
    """[rows, d], whose rows may be strided, without a copy where that can be."""
    rows = t if t.dim() == 2 else t.reshape(-1, t.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@functools.cache
def _shape(d: int) -> tuple[int, int, int]:
    """ROWS, BLOCK and warps for rows of d columns."""
    block = next_power_of_2(d)
    rows = max(1, 1024 // block)
    return rows, block, min(16, max(1, rows * block // 512))
