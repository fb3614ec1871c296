"""Mixture-of-experts kernels in plain Triton: routing, sorting by expert, grouped products, matrix-vector products,
combination.

Words used here: an *entry* is one (token, choice) pair, number token * top_k + choice; a *row* is its place once
entries are sorted by expert, each expert's rows padded to a multiple of `align`; a *block* is `align` rows, all of one
expert.

Nothing here reads a device number on the host, so a whole layer is captured in one CUDA graph. No atomics: repeated
runs are equal bit by bit. Every product accumulates in fp32.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops import tuned
from plait.ops.launch import cdiv, direct, next_power_of_2, overlaps

# ---- routing --------------------------------------------------------------------------------------------------------


@direct
@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(logits_ptr, weights_ptr, ids_ptr, tokens, N_EXPERTS: tl.constexpr, TOP_K: tl.constexpr,
                  E: tl.constexpr, ROWS: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, E)
    there = (token < tokens)[:, None] & (e < N_EXPERTS)[None, :]
    x = tl.load(logits_ptr + token.to(tl.int64)[:, None] * N_EXPERTS + e[None, :], there, other=-float("inf")).to(
        tl.float32
    )
    x = tl.where((token < tokens)[:, None], x, 0.0)
    p = tl.exp(x - tl.max(x, 1)[:, None])
    p = p / tl.sum(p, 1)[:, None]
    for j in tl.static_range(TOP_K):
        best, which = tl.max(p, 1, return_indices=True)
        tl.store(weights_ptr + token * TOP_K + j, best, token < tokens)
        tl.store(ids_ptr + token * TOP_K + j, which.to(tl.int64), token < tokens)
        p = tl.where(e[None, :] == which[:, None], -1.0, p)


def route(router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    tokens, n_experts = router_logits.shape
    weights = router_logits.new_empty(tokens, top_k, dtype=torch.float32)
    expert_ids = router_logits.new_empty(tokens, top_k, dtype=torch.int64)
    rows = 4 if tokens < 1024 else 32
    overlap = overlaps(router_logits)
    _route_kernel[(cdiv(tokens, rows),)](
        router_logits.contiguous(), weights, expert_ids, tokens,
        N_EXPERTS=n_experts, TOP_K=top_k, E=next_power_of_2(n_experts), ROWS=rows, OVERLAP=overlap,
        num_warps=1, **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip
    return weights, expert_ids


# ---- sorting entries by expert --------------------------------------------------------------------------------------


class Order(NamedTuple):
    """Entries sorted by expert. All int32, on the device; `rows` and `blocks` are upper limits known on the host."""

    row_of: Tensor  # [entries], -1 where the expert lies elsewhere
    entry_of: Tensor  # [rows], -1 where padding; undefined from ends[-1] on
    ends: Tensor  # [n_experts]: where each expert's padded rows end
    expert_of: Tensor  # [blocks]; undefined from n_blocks on
    n_blocks: Tensor  # [1]
    align: int
    top_k: int


@triton.jit
def _one_hot(ids_ptr, entries, chunk, first, ROUTED: tl.constexpr, N_EXPERTS: tl.constexpr, E: tl.constexpr,
             CHUNK: tl.constexpr):  # fmt: skip
    """Which of the N_EXPERTS experts from `first` on each entry chose; no column for one of another process."""
    entry = chunk * CHUNK + tl.arange(0, CHUNK)
    if ROUTED:
        expert = tl.load(ids_ptr + entry, entry < entries, other=-1).to(tl.int32) - first
        expert = tl.where((entry < entries) & (expert < N_EXPERTS), expert, -1)
    else:
        expert = tl.where(entry < entries, 0, -1)
    return entry, (expert[:, None] == tl.arange(0, E)[None, :]).to(tl.int32)


@direct
@triton.jit(do_not_specialize=["entries", "first"])
def _count_kernel(ids_ptr, counts_ptr, entries, first, ROUTED: tl.constexpr, N_EXPERTS: tl.constexpr, E: tl.constexpr,
                  CHUNK: tl.constexpr):  # fmt: skip
    chunk = tl.program_id(0)
    _, hot = _one_hot(ids_ptr, entries, chunk, first, ROUTED, N_EXPERTS, E, CHUNK)
    tl.store(counts_ptr + chunk * E + tl.arange(0, E), tl.sum(hot, 0))


@direct
@triton.jit(do_not_specialize=["entries", "first_expert", "blocks", "chunks"])
def _order_kernel(ids_ptr, counts_ptr, row_of_ptr, entry_of_ptr, ends_ptr, expert_of_ptr, n_blocks_ptr, entries,
                  first_expert, blocks, chunks, ROUTED: tl.constexpr, N_EXPERTS: tl.constexpr, E: tl.constexpr,
                  CHUNK: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr, PAD: tl.constexpr):  # fmt: skip
    """One program per chunk of entries; each recomputes the prefix over all chunks, which is small."""
    chunk = tl.program_id(0)
    e = tl.arange(0, E)
    entry, hot = _one_hot(ids_ptr, entries, chunk, first_expert, ROUTED, N_EXPERTS, E, CHUNK)
    if C == 1:
        total = tl.sum(hot, 0)
        before = tl.zeros([E], tl.int32)
    else:
        c = tl.arange(0, C)
        counts = tl.load(counts_ptr + c[:, None] * E + e[None, :], (c < chunks)[:, None], other=0)
        total = tl.sum(counts, 0)
        before = tl.sum(tl.where((c < chunk)[:, None], counts, 0), 0)
    padded = (total + ALIGN - 1) // ALIGN * ALIGN
    ends = tl.cumsum(padded, 0)
    starts = ends - padded

    rank = tl.cumsum(hot, 0) - 1 + (starts + before)[None, :]
    row = tl.sum(tl.where(hot == 1, rank, 0), 1)
    own = tl.sum(hot, 1) > 0
    tl.store(row_of_ptr + entry, tl.where(own, row, -1), entry < entries)
    tl.store(entry_of_ptr + row, entry, own)
    if chunk == 0:
        pad = (starts + total)[:, None] + tl.arange(0, PAD)[None, :]
        tl.store(entry_of_ptr + pad, tl.full([E, PAD], -1, tl.int32), pad < ends[:, None])
        tl.store(ends_ptr + e, ends, e < N_EXPERTS)
        n_blocks = tl.sum(padded, 0) // ALIGN
        tl.store(n_blocks_ptr, n_blocks)
        for first in range(0, blocks, 64):
            b = first + tl.arange(0, 64)
            owner = tl.sum((ends[None, :] <= b[:, None] * ALIGN).to(tl.int32), 1)
            tl.store(expert_of_ptr + b, owner, b < n_blocks)


@functools.lru_cache(1 << 12)
def _plan(entries: int, n_experts: int, align: int) -> tuple[int, list[int], int, int]:
    """Upper limit of blocks; lengths of an Order's lists, each followed by what fills it up to 16 bytes; columns of the
    counts; entries of a program.
    """
    rows = entries + min(n_experts, entries) * (align - 1)
    blocks = rows // align
    lists = (entries, blocks * align, n_experts, blocks, 1)
    e = max(next_power_of_2(n_experts), 2)
    chunk = max(16384 // e, 64)
    chunk = next((size for size in (64, 256) if entries <= size < chunk), chunk)  # few sizes: each is compiled
    return blocks, [size for n in lists for size in (n, -n % 4)], e, chunk


def order(
    expert_ids: Tensor | None, n_experts: int, align: int, like: Tensor | None = None, *, first_expert: int = 0
) -> Order:
    """Sort the entries of expert_ids [tokens, top_k] by expert, stably, each expert padded to `align` rows.

    expert_ids None: the one expert of the tokens `like` [tokens, d_model]. Only the n_experts experts from first_expert
    on lie here: entries of others get no row.
    """
    routed = expert_ids is not None
    ids = like if expert_ids is None else expert_ids.contiguous()
    assert ids is not None
    entries, top_k = (ids.numel(), ids.shape[1]) if routed else (ids.shape[0], 1)
    blocks, sizes, e, chunk = _plan(entries, n_experts, align)
    made = (torch.empty if entries else torch.zeros)(sum(sizes), dtype=torch.int32, device=ids.device)
    row_of, _, entry_of, _, ends, _, expert_of, _, n_blocks, _ = made.split_with_sizes(sizes)
    chunks = cdiv(entries, chunk)
    counts = torch.empty(chunks, e, dtype=torch.int32, device=ids.device) if chunks > 1 else made
    warps = 8 if chunk * e > 4096 else 4
    if chunks > 1:
        _count_kernel[(chunks,)](
            ids, counts, entries, first_expert, ROUTED=routed, N_EXPERTS=n_experts, E=e, CHUNK=chunk, num_warps=warps
        )
    _order_kernel[(chunks,)](
        ids, counts, row_of, entry_of, ends, expert_of, n_blocks, entries, first_expert, blocks,
        chunks, ROUTED=routed, N_EXPERTS=n_experts, E=e, CHUNK=chunk,
        C=1 if chunks == 1 else max(next_power_of_2(chunks), 16), ALIGN=align, PAD=next_power_of_2(align),
        num_warps=warps,
    )  # fmt: skip
    return Order(row_of, entry_of, ends, expert_of, n_blocks, align, top_k)


@direct
@triton.jit
def _gather_kernel(x_ptr, out_ptr, entry_of_ptr, end_ptr, width, factor, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    if row < tl.load(end_ptr):
        entry = tl.load(entry_of_ptr + row)
        there = tl.where(entry >= 0, width, 0)
        source = x_ptr + (entry // TOP_K).to(tl.int64) * width
        target = out_ptr + row.to(tl.int64) * width
        for first in range(0, width, BLOCK):
            d = first + tl.arange(0, BLOCK)
            v = tl.load(source + d, d < there, other=0.0).to(tl.float32) * factor
            tl.store(target + d, v.to(out_ptr.dtype.element_ty), d < width)


def gather(x: Tensor, by: Order, factor: float = 1.0, *, per_entry: bool = False) -> Tensor:
    """x [tokens, width] (per_entry: [entries, width]) times `factor` in sorted order [rows, width], zeros in the
    padding.
    """
    out = x.new_empty(by.entry_of.shape[0], x.shape[1])
    _gather_kernel[(out.shape[0],)](
        x.contiguous(),
        out,
        by.entry_of,
        by.ends[-1:],
        x.shape[1],
        factor,
        TOP_K=1 if per_entry else by.top_k,
        BLOCK=2048,
        num_warps=4,
    )
    return out


@direct
@triton.jit(do_not_specialize=["rows"])
def _combine_kernel(y_ptr, weights_ptr, row_of_ptr, out_ptr, rows, width, TOP_K: tl.constexpr, PARTS: tl.constexpr,
                    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(TOP_K):
        row = tl.load(row_of_ptr + token * TOP_K + j).to(tl.int64)
        y = tl.zeros([BLOCK], tl.float32)
        for part in tl.static_range(PARTS):
            y += tl.load(y_ptr + (part * rows + row) * width + d, (d < width) & (row >= 0), other=0.0).to(tl.float32)
        if WEIGHTED:
            y = y * tl.load(weights_ptr + token * TOP_K + j).to(tl.float32)
        total += y
    tl.store(out_ptr + token.to(tl.int64) * width + d, total.to(out_ptr.dtype.element_ty), d < width)


def combine(y: Tensor, weights: Tensor | None, by: Order, dtype: torch.dtype) -> Tensor:
    """sum_j weights_j y[row of (token, j)] in fp32, j ascending; weights None: 1.

    y [parts, rows, width], the sum of whose parts is meant -> [tokens, width] in dtype.
    """
    parts, rows, width = y.shape
    tokens = by.row_of.shape[0] // by.top_k
    out = y.new_empty(tokens, width, dtype=dtype)
    block = min(2048 if tokens > 64 else 256, next_power_of_2(width))
    _combine_kernel[(tokens, cdiv(width, block))](
        y, y if weights is None else weights.contiguous(), by.row_of, out, rows, width,
        TOP_K=by.top_k, PARTS=parts, WEIGHTED=weights is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


# ---- grouped products over rows of weights --------------------------------------------------------------------------


@triton.jit
def _tile_of(t, n_blocks, N_TILES: tl.constexpr, GROUP: tl.constexpr):
    """Tile t as (block, weight tile): groups of GROUP blocks, within one the block fastest, so that neighbours share
    weights.
    """
    first = t // (GROUP * N_TILES) * GROUP
    size = tl.minimum(n_blocks - first, GROUP)
    r = t - first * N_TILES
    return first + r % size, r // size


@direct
@triton.jit
def _gate_up_kernel(x_ptr, w_ptr, scale_ptr, h_ptr, entry_of_ptr, expert_of_ptr, n_blocks_ptr,
                    D_MODEL: tl.constexpr, D_FF: tl.constexpr, TOP_K: tl.constexpr, INT8: tl.constexpr,
                    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """h[row] = silu(gate(x)) * up(x) for the BM rows of one block and BN of the d_ff columns; x is read where its
    token lies.
    """
    n_blocks = tl.load(n_blocks_ptr)
    t = tl.program_id(0)
    N_TILES: tl.constexpr = (D_FF + BN - 1) // BN
    if t < n_blocks * N_TILES:
        block, tile = _tile_of(t, n_blocks, N_TILES, GROUP)
        expert = tl.load(expert_of_ptr + block).to(tl.int64)
        row = block * BM + tl.arange(0, BM)
        entry = tl.load(entry_of_ptr + row)
        n = tile * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        x_at = x_ptr + (entry // TOP_K).to(tl.int64)[:, None] * D_MODEL + k[None, :]
        gate_at = w_ptr + (expert * (2 * D_FF) + n)[None, :] * D_MODEL + k[:, None]
        up_at = gate_at + D_FF * D_MODEL
        gate = tl.zeros([BM, BN], tl.float32)
        up = tl.zeros([BM, BN], tl.float32)
        for first in range(0, D_MODEL, BK):
            inside = k < D_MODEL - first
            x = tl.load(x_at + first, (entry >= 0)[:, None] & inside[None, :], other=0.0)
            there = inside[:, None] & (n < D_FF)[None, :]
            g = tl.load(gate_at + first, there, other=0.0)
            u = tl.load(up_at + first, there, other=0.0)
            gate = tl.dot(x, g.to(x.dtype), gate, input_precision="ieee")
            up = tl.dot(x, u.to(x.dtype), up, input_precision="ieee")
        if INT8:
            scale_at = scale_ptr + expert * (2 * D_FF) + n
            gate *= tl.load(scale_at, n < D_FF, other=0.0)[None, :]
            up *= tl.load(scale_at + D_FF, n < D_FF, other=0.0)[None, :]
        h = gate * tl.sigmoid(gate) * up
        tl.store(
            h_ptr + row.to(tl.int64)[:, None] * D_FF + n[None, :], h.to(h_ptr.dtype.element_ty), (n < D_FF)[None, :]
        )


@direct
@triton.jit
def _down_kernel(h_ptr, w_ptr, scale_ptr, y_ptr, entry_of_ptr, expert_of_ptr, n_blocks_ptr,
                 D_MODEL: tl.constexpr, D_FF: tl.constexpr, INT8: tl.constexpr,
                 BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """y[entry] = down(h[row]): back in the order of the entries."""
    n_blocks = tl.load(n_blocks_ptr)
    t = tl.program_id(0)
    N_TILES: tl.constexpr = (D_MODEL + BN - 1) // BN
    if t < n_blocks * N_TILES:
        block, tile = _tile_of(t, n_blocks, N_TILES, GROUP)
        expert = tl.load(expert_of_ptr + block).to(tl.int64)
        row = block * BM + tl.arange(0, BM)
        entry = tl.load(entry_of_ptr + row)
        n = tile * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        h_at = h_ptr + row.to(tl.int64)[:, None] * D_FF + k[None, :]
        w_at = w_ptr + (expert * D_MODEL + n)[None, :] * D_FF + k[:, None]
        y = tl.zeros([BM, BN], tl.float32)
        for first in range(0, D_FF, BK):
            inside = k < D_FF - first
            h = tl.load(h_at + first, inside[None, :], other=0.0)
            w = tl.load(w_at + first, inside[:, None] & (n < D_MODEL)[None, :], other=0.0)
            y = tl.dot(h, w.to(h.dtype), y, input_precision="ieee")
        if INT8:
            y *= tl.load(scale_ptr + expert * D_MODEL + n, n < D_MODEL, other=0.0)[None, :]
        there = (entry >= 0)[:, None] & (n < D_MODEL)[None, :]
        tl.store(y_ptr + entry.to(tl.int64)[:, None] * D_MODEL + n[None, :], y.to(y_ptr.dtype.element_ty), there)


class Tiles(NamedTuple):
    """Rows, columns and k-step of a tile; how many neighbouring tiles share their weights; warps; stages of the
    pipeline.
    """

    rows: int
    columns: int
    step: int
    group: int
    warps: int
    stages: int


def tiles_for(x: Tensor, top_k: int, down: Tensor) -> Tiles:
    """As measured for this device and these sizes, or else by formula."""
    n_experts, d_model, d_ff = down.shape
    int8 = down.dtype == torch.int8
    kind = f"moe_rows_{'int8' if int8 else str(x.dtype)[6:]}"
    measured = tuned.setting(kind, x.device, (n_experts, top_k, d_model, d_ff), x.shape[0])
    return Tiles(*measured) if measured else tiles(x.shape[0] * top_k, n_experts, int8)


def tiles(entries: int, n_experts: int, int8: bool) -> Tiles:
    """By the mean number of rows an expert gets: guesses for sizes and chips that were not measured."""
    mean = entries / n_experts
    if mean <= 16:
        return Tiles(16, 64 if int8 else 32, 128, 1, 4, 4)
    if mean <= 48:
        return Tiles(32, 64, 128, 1, 4, 3)
    if mean <= 96:
        return Tiles(64, 64, 64, 4, 4, 4)
    return Tiles(128, 128, 64, 8, 8, 3)


def expert_outputs_by_entry(
    x: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    *,
    tile: Tiles | None = None,
    experts: tuple[int, int] | None = None,
) -> Tensor:
    """The experts' outputs [entries, d_model]; weights as rows, in x's dtype or int8. No gradient.

    experts: the first one here and how many there are in all; the outputs of those elsewhere are 0.
    """
    n_experts, d_model, d_ff = down.shape
    if experts is not None:
        tile = tile or tiles(expert_ids.numel(), experts[1], gate_up_scale is not None)
    tile = tile or tiles_for(x, expert_ids.shape[1], down)
    by = order(expert_ids, n_experts, tile.rows, first_expert=experts[0] if experts else 0)
    blocks = by.expert_of.shape[0]
    scales = [w if s is None else s.contiguous() for w, s in ((gate_up, gate_up_scale), (down, down_scale))]
    x, gate_up, down = x.contiguous(), gate_up.contiguous(), down.contiguous()
    h = x.new_empty(by.entry_of.shape[0], d_ff)
    y = (x.new_empty if experts is None else x.new_zeros)(expert_ids.numel(), d_model)
    shape = {"D_MODEL": d_model, "D_FF": d_ff, "INT8": gate_up_scale is not None, "BM": tile.rows, "BN": tile.columns,
             "BK": tile.step, "GROUP": tile.group, "num_warps": tile.warps, "num_stages": tile.stages}  # fmt: skip
    lists = (by.entry_of, by.expert_of, by.n_blocks)
    _gate_up_kernel[(blocks * cdiv(d_ff, tile.columns),)](x, gate_up, scales[0], h, *lists, TOP_K=by.top_k, **shape)
    _down_kernel[(blocks * cdiv(d_model, tile.columns),)](h, down, scales[1], y, *lists, **shape)
    return y


@direct
@triton.jit
def _weighted_sum_kernel(y_ptr, weights_ptr, out_ptr, width, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(TOP_K):
        y = tl.load(y_ptr + (token * TOP_K + j) * width + d, d < width, other=0.0).to(tl.float32)
        total += y * tl.load(weights_ptr + token * TOP_K + j).to(tl.float32)
    tl.store(out_ptr + token * width + d, total.to(out_ptr.dtype.element_ty), d < width)


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    experts: tuple[int, int] | None = None,
) -> Tensor:
    y = expert_outputs_by_entry(x, expert_ids, gate_up, down, gate_up_scale, down_scale, experts=experts)
    out = x.new_empty(x.shape)
    block = min(1024, next_power_of_2(x.shape[1]))
    _weighted_sum_kernel[(x.shape[0], cdiv(x.shape[1], block))](
        y, weights.contiguous(), out, x.shape[1], TOP_K=expert_ids.shape[1], BLOCK=block, num_warps=4
    )
    return out
