"""RMSNorm on the CPU in C (plait/native/src/norm.c): forward and backward."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from plait import native
from plait.native import why_not as why_not  # for IMPLEMENTATIONS
from plait.ops.dispatch import outside_graphs
from plait.ops.rms_norm import reference

MAX_SUMS = 64  # of src/norm.c

INTEGERS = ("n_rows", "width", "x_stride", "type", "weight_type", "y_type", "n_threads")


class NormArgs(native.Arguments):
    """norm_args of src/norm.c, in its order."""

    _fields_ = [  # noqa: RUF012  ctypes wants a list
        *native.fields(INTEGERS, ("x", "weight", "y")),
        ("eps", ctypes.c_double),
        *native.fields(("residual_stride",), ("residual", "sum", "gy", "gx", "g_weight", "sums")),
    ]


@outside_graphs
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return reference.rms_norm(x, weight, eps)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return RMSNorm.apply(x, weight, eps)
    return _forward(x, weight, eps)


@outside_graphs
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Both in one pass where no gradient is wanted."""
    fused = x.dtype == residual.dtype and x.shape == residual.shape and x.dim() == 2 and residual.stride(1) == 1
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, residual, weight))
    if wanted or not fused or weight.dtype not in (torch.float32, torch.bfloat16):
        added = x + residual
        return rms_norm(added, weight, eps), added
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
    added = torch.empty(x.shape, dtype=x.dtype)
    args, flat = _arguments(x, weight, y.dtype, eps)
    args.residual_stride = residual.stride(0)
    args.point(y=y, residual=residual, sum=added)
    native.call("norm_forward", args)
    del flat
    return y, added


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _forward(x, weight, eps)

    @staticmethod
    def backward(ctx, gy):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        gx, g_weight = _backward(gy, x, weight, ctx.eps)
        return gx, g_weight, None


def _arguments(x: Tensor, weight: Tensor, y_type: torch.dtype, eps: float) -> tuple[NormArgs, Tensor]:
    """The arguments but for y, and x as rows that may lie apart (a slice of a wider product)."""
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    flat, weight = native.rows(flat, x.dtype), native.dense(weight, weight.dtype)
    types = (native.TYPES[x.dtype], native.TYPES[weight.dtype], native.TYPES[y_type])
    numbers = (*flat.shape, flat.stride(0), *types, torch.get_num_threads())
    return NormArgs(*numbers, flat.data_ptr(), weight.data_ptr(), None, eps), flat


def _forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
    args, flat = _arguments(x, weight, y.dtype, eps)
    args.y = y.data_ptr()
    native.call("norm_forward", args)
    del flat  # alive until here: the kernel reads it
    return y


def _backward(gy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    gy = gy.contiguous()
    gx = torch.empty(x.shape, dtype=x.dtype)
    g_weight, sums = torch.empty(x.shape[-1]), torch.empty(MAX_SUMS, x.shape[-1])
    args, flat = _arguments(x, weight, gy.dtype, eps)
    args.point(gy=gy, gx=gx, g_weight=g_weight, sums=sums)
    native.call("norm_backward", args)
    del flat
    return gx, g_weight.to(weight.dtype)
