"""Products of many tokens in the library (oneDNN), with what it can't do around them in C (plait/native/src/many.c).

int8 weights are widened a block of rows at a time into memory that is used again and stays in cache: no full-precision
copy of a matrix exists, and reading int8 costs less than reading bf16. Row scales, and SwiGLU's gate, are one pass over
a block's product, in fp32.
"""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from plait import native

BLOCK_BYTES = 16 << 20  # of widened weights
INT32 = 3  # of src/many.c
LEAST_ROWS = 17  # that the library's int8 product takes


class WidenArgs(native.Arguments):
    """widen_args of src/many.c, in its order; and so on."""

    _fields_ = native.fields(("n", "y_type", "n_threads"), ("x", "y"))


class QuantizeArgs(native.Arguments):
    _fields_ = native.fields(("n_rows", "width", "x_stride", "type", "n_threads"), ("x", "y", "scale"))


class FinishArgs(native.Arguments):
    _fields_ = native.fields(
        ("n_rows", "n", "product_stride", "y_stride", "product_type", "y_type", "n_threads"),
        ("product", "scale", "up_scale", "x_scale", "y"),
        ("gated",),
    )


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, *, round_activations: bool = False) -> Tensor:
    """x [tokens, width] times the transpose of weight [n_out, width], int8 if it has a scale [n_out]."""
    if scale is None:
        return F.linear(x, weight)
    y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)
    for rows, product, x_scale in _products(x, weight, round_activations):
        _finish(product, scale[rows], None, x_scale, y[:, rows])
    return y


def swiglu(
    x: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None, down_scale: Tensor | None,
    *, round_activations: bool = False,
) -> Tensor:  # fmt: skip
    """down(silu(gate(x)) * up(x)): x [tokens, d_model], gate_up [2 * d_ff, d_model], down [d_model, d_ff]."""
    d_ff = down.shape[1]
    hidden = torch.empty(x.shape[0], d_ff, dtype=x.dtype)
    if gate_up_scale is None:
        _finish(F.linear(x, gate_up), None, None, None, hidden, gated=True)
        return F.linear(hidden, down)
    both = gate_up.unflatten(0, (2, d_ff))
    for rows, product, x_scale in _products(x, both, round_activations):
        _finish(product, gate_up_scale[:d_ff][rows], gate_up_scale[d_ff:][rows], x_scale, hidden[:, rows], gated=True)
    return linear(hidden, down, down_scale, round_activations=round_activations)


def _products(x: Tensor, weight: Tensor, round_activations: bool):  # type: ignore[no-untyped-def]
    """(rows, x times their transpose, x's scales) for blocks of int8 rows [..., n_out, width]; of stacked matrices the
    products lie side by side.
    """
    *stacked, n_out, width = weight.shape
    n_stacked = stacked[0] if stacked else 1
    x, x_scale = quantized(x) if round_activations else (x, None)
    n_rows = min(n_out, max(16, BLOCK_BYTES // (width * n_stacked * x.element_size())))
    wide = _scratch(n_stacked * n_rows * width, x.dtype).view(-1, width)
    for first in range(0, n_out, n_rows):
        rows = slice(first, min(first + n_rows, n_out))
        count = rows.stop - first
        parts = [matrix[rows] for matrix in (weight if stacked else weight[None])]
        if round_activations:
            products = [torch._int_mm(x, part.T) for part in parts]
            yield rows, products[0] if len(parts) == 1 else torch.cat(products, 1), x_scale
            continue
        for i, part in enumerate(parts):
            to = wide[i * count : (i + 1) * count]
            numbers = part.numel(), native.TYPES[x.dtype], torch.get_num_threads()
            native.call("widen", WidenArgs(*numbers, part.data_ptr(), to.data_ptr()))
        yield rows, F.linear(x, wide[: len(parts) * count]), None


_kept = threading.local()


def _scratch(n: int, dtype: torch.dtype) -> Tensor:
    """Memory that this thread keeps from call to call: touching fresh pages costs more than widening into them."""
    n_bytes = n * dtype.itemsize
    if getattr(_kept, "memory", None) is None or len(_kept.memory) < n_bytes:
        with torch.inference_mode(False):
            _kept.memory = torch.empty(max(n_bytes, BLOCK_BYTES), dtype=torch.uint8)
    return _kept.memory[:n_bytes].view(dtype)


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows rounded to int8, at least LEAST_ROWS of them (those added are zero), and their fp32 scales."""
    x = native.rows(x, x.dtype)
    n_rows = max(len(x), LEAST_ROWS)
    y, scale = torch.zeros(n_rows, x.shape[1], dtype=torch.int8), torch.empty(n_rows)
    args = QuantizeArgs(*x.shape, x.stride(0), native.TYPES[x.dtype], torch.get_num_threads(),
                        x.data_ptr(), y.data_ptr(), scale.data_ptr())  # fmt: skip
    native.call("quantize", args)
    return y, scale


def _finish(
    product: Tensor, scale: Tensor | None, up_scale: Tensor | None, x_scale: Tensor | None, y: Tensor,
    *, gated: bool = False,
) -> None:  # fmt: skip
    """Writes y [tokens, n], a slice of columns, from the product's first rows."""
    kind = INT32 if product.dtype == torch.int32 else native.TYPES[product.dtype]
    args = FinishArgs(
        *y.shape, product.stride(0), y.stride(0), kind, native.TYPES[y.dtype], torch.get_num_threads(),
        *map(native.pointer, (product, scale, up_scale, x_scale, y)), gated,
    )  # fmt: skip
    native.call("finish", args)
