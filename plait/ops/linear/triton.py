"""x W^T for few tokens in plain Triton, weights bf16 or int8 with a scale per row: bound by the bytes of the weights.

Up to FEW_TOKENS a matrix-vector kernel: a program takes ROWS rows, a thread 16 bytes of one at a time, and the products
of those 16 bytes are added up in the thread before anything else. Above that, weights that are not int8 go to the
library, and int8 ones to a tiled product that widens them on their way to the tensor cores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops import tuned
from plait.ops.launch import cdiv, direct, next_power_of_2, on_device_of, overlaps, speaks_ptx
from plait.ops.linear import matmul
from plait.ops.operator import operator

FEW_TOKENS = 2  # at 4 the library's product was faster for bf16, the tiled one for int8 (H100)
WIDEST = 8192  # columns a program reads at a time
ELEMENTS = 16384  # of a program's tile, at 4 warps
PROGRAMS = 264  # two to a multiprocessor of an H100: fewer would leave bandwidth unused


@direct
@triton.jit
def _few_tokens_kernel(
    x_ptr, w_ptr, scale_ptr, y_ptr, n_out, x_stride,
    WIDTH: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, BK: tl.constexpr, VECTOR: tl.constexpr,
    INT8: tl.constexpr, EARLY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """EARLY: the first weights are fetched while the kernel before this one ends."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_row = row[:, None, None] < n_out
    k = tl.arange(0, BK // VECTOR)[None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, :]
    w_at = w_ptr + row.to(tl.int64)[:, None, None] * WIDTH + k
    if OVERLAP and not EARLY:
        tl.extra.cuda.gdc_wait()
    w = tl.load(w_at, in_row & (k < WIDTH), other=0)
    if OVERLAP and EARLY:
        tl.extra.cuda.gdc_wait()
    sums = ()
    for _ in tl.static_range(TOKENS):
        sums = sums + (tl.zeros([ROWS, BK // VECTOR], tl.float32),)
    for first in tl.static_range(0, WIDTH, BK):
        wide = w.to(tl.float32)
        if first + BK < WIDTH:
            w = tl.load(w_at + (first + BK), in_row & (first + BK + k < WIDTH), other=0)
        added = ()
        for token in tl.static_range(TOKENS):
            x = tl.load(x_ptr + token * x_stride + first + k, first + k < WIDTH, other=0).to(tl.float32)
            added = added + (sums[token] + tl.sum(wide * x, 2),)
        sums = added
    for token in tl.static_range(TOKENS):
        y = tl.sum(sums[token], 1)
        if INT8:
            y *= tl.load(scale_ptr + row, row < n_out, other=0.0)
        tl.store(y_ptr + token * n_out + row, y.to(y_ptr.dtype.element_ty), row < n_out)


@triton.jit
def _of_bytes(w, PTX: tl.constexpr):
    """The four int8 of each word as fp32. A byte under the exponent of 2^23 is worth 2^23 more than itself: one
    subtraction, where a conversion instruction runs at a quarter of the rate.
    """
    w = w ^ -2139062144  # 0x80808080: e + 128 in every byte
    if PTX:
        b0, b1, b2, b3 = tl.inline_asm_elementwise(
            """prmt.b32 $0, $4, 0x4B000000, 0x7440;
            prmt.b32 $1, $4, 0x4B000000, 0x7441;
            prmt.b32 $2, $4, 0x4B000000, 0x7442;
            prmt.b32 $3, $4, 0x4B000000, 0x7443;""",
            "=r,=r,=r,=r,r", [w], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        b0, b1, b2, b3 = w & 0xFF, (w >> 8) & 0xFF, (w >> 16) & 0xFF, (w >> 24) & 0xFF
        b0, b1, b2, b3 = b0 | 0x4B000000, b1 | 0x4B000000, b2 | 0x4B000000, b3 | 0x4B000000
    e0 = b0.to(tl.float32, bitcast=True) - 8388736.0
    e1 = b1.to(tl.float32, bitcast=True) - 8388736.0
    e2 = b2.to(tl.float32, bitcast=True) - 8388736.0
    e3 = b3.to(tl.float32, bitcast=True) - 8388736.0
    return e0, e1, e2, e3


@triton.jit
def _words(w_ptr, row, n_out, word, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """The words of ROWS rows, each a tensor of its own: side by side in one they would get a layout x can't share."""
    ws = ()
    for r in tl.static_range(ROWS):
        at = w_ptr + (row + r).to(tl.int64) * (WIDTH // 4) + word
        ws = ws + (tl.load(at, (word < WIDTH // 4) & (row + r < n_out), other=0),)
    return ws


@triton.jit
def _side_by_side(columns, ROWS: tl.constexpr):
    """ROWS vectors [n] as [n, ROWS]."""
    if ROWS == 1:
        return tl.expand_dims(columns[0], 1)
    elif ROWS == 2:
        return tl.join(columns[0], columns[1])
    else:
        four = tl.join(tl.join(columns[0], columns[2]), tl.join(columns[1], columns[3]))
        return tl.reshape(four, [four.shape[0], 4])


@direct
@triton.jit
def _few_tokens_int8_kernel(
    x_ptr, w_ptr, scale_ptr, y_ptr, n_out, x_stride,
    WIDTH: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, BK: tl.constexpr, EARLY: tl.constexpr,
    OVERLAP: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """ROWS (1, 2 or 4) of int8 weights as words of four, times bf16 x as words of four. WIDTH is a multiple of 16."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0) * ROWS
    word = tl.arange(0, BK // 16)[:, None] * 4 + tl.arange(0, 4)[None, :]
    if OVERLAP and not EARLY:
        tl.extra.cuda.gdc_wait()
    ws = _words(w_ptr, row, n_out, word, WIDTH, ROWS)
    if OVERLAP and EARLY:
        tl.extra.cuda.gdc_wait()
    sums = ()
    for _ in tl.static_range(TOKENS):
        sums = sums + (tl.zeros([BK // 16, ROWS], tl.float32),)
    for first in tl.static_range(0, WIDTH // 4, BK // 4):
        now = ws
        if first + BK // 4 < WIDTH // 4:
            ws = _words(w_ptr, row, n_out, first + BK // 4 + word, WIDTH, ROWS)
        added = ()
        for token in tl.static_range(TOKENS):
            four = tl.load(x_ptr + token * (x_stride // 4) + first + word, first + word < WIDTH // 4, other=0)
            low, high = four.to(tl.int32), (four >> 32).to(tl.int32)
            x0, x1 = (low << 16).to(tl.float32, bitcast=True), (low & -65536).to(tl.float32, bitcast=True)
            x2, x3 = (high << 16).to(tl.float32, bitcast=True), (high & -65536).to(tl.float32, bitcast=True)
            products = ()
            for r in tl.static_range(ROWS):
                e0, e1, e2, e3 = _of_bytes(now[r], PTX)
                products = products + (tl.sum(e0 * x0 + e1 * x1 + (e2 * x2 + e3 * x3), 1),)
            added = added + (sums[token] + _side_by_side(products, ROWS),)
        sums = added
    r = row + tl.arange(0, ROWS)
    scale = tl.load(scale_ptr + r, r < n_out, other=0.0)
    for token in tl.static_range(TOKENS):
        y = tl.sum(sums[token], 0) * scale
        tl.store(y_ptr + token * n_out + r, y.to(y_ptr.dtype.element_ty), r < n_out)


@direct
@triton.jit(do_not_specialize=["tokens"])
def _int8_kernel(
    x_ptr, w_ptr, scale_ptr, y_ptr, tokens, n_out, x_stride,
    WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Token tiles fastest, so that neighbours share their weights."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x_at = x_ptr + m[:, None] * x_stride + k[None, :]
    w_at = w_ptr + n.to(tl.int64)[None, :] * WIDTH + k[:, None]
    y = tl.zeros([BM, BN], tl.float32)
    for first in range(0, WIDTH, BK):
        inside = k < WIDTH - first
        x = tl.load(x_at + first, (m < tokens)[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_at + first, inside[:, None] & (n < n_out)[None, :], other=0)
        y = tl.dot(x, w.to(x.dtype), y, input_precision="ieee")
    y *= tl.load(scale_ptr + n, n < n_out, other=0.0)[None, :]
    there = (m < tokens)[:, None] & (n < n_out)[None, :]
    tl.store(y_ptr + m[:, None] * n_out + n[None, :], y.to(y_ptr.dtype.element_ty), there)


def _few_tokens(
    x: Tensor, weight: Tensor, scale: Tensor | None, *, cut: tuple[int, int] | None = None
) -> Tensor:  # fmt: skip
    """x [tokens, width], tokens at most FEW_TOKENS. Weights that are parameters count as constants (see launch.py).

    cut: rows and warps of a program of the int8 kernel.
    """
    (tokens, width), n_out = x.shape, weight.shape[0]
    y = x.new_empty(tokens, n_out)
    BK = min(max(next_power_of_2(width), 16), WIDEST)
    overlap = overlaps(x)
    how = {"WIDTH": width, "TOKENS": tokens, "BK": BK, "OVERLAP": overlap, **({"launch_pdl": True} if overlap else {}),
           "EARLY": isinstance(weight, torch.nn.Parameter)}  # fmt: skip
    with on_device_of(x):
        if scale is not None and x.dtype == torch.bfloat16 and width % 16 == 0 and _in_words(x):
            rows, warps = cut or (4, max(1, min(8, BK // 1024)))
            _few_tokens_int8_kernel[(cdiv(n_out, rows),)](
                x.view(torch.int64), weight.view(torch.int32), scale, y, n_out, x.stride(0), ROWS=rows,
                PTX=speaks_ptx(x), num_warps=warps, **how,
            )  # fmt: skip
            return y
        ROWS = min(max(1, ELEMENTS // BK), 16)
        while ROWS > 1 and cdiv(n_out, ROWS) < PROGRAMS:
            ROWS //= 2
        _few_tokens_kernel[(cdiv(n_out, ROWS),)](
            x, weight, weight if scale is None else scale, y, n_out, x.stride(0), ROWS=ROWS,
            VECTOR=16 // weight.element_size(), INT8=scale is not None, num_warps=max(1, min(4, ROWS * BK // 2048)),
            **how,
        )  # fmt: skip
    return y


def _in_words(x: Tensor) -> bool:
    """Whether every row begins on a word of four bf16."""
    return x.stride(0) % 4 == 0 and x.storage_offset() % 4 == 0


def tiles_for(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Tokens, rows and k-step of a tile, warps and stages: as measured for this device and these sizes, or a guess."""
    measured = tuned.setting("linear_int8", x.device, tuple(weight.shape), x.shape[0])
    if measured:
        return tuple(measured)
    tokens = x.shape[0]
    return (16, 64, 128, 4, 4) if tokens <= 16 else (64, 64, 64, 4, 4) if tokens <= 64 else (128, 128, 64, 8, 3)


def _many_tokens_int8(x: Tensor, weight: Tensor, scale: Tensor, *, tile: tuple[int, ...] | None = None) -> Tensor:
    (tokens, width), n_out = x.shape, weight.shape[0]
    BM, BN, BK, warps, stages = tile or tiles_for(x, weight)
    y = x.new_empty(tokens, n_out)
    with on_device_of(x):
        _int8_kernel[(cdiv(tokens, BM), cdiv(n_out, BN))](
            x, weight, scale, y, tokens, n_out, x.stride(0), WIDTH=width, BM=BM, BN=BN, BK=BK,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return y


def linear(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    tokens = x.numel() // x.shape[-1]
    differentiable = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    few = 0 < tokens <= FEW_TOKENS
    if differentiable or not (few or (scale is not None and tokens)) or not weight.is_contiguous():
        return matmul.linear(x, weight, scale)
    return _linear(x, weight, scale)


@operator("plait::linear_triton")
def _linear(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    if scale is not None:
        scale = scale.contiguous()
    if rows.shape[0] <= FEW_TOKENS:
        y = _few_tokens(rows, weight, scale)
    else:
        assert scale is not None
        y = _many_tokens_int8(rows, weight, scale)
    return y.view(*x.shape[:-1], weight.shape[0])


@_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
