"""The causal convolution on the CPU in C (plait/native/src/conv.c): forward, backward and one decode step."""

from __future__ import annotations

import torch
from torch import Tensor

from plait import native
from plait.native import why_not as why_not  # for IMPLEMENTATIONS
from plait.ops.dispatch import outside_graphs

MAX_TAPS = 8  # of src/conv.c

INTEGERS = ("n_seqs", "channels", "taps", "tokens", "n_threads", "type", "column_type", "weight_type", "x_stride",
            "y_stride")  # fmt: skip
POINTERS = ("x", "weight", "bias", "cu_seqlens", "columns_in", "columns_out", "y", "slots")
BACKWARD_POINTERS = ("gy", "g_columns_out", "gx", "g_columns_in", "g_weight", "g_bias", "sums")


class ConvArgs(native.Arguments):
    """conv_args of src/conv.c, in its order."""

    _fields_ = native.fields(INTEGERS, POINTERS, ("n_slots", "gy_stride"), BACKWARD_POINTERS)


@outside_graphs
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, initial_columns: Tensor | None
) -> tuple[Tensor, Tensor]:
    inputs = (x, weight, bias, cu_seqlens, initial_columns)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return CausalConv1d.apply(*inputs)
    return _forward(*_ready(*inputs))


@outside_graphs
def causal_conv1d_update(x: Tensor, weight: Tensor, bias: Tensor | None, columns: Tensor, slots: Tensor) -> Tensor:
    """One token of each sequence: as many sequences of one token, their columns read and written in the pool."""
    if columns.dtype not in (torch.float32, torch.bfloat16) or not columns.is_contiguous():
        pool = columns[slots].to(x.dtype)
        y = causal_conv1d_update(x, weight, bias, pool, torch.arange(len(slots)))
        columns[slots] = pool.to(columns.dtype)
        return y
    x, weight, bias, cu_seqlens, _ = _ready(x, weight, bias, native.one_each(len(slots)), None)
    slots = native.dense(slots, torch.int64)
    y = torch.empty(x.shape, dtype=x.dtype)
    args = _arguments(x, weight, bias, cu_seqlens, columns, columns, y, slots)
    native.call("conv_forward", args)
    return y


class CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        ready = _ready(*inputs)
        ctx.save_for_backward(*ready)
        ctx.dtypes = [None if t is None else t.dtype for t in inputs]
        return _forward(*ready)

    @staticmethod
    def backward(ctx, gy, g_columns):  # type: ignore[no-untyped-def]
        grads = _backward(gy, g_columns, *ctx.saved_tensors)
        return tuple(None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True))


def _ready(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, initial_columns: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """The dtypes and layouts the kernels take; nothing is copied that has them."""
    if weight.shape[1] > MAX_TAPS:
        raise ValueError(
            f"d_conv={weight.shape[1]}: the native kernel takes at most {MAX_TAPS}; PLAIT_OPS=causal_conv1d=lagged"
        )
    kind = weight.dtype if weight.dtype in (torch.float32, torch.bfloat16) else torch.float32
    weight, bias = native.dense(weight, kind), None if bias is None else native.dense(bias, kind)
    columns = None if initial_columns is None else native.dense(initial_columns, x.dtype)
    return native.rows(x, x.dtype), weight, bias, native.dense(cu_seqlens, torch.int32), columns


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    columns_in: Tensor | None,
    columns_out: Tensor,
    y: Tensor,
    slots: Tensor | None,
) -> ConvArgs:
    types = native.TYPES[x.dtype], native.TYPES[columns_out.dtype], native.TYPES[weight.dtype]
    numbers = (
        len(cu_seqlens) - 1,
        *weight.shape,
        x.shape[0],
        torch.get_num_threads(),
        *types,
        x.stride(0),
        y.stride(0),
    )
    pointers = map(native.pointer, (x, weight, bias, cu_seqlens, columns_in, columns_out, y, slots))
    return ConvArgs(*numbers, *pointers, len(columns_out))


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, columns: Tensor | None
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype)
    final_columns = torch.empty(len(cu_seqlens) - 1, weight.shape[0], weight.shape[1] - 1, dtype=x.dtype)
    args = _arguments(x, weight, bias, cu_seqlens, columns, final_columns, y, None)
    native.call("conv_forward", args)
    return y, final_columns


def _backward(
    gy: Tensor,
    g_columns: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    columns: Tensor | None,
) -> tuple[Tensor | None, ...]:
    gy, g_columns = native.rows(gy, x.dtype), native.dense(g_columns, x.dtype)
    gx = torch.empty(x.shape, dtype=x.dtype)
    g_initial = None if columns is None else torch.empty_like(columns)
    channels, taps = weight.shape
    g_weight, g_bias = torch.empty(channels, taps), torch.empty(channels)
    sums = torch.empty(len(cu_seqlens) - 1, channels, taps + 1)
    args = _arguments(x, weight, bias, cu_seqlens, columns, g_columns, gx, None)
    args.gy_stride = gy.stride(0)
    args.point(
        gy=gy, g_columns_out=g_columns, gx=gx, g_columns_in=g_initial, g_weight=g_weight, g_bias=g_bias, sums=sums
    )
    native.call("conv_backward", args)
    return gx, g_weight, None if bias is None else g_bias, None, g_initial
