"""Causal attention over a paged cache, or over packed sequences, in plain Triton; forward only. No host sync.

One kernel for decode, chunked prefill and any mixture. A program takes BQ queries of one sequence and all query heads
that share one KV head, as ROWS = BQ * group rows of a tile, so that K and V are read once for the group. Query blocks
are found on the device: sequence i owns blocks from cu_seqlens[i] // BQ + i on. In decode the keys of a sequence are
split among several programs, and a second kernel joins their results in a fixed order: repeated runs are equal bit by
bit. Scores, softmax and accumulation are fp32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops import tuned
from plait.ops.attention import cudnn, sdpa
from plait.ops.attention.reference import OnHost
from plait.ops.launch import direct, next_power_of_2, on_device_of

LOG2E = tl.constexpr(1.4426950408889634)
LONG_CHUNK = 1024  # queries a sequence from which cuDNN is used


@direct
@triton.jit(do_not_specialize=["n_seqs", "max_pages"])
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, k_scales_ptr, v_scales_ptr, out_ptr, lse_ptr, table_ptr, cu_seqlens_ptr, context_ptr, n_seqs,
    max_pages, scale,
    PAGED: tl.constexpr, INT8: tl.constexpr, PAGE: tl.constexpr, N_HEADS: tl.constexpr, N_KV: tl.constexpr,
    D_HEAD: tl.constexpr,
    D: tl.constexpr, GROUP: tl.constexpr, BQ: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)

    low = block * 0  # the last sequence whose first block is not after this one
    high = n_seqs
    while high - low > 1:
        middle = (low + high) // 2
        starts_before = tl.load(cu_seqlens_ptr + middle) // BQ + middle <= block
        low = tl.where(starts_before, middle, low)
        high = tl.where(starts_before, high, middle)
    begin = tl.load(cu_seqlens_ptr + low).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + low + 1) - begin).to(tl.int32)
    first = (block - (begin // BQ + low).to(tl.int32)) * BQ
    if first < length:
        before = 0
        if PAGED:
            before = tl.load(context_ptr + low).to(tl.int32)

        r = tl.arange(0, ROWS)
        d = tl.arange(0, D)
        query = first + r // GROUP  # in its sequence; the tile's rows past BQ * GROUP repeat a later query, unstored
        head = kv_head * GROUP + r % GROUP
        stored = (r < BQ * GROUP) & (query < length)
        q_row = (begin + query) * N_HEADS + head
        q = tl.load(q_ptr + q_row[:, None] * D_HEAD + d[None, :], stored[:, None] & (d < D_HEAD)[None, :], other=0.0)

        total = before + tl.minimum(first + BQ, length)  # keys that the block's last query sees
        per_split = tl.cdiv(tl.cdiv(total, SPLITS), BN) * BN
        from_key = split * per_split
        to_key = tl.minimum(from_key + per_split, total)

        best = tl.full([ROWS], -float("inf"), tl.float32)
        norm = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, D], tl.float32)
        n = tl.arange(0, BN)
        for start in range(from_key, to_key, BN):
            key = start + n
            there = key < to_key
            if PAGED:
                page = tl.load(table_ptr + low.to(tl.int64) * max_pages + key // PAGE, there, other=0).to(tl.int64)
                k_row = (page * PAGE + key % PAGE) * N_KV + kv_head
            else:
                k_row = (begin + key) * N_KV + kv_head
            inside = there[:, None] & (d < D_HEAD)[None, :]
            k = tl.load(k_ptr + k_row[:, None] * D_HEAD + d[None, :], inside, other=0.0)
            s = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * (scale * LOG2E)
            if INT8:
                s *= tl.load(k_scales_ptr + k_row, there, other=0.0)[None, :]
            s = tl.where(there[None, :] & (key[None, :] <= (before + query)[:, None]), s, -float("inf"))
            new_best = tl.maximum(best, tl.max(s, 1))
            safe = tl.where(new_best == -float("inf"), 0.0, new_best)  # a row that has seen no key yet
            p = tl.exp2(s - safe[:, None])
            decay = tl.exp2(best - safe)
            norm = norm * decay + tl.sum(p, 1)
            v = tl.load(v_ptr + k_row[:, None] * D_HEAD + d[None, :], inside, other=0.0)
            if INT8:
                p *= tl.load(v_scales_ptr + k_row, there, other=0.0)[None, :]
            acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc * decay[:, None], input_precision="ieee")
            best = new_best

        at = q_row * SPLITS + split
        empty = norm == 0.0
        norm = tl.where(empty, 1.0, norm)
        out = acc / norm[:, None]
        where = stored[:, None] & (d < D_HEAD)[None, :]
        tl.store(out_ptr + at[:, None] * D_HEAD + d[None, :], out.to(out_ptr.dtype.element_ty), where)
        if SPLITS > 1:
            tl.store(lse_ptr + at, tl.where(empty, -float("inf"), best + tl.log2(norm)), stored)


@direct
@triton.jit
def _join_kernel(parts_ptr, lse_ptr, out_ptr, D_HEAD: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """out[row] = sum over splits of parts weighted by 2^lse."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, D)
    lse = tl.load(lse_ptr + row * SPLITS + s)
    weight = tl.exp2(lse - tl.max(lse, 0))
    at = parts_ptr + (row * SPLITS + s)[:, None] * D_HEAD + d[None, :]
    parts = tl.load(at, (d < D_HEAD)[None, :], other=0.0)
    out = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out_ptr + row * D_HEAD + d, out.to(out_ptr.dtype.element_ty), d < D_HEAD)


@functools.cache
def _n_programs(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


class Cut(NamedTuple):
    """How a decode step is cut: programs a multiprocessor, keys of a tile, warps, stages of the pipeline."""

    programs: int = 4
    keys: int = 64
    warps: int = 4
    stages: int = 3


def cut_for(q: Tensor, n_kv: int, n_seqs: int) -> Cut | None:
    """As measured for decode steps on this device with these heads."""
    measured = tuned.setting("attention_decode", q.device, (q.shape[1], n_kv, q.shape[2]), n_seqs)
    return Cut(*measured) if measured else None


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    page_table: Tensor | None,
    context_lens: Tensor | None,
    scales: tuple[Tensor, Tensor] | None = None,
    *,
    cut: Cut | None = None,
) -> Tensor:
    tokens, n_heads, d_head = q.shape
    n_kv, n_seqs = k.shape[-2], cu_seqlens.shape[0] - 1
    group = n_heads // n_kv
    decode = tokens <= 4 * n_seqs
    bq = max(1, (16 if decode else 128) // group)
    if decode and tokens == n_seqs:
        bq = 1
    rows = max(16, next_power_of_2(bq * group))
    blocks = tokens // bq + n_seqs
    splits = 1
    if cut is None and decode and page_table is not None:
        cut = cut_for(q, n_kv, n_seqs)
    cut = cut or Cut(warps=4 if rows < 64 else 8)
    if page_table is not None and decode:  # enough programs to draw the whole bandwidth, if the table leaves room
        most = page_table.shape[1] * k.shape[1] / 128
        wanted = min(cut.programs * _n_programs(q.device) / (n_seqs * n_kv), most, 128)
        splits = 2 ** round(math.log2(max(wanted, 1)))  # a power of two: each number is compiled
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    parts, lse = out, out
    if splits > 1:
        parts = torch.empty(tokens, n_heads, splits, d_head, dtype=torch.float32, device=q.device)
        lse = torch.empty(tokens, n_heads, splits, dtype=torch.float32, device=q.device)
    d = max(16, next_power_of_2(d_head))
    _attention_kernel[(blocks, n_kv, splits)](
        q.contiguous(), k.contiguous(), v.contiguous(), *(scales or (lse, lse)), parts, lse,
        cu_seqlens if page_table is None else page_table.contiguous(), cu_seqlens,
        cu_seqlens if context_lens is None else context_lens, n_seqs,
        0 if page_table is None else page_table.shape[1], d_head**-0.5,
        PAGED=page_table is not None, INT8=scales is not None,
        PAGE=k.shape[1], N_HEADS=n_heads, N_KV=n_kv, D_HEAD=d_head, D=d, GROUP=group,
        BQ=bq, ROWS=rows, BN=cut.keys, SPLITS=splits, num_warps=cut.warps,
        num_stages=cut.stages,
    )  # fmt: skip
    if splits > 1:
        _join_kernel[(tokens * n_heads,)](parts, lse, out, D_HEAD=d_head, D=d, SPLITS=splits, num_warps=4)
    return out


@direct
@triton.jit(do_not_specialize=["n_seqs", "max_pages"])
def _write_kernel(
    k_ptr, v_ptr, k_pages_ptr, v_pages_ptr, k_scales_ptr, v_scales_ptr, table_ptr, cu_seqlens_ptr, context_ptr, n_seqs,
    max_pages, k_stride, v_stride,
    INT8: tl.constexpr, PAGE: tl.constexpr, N_KV: tl.constexpr, D_HEAD: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One token's keys and values."""
    token = tl.program_id(0)
    low = token * 0  # the last sequence that begins at or before this token
    high = n_seqs
    while high - low > 1:
        middle = (low + high) // 2
        begun = tl.load(cu_seqlens_ptr + middle) <= token
        low = tl.where(begun, middle, low)
        high = tl.where(begun, high, middle)
    position = (tl.load(context_ptr + low) + token - tl.load(cu_seqlens_ptr + low)).to(tl.int32)
    page = tl.load(table_ptr + low.to(tl.int64) * max_pages + position // PAGE).to(tl.int64)
    head = tl.arange(0, H)
    d = tl.arange(0, D)
    there = (head < N_KV)[:, None] & (d < D_HEAD)[None, :]
    own = head[:, None] * D_HEAD + d[None, :]
    to_row = (page * PAGE + position % PAGE) * N_KV
    k = tl.load(k_ptr + token.to(tl.int64) * k_stride + own, there, other=0.0)
    v = tl.load(v_ptr + token.to(tl.int64) * v_stride + own, there, other=0.0)
    if INT8:
        k, k_scale = _quantized(k.to(tl.float32))
        v, v_scale = _quantized(v.to(tl.float32))
        tl.store(k_scales_ptr + to_row + head, k_scale, head < N_KV)
        tl.store(v_scales_ptr + to_row + head, v_scale, head < N_KV)
    tl.store(k_pages_ptr + to_row * D_HEAD + own, k.to(k_pages_ptr.dtype.element_ty), there)
    tl.store(v_pages_ptr + to_row * D_HEAD + own, v.to(v_pages_ptr.dtype.element_ty), there)


@triton.jit
def _quantized(rows):
    """Rows in units of their scales, rounded to even, and the scales: as `reference.quantize`."""
    scale = tl.div_rn(tl.max(tl.abs(rows), 1), 127.0)
    steps = tl.div_rn(rows, tl.maximum(scale, 1e-30)[:, None])
    steps = (steps + 12582912.0) - 12582912.0  # 1.5 x 2^23: what is added to it loses its fraction
    return tl.minimum(tl.maximum(steps, -127.0), 127.0), scale


def write_pages(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, cu_seqlens: Tensor,
    context_lens: Tensor, k_scales: Tensor | None, v_scales: Tensor | None,
) -> None:  # fmt: skip
    tokens, n_kv, d_head = k.shape
    k, v = (t if t.stride()[1:] == (d_head, 1) else t.contiguous() for t in (k, v))
    scales = (k, v) if k_scales is None or v_scales is None else (k_scales, v_scales)
    with on_device_of(k):
        _write_kernel[(tokens,)](
            k, v, k_pages, v_pages, *scales, page_table.contiguous(), cu_seqlens, context_lens, len(context_lens),
            page_table.shape[1], k.stride(0), v.stride(0),
            INT8=k_scales is not None, PAGE=k_pages.shape[1], N_KV=n_kv, D_HEAD=d_head,
            H=next_power_of_2(n_kv), D=next_power_of_2(d_head), num_warps=4,
        )  # fmt: skip


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, bounds: list[int] | None = None) -> Tensor:
    if cu_seqlens.shape[0] == 2 and q.is_cuda:  # one sequence: PyTorch's kernels are faster
        return sdpa.attention(q, k, v, cu_seqlens, bounds)
    return _launch(q, k, v, cu_seqlens, None, None)


def paged_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, cu_seqlens: Tensor, context_lens: Tensor,
    k_scales: Tensor | None = None, v_scales: Tensor | None = None, on_host: OnHost | None = None,
) -> Tensor:  # fmt: skip
    """Long chunks at the end, where decode rows come first, go through cuDNN, which is twice as fast, if `on_host` says
    their lengths; without it only where all are long, and then the host waits to read them.
    """
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise ValueError("k_pages and v_pages must each be contiguous: a copy of the cache at every call would be slow")
    scales = None if k_scales is None or v_scales is None else (k_scales.contiguous(), v_scales.contiguous())
    n = n_seqs = context_lens.shape[0]  # sequences for the kernel here
    if q.is_cuda and q.dtype != torch.float32 and (on_host is not None or q.shape[0] >= LONG_CHUNK * n_seqs):
        on_host = cudnn.lengths(cu_seqlens, context_lens, on_host)
        n = _before_long_chunks(on_host[0])
    if n == n_seqs:
        return _launch(q, k_pages, v_pages, cu_seqlens, page_table, context_lens, scales)
    assert on_host is not None
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if n:
        here = on_host[0][n]
        of_first = cu_seqlens[: n + 1], page_table[:n], context_lens[:n]
        out[:here] = _launch(q[:here], k_pages, v_pages, *of_first, scales)
    cudnn.write(out, n, q, k_pages, v_pages, page_table, *on_host, k_scales, v_scales)
    return out


def _before_long_chunks(bounds: Sequence[int]) -> int:
    """How many sequences come before those at the end that each have LONG_CHUNK queries or more."""
    n = len(bounds) - 1
    while n and bounds[n] - bounds[n - 1] >= LONG_CHUNK:
        n -= 1
    return n
