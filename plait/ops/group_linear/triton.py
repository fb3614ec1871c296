"""Few rows: a program takes ROWS rows of a weight and one of x; int4 words are read once and their eight numbers
multiplied where they lie. More rows: the weights are widened by a kernel, then multiplied by the library.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.group_linear import FEW_ROWS, reference
from plait.ops.launch import cdiv, next_power_of_2, on_device_of

ROWS, WORDS, BYTES = 8, 256, 1024  # of a program's tile: rows, and int4 words or bytes of each


@triton.jit
def _nibble(words, i: tl.constexpr):
    """The i-th int4 of each word as fp32: under the exponent of 2^23 it is worth 2^23 + 8 more than itself."""
    return ((((words >> (4 * i)) & 15) | 0x4B000000).to(tl.float32, bitcast=True)) - 8388616.0


@triton.jit
def _few_rows_kernel(
    x_ptr, values_ptr, scale_ptr, experts_ptr, y_ptr, n_out, width, group,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, INT4: tl.constexpr, HAS_EXPERTS: tl.constexpr,
):  # fmt: skip
    """Grid: (rows of x, n_out / ROWS): programs beside one another read the same weights."""
    x_row, row = tl.program_id(0).to(tl.int64), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    weight_row = row.to(tl.int64)
    if HAS_EXPERTS:
        weight_row += tl.load(experts_ptr + x_row).to(tl.int64) * n_out
    in_row = row < n_out
    per_word: tl.constexpr = 8 if INT4 else 1
    n_words, n_groups = width // per_word, width // group
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, n_words, BLOCK):
        word = first + tl.arange(0, BLOCK)
        there = in_row[:, None] & (word < n_words)[None, :]
        w_at = values_ptr + weight_row[:, None] * n_words + word[None, :]
        w = tl.load(w_at, there, other=0) if INT4 else tl.load(w_at, there, other=0.0)  # fp8 has no cast from an int
        scale = tl.load(
            scale_ptr + weight_row[:, None] * n_groups + (word * per_word // group)[None, :], there, other=0.0
        )
        x_at = x_ptr + x_row * width + word * per_word
        if INT4:
            products = tl.zeros([ROWS, BLOCK], tl.float32)
            for i in tl.static_range(8):
                x = tl.load(x_at + i, word < n_words, other=0.0).to(tl.float32)
                products += _nibble(w, i) * x[None, :]
        else:
            x = tl.load(x_at, word < n_words, other=0.0).to(tl.float32)
            products = w.to(tl.float32) * x[None, :]
        sums += products * scale
    y = tl.sum(sums, 1)
    tl.store(y_ptr + x_row * n_out + row, y.to(y_ptr.dtype.element_ty), in_row)


@triton.jit
def _widen_kernel(values_ptr, scale_ptr, out_ptr, width, group, BLOCK: tl.constexpr, INT4: tl.constexpr):
    """Grid: (rows, width / BLOCK). A word of int4 is read by the eight lanes that write its numbers."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if INT4:
        words = tl.load(values_ptr + row * (width // 8) + k // 8, k < width, other=0)
        wide = ((words >> (4 * (k % 8))) & 15).to(tl.float32) - 8.0
    else:
        wide = tl.load(values_ptr + row * width + k, k < width, other=0.0).to(tl.float32)
    wide *= tl.load(scale_ptr + row * (width // group) + k // group, k < width, other=0.0)
    tl.store(out_ptr + row * width + k, wide.to(out_ptr.dtype.element_ty), k < width)


def group_linear(x: Tensor, values: Tensor, scale: Tensor, expert_ids: Tensor | None) -> Tensor:
    if x.shape[0] > FEW_ROWS:
        if expert_ids is None:
            return x @ widened(values, scale, x.dtype).T
        return reference.group_linear(x, values, scale, expert_ids)
    x, values, scale = x.contiguous(), values.contiguous(), scale.contiguous()
    int4 = values.dtype == torch.int32
    (n_rows, width), n_out = x.shape, values.shape[-2]
    group = width // _n_groups(values, scale)
    y = x.new_empty(n_rows, n_out)
    block = min(WORDS if int4 else BYTES, next_power_of_2(values.shape[-1]))
    with on_device_of(x):
        _few_rows_kernel[n_rows, cdiv(n_out, ROWS)](
            x, values, scale, expert_ids, y, n_out, width, group,
            ROWS=ROWS, BLOCK=block, INT4=int4, HAS_EXPERTS=expert_ids is not None,
        )  # fmt: skip
    return y


def widened(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    values, scale = values.contiguous(), scale.contiguous()
    int4 = values.dtype == torch.int32
    width = values.shape[-1] * (8 if int4 else 1)
    out = scale.new_empty(*values.shape[:-1], width, dtype=dtype)
    block = min(BYTES, next_power_of_2(width))
    with on_device_of(scale):
        _widen_kernel[out.numel() // width, cdiv(width, block)](
            values, scale, out, width, width // _n_groups(values, scale), BLOCK=block, INT4=int4
        )
    return out


def _n_groups(values: Tensor, scale: Tensor) -> int:
    return 1 if scale.dim() < values.dim() else scale.shape[-1]
