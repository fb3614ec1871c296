"""Grouped int8 product of Hopper: weights become bf16 in registers and enter wgmma as its A operand (paper section
3.1).

One kernel computes out[m, n] = sum_k W[n, k] X[m, k] for tokens m sorted by expert, as W X^T: wgmma takes A from
registers, so a dequantized weight never passes through shared memory. It reads the layout of `packed.py`, whose
16-byte vectors are a thread's share of an A fragment. Two warpgroups each own half of a tile's rows; the first also
issues the bulk copies. A warpgroup converts the weights of one step while its tensor core works on the step before.

Gluon's interface still changes between Triton versions: GLUON_VERSIONS in __init__.py names those this file was run on.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from plait.ops import tuned
from plait.ops.launch import Box, direct
from plait.ops.moe import gemv
from plait.ops.moe.triton import Order, combine, gather, order

COPY_PAYS = 1024  # tokens of the dense MLP from which a copy of x, times 2^96, costs less than what it saves


@gluon.jit
def _to_bf16(w, SUBNORMAL: gl.constexpr):
    """Four recoded int8 in one register to four bf16 in two: w 2^-133 as subnormals, or w 2^-6 after a multiplication
    by 2^127.
    """
    if SUBNORMAL:
        return gl.inline_asm_elementwise(
            """{
            .reg .b32 turned;
            prmt.b32 turned, $2, $2, 0x0321;
            and.b32 $0, $2, 0x807F807F;
            and.b32 $1, turned, 0x807F807F;
            }""",
            "=r,=r,r", [w], dtype=gl.bfloat16, is_pure=True, pack=4,
        )  # fmt: skip
    return gl.inline_asm_elementwise(
        """{
        .reg .b32 turned, low, high, unit;
        mov.b32 unit, 0x7F007F00;
        prmt.b32 turned, $2, $2, 0x0321;
        and.b32 low, $2, 0x807F807F;
        and.b32 high, turned, 0x807F807F;
        mul.rn.bf16x2 $0, low, unit;
        mul.rn.bf16x2 $1, high, unit;
        }""",
        "=r,=r,r", [w], dtype=gl.bfloat16, is_pure=True, pack=4,
    )  # fmt: skip


@gluon.jit
def _sigmoid(x, SUBNORMAL: gl.constexpr):
    """1 / (1 + 2^(-x log2 e)) by the approximate units, relative error about 2^-22; times 2^96 for SUBNORMAL."""
    one: gl.constexpr = "0f0F800000" if SUBNORMAL else "0f3F800000"  # 2^-96 or 1
    return gl.inline_asm_elementwise(
        "{ .reg .f32 e; mul.f32 e, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 e, e; fma.rn.f32 e, e, "
        + one + ", " + one + "; rcp.approx.ftz.f32 $0, e; }",
        "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def _tile(t, n_blocks, N_TILES: gl.constexpr, GROUP: gl.constexpr, SPLITS: gl.constexpr):
    """Tile t as (token block, weight tile, part of k): groups of GROUP token blocks, within one the token block
    fastest, but for the part of k.
    """
    part = t % SPLITS
    t = t // SPLITS
    first = t // (GROUP * N_TILES) * GROUP
    size = gl.minimum(n_blocks - first, GROUP)
    r = t - first * N_TILES
    return first + r % size, r // size, part


@gluon.jit
def _sources(t, n_blocks, n_tiles, expert_ptr, N: gl.constexpr, HALF: gl.constexpr, BM: gl.constexpr,
             GROUP: gl.constexpr, SPLITS: gl.constexpr, PART: gl.constexpr):  # fmt: skip
    """Where tile t begins: its first row of atoms, its first row of x, its first k-step."""
    block, n, part = _tile(t, n_blocks, N // (128 * HALF), GROUP, SPLITS)
    expert = gl.load(expert_ptr + block, mask=t < n_tiles, other=0)
    return expert * (N // 64) + n * (2 * HALF), block * BM, part * PART


@gluon.jit
def _fill(w_desc, x_desc, w_smem, x_smem, full, empty, f, atom_row, x_row, step, ok,
          STAGES: gl.constexpr, HALF: gl.constexpr, DEEP: gl.constexpr, BM: gl.constexpr):  # fmt: skip
    """Copy k-step `step` of a tile into stage f % STAGES, once both warpgroups have left it."""
    stage = f % STAGES
    mbarrier.wait(empty.index(stage), (f // STAGES + 1) & 1, pred=ok)
    bar = full.index(stage)
    k = step * DEEP
    mbarrier.expect(bar, DEEP * (2 * HALF * 4096 + BM * 128), pred=ok)
    tma.async_copy_global_to_shared(w_desc, [atom_row, k * 32, 0], bar, w_smem.index(2 * stage), pred=ok)
    tma.async_copy_global_to_shared(w_desc, [atom_row + HALF, k * 32, 0], bar, w_smem.index(2 * stage + 1), pred=ok)
    tma.async_copy_global_to_shared(x_desc, [x_row, k * 64], bar, x_smem.index(stage), pred=ok)


@gluon.jit
def _fragment(w_smem, HALF: gl.constexpr, DEEP: gl.constexpr, a_layout: gl.constexpr):
    """A warpgroup's weights of one stage, int8 as stored, in the layout of wgmma's A operand: loads only, nothing
    moves.
    """
    # Registers of a thread: the 16 bytes of a vector, k5, the atom along k, the atom along rows.
    deep: gl.constexpr = [[0, 32, 0]] if DEEP == 2 else []
    half: gl.constexpr = [[1, 0, 0]] if HALF == 2 else []
    vectors: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 0, 8], [0, 4, 0]] + deep + half,
        [[0, 0, 16], [0, 0, 32], [0, 0, 64], [0, 1, 0], [0, 2, 0]], [[0, 8, 0], [0, 16, 0]], [], [HALF, 32 * DEEP, 128],
    )  # fmt: skip
    bits = gl.reshape(w_smem.load(vectors), [HALF, DEEP, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    bits = gl.permute(bits, (0, 2, 3, 12, 5, 6, 7, 1, 4, 10, 11, 8, 9, 13))
    return gl.convert_layout(gl.reshape(bits, [64 * HALF, 64 * DEEP]), a_layout, assert_trivial=True)


@gluon.jit
def _warpgroup(w_desc, x_desc, out_desc, scale_ptr, expert_ptr, n_blocks_ptr, part_rows, w_smem, x_smem, out_smem,
               full, empty, WHICH: gl.constexpr, STAGES: gl.constexpr, HALF: gl.constexpr, DEEP: gl.constexpr,
               BM: gl.constexpr, N: gl.constexpr, K: gl.constexpr, GROUP: gl.constexpr, SPLITS: gl.constexpr,
               GATED: gl.constexpr, SUBNORMAL: gl.constexpr):  # fmt: skip
    """Everything one warpgroup does. WHICH 0 also fills the stages, two steps behind its own reads."""
    PART: gl.constexpr = K // (64 * DEEP * SPLITS)  # k-steps of a tile
    ROWS: gl.constexpr = 64 * HALF
    OUT: gl.constexpr = ROWS // 2 if GATED else ROWS
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    a_layout: gl.constexpr = gl.DotOperandLayout(0, mma, 2)

    n_blocks = gl.load(n_blocks_ptr)
    n_tiles = n_blocks * (N // (128 * HALF) * SPLITS)
    stride = gl.num_programs(0)
    t = gl.program_id(0)

    # What is filled next: k-step p_step of tile p_tile.
    p_tile = t
    p_step = 0
    p_atom = 0
    p_row = 0
    p_from = 0
    if WHICH == 0:
        p_atom, p_row, p_from = _sources(p_tile, n_blocks, n_tiles, expert_ptr, N, HALF, BM, GROUP, SPLITS, PART)
        for f in gl.static_range(STAGES - 2):  # fewer than PART: all of the first tile
            _fill(w_desc, x_desc, w_smem, x_smem, full, empty, f, p_atom, p_row, p_from + f, p_tile < n_tiles,
                  STAGES, HALF, DEEP, BM)  # fmt: skip
        p_step = STAGES - 2

    it = 0
    while t < n_tiles:
        block, n, part = _tile(t, n_blocks, N // (128 * HALF), GROUP, SPLITS)
        expert = gl.load(expert_ptr + block)
        acc = warpgroup_mma_init(gl.zeros([ROWS, BM], gl.float32, mma))
        for pair in range(PART // 2):
            # Two bodies, so that no register which a running wgmma reads is written by the next conversion.
            for odd in gl.static_range(2):
                stage = it % STAGES
                mbarrier.wait(full.index(stage), it // STAGES & 1)
                a = _to_bf16(_fragment(w_smem.index(2 * stage + WHICH), HALF, DEEP, a_layout), SUBNORMAL)
                acc = warpgroup_mma_wait(0, deps=(acc,))
                mbarrier.arrive(empty.index((it + STAGES - 1) % STAGES), count=1, pred=(pair > 0) | (odd == 1))
                acc = warpgroup_mma(a, x_smem.index(stage).permute((1, 0)), acc, is_async=True)
                if WHICH == 0:
                    _fill(w_desc, x_desc, w_smem, x_smem, full, empty, it + STAGES - 2, p_atom, p_row, p_from + p_step,
                          p_tile < n_tiles, STAGES, HALF, DEEP, BM)  # fmt: skip
                    p_step += 1
                    if p_step == PART:
                        p_step = 0
                        p_tile += stride
                        p_atom, p_row, p_from = _sources(
                            p_tile, n_blocks, n_tiles, expert_ptr, N, HALF, BM, GROUP, SPLITS, PART
                        )
                it += 1
        result = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index((it + STAGES - 1) % STAGES), count=1)

        row = gl.arange(0, ROWS, gl.SliceLayout(1, mma))
        first = (2 * n + WHICH) * OUT
        if GATED:  # packed rows are 8 gate, 8 up, ...; the scales are all gates, then all ups
            offset = (row // 16) * 8 + row % 8 + (row // 8 % 2) * (N // 2) + first
        else:
            offset = row + first
        scale = gl.load(scale_ptr + expert.to(gl.int64) * N + offset) * (2.0**37 if SUBNORMAL else 64.0)
        result = result * gl.expand_dims(scale, 1)
        if GATED:
            gate, up = gl.split(gl.permute(gl.reshape(result, [ROWS // 16, 2, 8, BM]), (0, 2, 3, 1)))
            gate = gl.reshape(gate, [OUT, BM])
            up = gl.reshape(up, [OUT, BM])
            result = gate * _sigmoid(gate, SUBNORMAL) * up
        tma.store_wait(0)
        out_smem.permute((1, 0)).store(result.to(out_desc.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(out_desc, [part * part_rows + block * BM, first], out_smem)
        t += stride
    tma.store_wait(0)


@direct
@gluon.jit(do_not_specialize=["part_rows"])
def _grouped(w_desc, x_desc, out_desc, scale_ptr, expert_ptr, n_blocks_ptr, part_rows,
             STAGES: gl.constexpr, HALF: gl.constexpr, DEEP: gl.constexpr, BM: gl.constexpr, N: gl.constexpr,
             K: gl.constexpr, GROUP: gl.constexpr, SPLITS: gl.constexpr, GATED: gl.constexpr,
             SUBNORMAL: gl.constexpr):  # fmt: skip
    tl.extra.cuda.gdc_wait()  # launched before the kernel before it has ended
    tl.extra.cuda.gdc_launch_dependents()
    w_smem = gl.allocate_shared_memory(gl.uint8, [2 * STAGES, HALF, 32 * DEEP, 128], w_desc.layout)
    x_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BM, 64 * DEEP], x_desc.layout)
    out_0 = gl.allocate_shared_memory(out_desc.dtype, out_desc.block_type.shape, out_desc.layout)
    out_1 = gl.allocate_shared_memory(out_desc.dtype, out_desc.block_type.shape, out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_warpgroup, (w_desc, x_desc, out_desc, scale_ptr, expert_ptr, n_blocks_ptr, part_rows, w_smem, x_smem,
                          out_0, full, empty, 0, STAGES, HALF, DEEP, BM, N, K, GROUP, SPLITS, GATED, SUBNORMAL)),
            (_warpgroup, (w_desc, x_desc, out_desc, scale_ptr, expert_ptr, n_blocks_ptr, part_rows, w_smem, x_smem,
                          out_1, full, empty, 1, STAGES, HALF, DEEP, BM, N, K, GROUP, SPLITS, GATED, SUBNORMAL)),
        ],
        [4],
        [256],
    )  # fmt: skip


class Shape(NamedTuple):
    """How the work is cut: by the mean number of rows an expert gets."""

    rows: int  # of a weight tile: 128 or 256
    tokens: int  # of a tile
    deep: int  # atoms of a k-step
    stages: tuple[int, int]  # of the pipeline, for gate/up and for down
    group: int  # token blocks that share weights
    splits: int | None = None  # parts of k in down, added up later in fp32; None: chosen so that no processor idles

    @classmethod
    def of(cls, setting: list[Any]) -> Shape:
        rows, tokens, deep, stages, group, splits = setting
        return cls(rows, tokens, deep, tuple(stages), group, splits)


_GROWING = (  # up to how many rows an expert gets, and the shape
    (2, Shape(128, 8, 2, (9, 9), 1)),
    (8, Shape(256, 16, 2, (5, 4), 1)),
    (20, Shape(256, 32, 1, (9, 8), 1)),
    (52, Shape(256, 64, 1, (8, 7), 1, 1)),  # one block an expert: its neighbours have other weights
    (96, Shape(256, 128, 1, (6, 5), 1)),
    (math.inf, Shape(256, 128, 1, (6, 5), 8)),
)
_GROWING_DENSE = (  # one expert has few tiles, so they are smaller
    (8, Shape(128, 8, 2, (9, 9), 1)),
    (16, Shape(128, 16, 2, (8, 8), 1)),
    (32, Shape(128, 32, 2, (6, 6), 1)),
    (64, Shape(128, 64, 2, (6, 5), 1)),
    (512, Shape(128, 128, 1, (8, 6), 4)),
    (math.inf, Shape(256, 128, 1, (6, 5), 8)),
)


def shape_for(entries: int, n_experts: int) -> Shape:
    """By the mean number of rows an expert gets, for sizes that were not measured."""
    table = _GROWING if n_experts > 1 else _GROWING_DENSE
    return next(shape for most, shape in table if entries / n_experts <= most)


@functools.cache
def _n_programs(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


_layout = functools.cache(gl.NVMMASharedLayout)


def _deep(shape: Shape, width: int) -> int:
    return shape.deep if width % (128 * shape.deep) == 0 else 1  # the number of k-steps must be even


def splits_for(entries: int, n_experts: int, n: int, width: int, shape: Shape, n_programs: int) -> int:
    """In how many parts to cut k of the down product: the least whole waves of tiles, if there are few waves. Counted
    for the next power of two of entries, since each number of parts is compiled.
    """
    if shape.splits is not None:
        return shape.splits
    if shape.rows * shape.tokens > 128 * 128:  # the fp32 parts would not fit beside the pipeline
        return 1
    steps = width // (64 * _deep(shape, width))
    entries = 1 << (entries - 1).bit_length()
    hit = n_experts * (1 - (1 - 1 / n_experts) ** entries) if n_experts > 1 else 1
    tiles = hit * -(-entries // (n_experts * shape.tokens)) * (n // shape.rows)
    possible = [s for s in range(1, 9) if steps % (2 * s) == 0]
    return min(possible, key=lambda s: -(-tiles * s // n_programs) / s + 0.03 * s)


def product(
    x: Tensor, w: Tensor, scale: Tensor, by: Order, shape: Shape, *, gated: bool, subnormal: bool, splits: int = 1
) -> Tensor:
    """x bf16 [rows, width] in sorted order times each block's expert's packed weights: [1, rows, n], or silu(gate) * up
    [1, rows, n / 2], in bf16; with several splits [splits, rows, n] in fp32, to be added up.

    subnormal: x carries a factor 2^96, and so does a gated result; an ungated one doesn't.
    """
    (rows, width), n, half = x.shape, scale.shape[-1], shape.rows // 128
    deep = _deep(shape, width)
    steps = width // (64 * deep * splits)
    part_rows = -(-rows // shape.tokens) * shape.tokens if splits > 1 else rows
    n_out, columns = (n // 2, 32 * half) if gated else (n, 64 * half)
    out = x.new_empty(splits, part_rows, n_out, dtype=torch.float32 if splits > 1 else torch.bfloat16)
    w_shape, w_strides = (w.numel() // (width * 64), width // 2, 128), (width * 64, 128, 1)
    out_layout = _layout(min(128, columns * out.element_size()), 8 * out.element_size(), 2)
    _grouped[(_n_programs(x.device),)](
        Box(TensorDescriptor, w, w_shape, w_strides, (half, 32 * deep, 128), _layout(128, 8, 3)),
        Box(TensorDescriptor, x, (rows, width), (width, 1), (shape.tokens, 64 * deep), _layout(128, 16, 2)),
        Box(TensorDescriptor, out, (splits * part_rows, n_out), (n_out, 1), (shape.tokens, columns), out_layout),
        scale, by.expert_of, by.n_blocks, part_rows,
        STAGES=min(shape.stages[0 if gated else 1], steps + 1), HALF=half, DEEP=deep, BM=shape.tokens, N=n, K=width,
        GROUP=shape.group, SPLITS=splits, GATED=gated, SUBNORMAL=subnormal, num_warps=4,
        launch_pdl=True,
    )  # fmt: skip
    return out


def moe(
    x: Tensor,
    weights: Tensor | None,
    expert_ids: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor,
    down_scale: Tensor,
    experts: tuple[int, int] | None = None,
    *,
    shape: Shape | None = None,
    subnormal: bool = True,
) -> Tensor:
    """x bf16 [tokens, d_model] through packed int8 experts, weighted and summed over each token's choices.

    weights and expert_ids None: the dense MLP, one expert that every token chose. experts: the first one here and how
    many there are in all (None: all are here). Activations, between the products
    too, must stay below 2^31, or with subnormal=False below the limit of bf16.
    """
    x, gate_up_scale, down_scale = x.contiguous(), gate_up_scale.contiguous(), down_scale.contiguous()
    tokens, n_experts = x.shape[0], down.shape[0]
    if tokens == 0:
        return x.new_empty(x.shape)
    if tokens == 1 and shape is None and experts is None:
        return gemv.moe(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale)
    entries = tokens if expert_ids is None else expert_ids.numel()
    d_model, d_ff = down_scale.shape[-1], gate_up_scale.shape[-1] // 2
    if shape is None:
        n_in_all = experts[1] if experts else n_experts
        measured = tuned.setting("moe_packed", x.device, (n_in_all, entries // tokens, d_model, d_ff), tokens)
        shape = Shape.of(measured) if measured else shape_for(entries, n_in_all)
    by = order(expert_ids, n_experts, shape.tokens, x, first_expert=experts[0] if experts else 0)
    dense = expert_ids is None
    if dense and tokens < COPY_PAYS:  # already in order
        rows, subnormal = x, False
    else:
        rows = gather(x, by, 2.0**96 if subnormal else 1.0)
    splits = splits_for(entries, n_experts, d_model, d_ff, shape, _n_programs(x.device))
    h = product(rows, gate_up, gate_up_scale, by, shape, gated=True, subnormal=subnormal)[0]
    y = product(h, down, down_scale, by, shape, gated=False, subnormal=subnormal, splits=splits)
    return y[0, :tokens] if dense and splits == 1 else combine(y, weights, by, x.dtype)
