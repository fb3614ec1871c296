"""One token through int8 experts in the layout of `packed.py`: two matrix-vector kernels, bound by the bytes of the
weights.

A program takes 16 packed rows. A word w of four recoded weights is unpacked as fp32 subnormals: the bits of m x 2^16
under exponent 0 are m x 2^-133, sign in place, so no conversion instruction is needed. x is multiplied by 2^96 to keep
the products in range, and the row scale takes the 2^37 that is left. Sums run in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops import tuned
from plait.ops.launch import direct, overlaps

_X_FACTOR = tl.constexpr(2.0**96)
_SCALE_FACTOR = tl.constexpr(2.0**37)
_MASK = tl.constexpr(0x807F0000 - 2**32)  # sign, no exponent, seven bits


@triton.jit
def _unpacked(w):
    """The four weights of each word as fp32 subnormals: m x 2^-133 each."""
    turned = ((w >> 8) & 0x00FFFFFF) | (w << 24)
    e0 = ((w << 16) & _MASK).to(tl.float32, bitcast=True)
    e1 = (w & _MASK).to(tl.float32, bitcast=True)
    e2 = ((w << 8) & _MASK).to(tl.float32, bitcast=True)
    e3 = (turned & _MASK).to(tl.float32, bitcast=True)
    return e0, e1, e2, e3


@triton.jit
def _sixteen_rows(w_ptr, x_ptr, zero, ATOMS: tl.constexpr, TILE: tl.constexpr, WAIT: tl.constexpr):
    """Products with x of the 16 rows whose words start at w_ptr: ([8] rows with bit 3 clear, [8] with it set), not yet
    scaled.

    w_ptr: int32, 256 words of each of ATOMS atoms, 1024 words apart. x_ptr: bf16 pairs as int32. TILE atoms are read
    at a time. zero: 0, but the compiler must not know: it would see that x is contiguous along k1, k2 and give threads
    64 bytes apart.
    """
    # Dims [k2 k1, r2 r1 r0, k5, atom, k4 k3]: Triton deals the first two to lanes, the next two to warps; the last is
    # 16 bytes.
    quad = tl.arange(0, 4)[:, None, None, None, None]
    row = tl.arange(0, 8)[None, :, None, None, None]
    half = tl.arange(0, 2)[None, None, :, None, None]
    a = tl.arange(0, TILE)[None, None, None, :, None]
    step = tl.arange(0, 4)[None, None, None, None, :]
    word = half * 128 + row * 16 + quad * 4 + step
    pair = half * 16 + row * 0 + (quad ^ zero) + step % 2 * 4 + step // 2 * 8
    low = tl.zeros([4, 8, 2, TILE], tl.float32)
    high = tl.zeros([4, 8, 2, TILE], tl.float32)
    w_next = tl.load(w_ptr + a * 1024 + word, a + word * 0 < ATOMS, other=0)
    if WAIT:  # x is the result of the kernel before this one, which may still run
        tl.extra.cuda.gdc_wait()
    for first in range(0, ATOMS, TILE):
        w = w_next
        later = first + TILE + a
        w_next = tl.load(w_ptr + later * 1024 + word, later + word * 0 < ATOMS, other=0)
        x = tl.load(x_ptr + (first + a) * 32 + pair, first + a + word * 0 < ATOMS, other=0)
        x0 = (x << 16).to(tl.float32, bitcast=True) * _X_FACTOR
        x1 = (x & -65536).to(tl.float32, bitcast=True) * _X_FACTOR
        e0, e1, e2, e3 = _unpacked(w)
        low += tl.sum(e0 * x0 + e1 * x1, 4)
        high += tl.sum(e2 * x0 + e3 * x1, 4)
    both = tl.join(low, high)  # summed over warps at once, then over lanes
    return tl.split(tl.sum(tl.sum(tl.reshape(both, [4, 8, 2 * TILE, 2]), 2), 0))


@direct
@triton.jit
def _gate_up_kernel(x_ptr, w_ptr, scale_ptr, ids_ptr, h_ptr, D_FF: tl.constexpr, ATOMS: tl.constexpr,
                    ROUTED: tl.constexpr, TILE: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    if OVERLAP:
        if ROUTED:  # which weights to read is the result of the kernel before this one; the next one reads it too
            tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    group = tl.program_id(0)  # 8 gate rows and their 8 up rows
    choice = tl.program_id(1)
    expert = tl.load(ids_ptr + choice).to(tl.int64) if ROUTED else (group >> 24).to(tl.int64)
    w = w_ptr + (expert * (D_FF // 32) + group // 4) * (ATOMS * 1024) + group % 4 * 256
    row = group * 8 + tl.arange(0, 8)
    scale = scale_ptr + expert * (2 * D_FF) + row
    gate_scale = tl.load(scale) * _SCALE_FACTOR
    up_scale = tl.load(scale + D_FF) * _SCALE_FACTOR
    gate, up = _sixteen_rows(w, x_ptr, group >> 24, ATOMS, TILE, OVERLAP and not ROUTED)
    gate *= gate_scale
    up *= up_scale
    tl.store(h_ptr + choice * D_FF + row, (gate * tl.sigmoid(gate) * up).to(h_ptr.dtype.element_ty))


@direct
@triton.jit
def _down_kernel(h_ptr, w_ptr, scale_ptr, ids_ptr, weights_ptr, out_ptr, D_MODEL: tl.constexpr, ATOMS: tl.constexpr,
                 TOP_K: tl.constexpr, ROUTED: tl.constexpr, TILE: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    group = tl.program_id(0)
    row = group * 16 + tl.arange(0, 8)
    total_low = tl.zeros([8], tl.float32)
    total_high = tl.zeros([8], tl.float32)
    for j in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + j).to(tl.int64) if ROUTED else (group >> 24).to(tl.int64)
        w = w_ptr + (expert * (D_MODEL // 64) + group // 4) * (ATOMS * 1024) + group % 4 * 256
        weight = _SCALE_FACTOR
        if ROUTED:
            weight = tl.load(weights_ptr + j).to(tl.float32) * _SCALE_FACTOR
        scale = scale_ptr + expert * D_MODEL + row
        low_scale = tl.load(scale) * weight
        high_scale = tl.load(scale + 8) * weight
        low, high = _sixteen_rows(w, h_ptr + j * (ATOMS * 32), group >> 24, ATOMS, TILE, OVERLAP and j == 0)
        total_low += low * low_scale
        total_high += high * high_scale
    tl.store(out_ptr + row, total_low.to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + row + 8, total_high.to(out_ptr.dtype.element_ty))


class Tiles(NamedTuple):
    """Atoms read at a time and warps, for gate/up and for down."""

    gate_up: tuple[int, int]
    down: tuple[int, int]


def tiles_for(top_k: int, d_ff: int) -> Tiles:
    """For sizes that were not measured."""
    many_programs = top_k * d_ff // 8 > 2048
    return Tiles((16, 8) if many_programs else (8, 4), (32, 8) if d_ff >= 8192 else (16, 4))


def moe(
    x: Tensor,
    weights: Tensor | None,
    expert_ids: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor,
    down_scale: Tensor,
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """x bf16 [1, d_model], weights and expert_ids [1, top_k], packed gate_up and down -> [1, d_model].

    weights and expert_ids None: the dense MLP, one expert.
    """
    d_model, d_ff = down_scale.shape[-1], gate_up_scale.shape[-1] // 2
    routed = weights is not None and expert_ids is not None
    top_k = expert_ids.shape[1] if expert_ids is not None else 1
    if tiles is None:
        measured = tuned.setting("moe_one_token", x.device, (top_k, d_model, d_ff), 1)
        tiles = Tiles(*(tuple(own) for own in measured)) if measured else tiles_for(top_k, d_ff)
    h = torch.empty(top_k, d_ff, dtype=torch.bfloat16, device=x.device)
    out = x.new_empty(x.shape)
    ids, shares = (h, h) if weights is None or expert_ids is None else (expert_ids.contiguous(), weights.contiguous())
    # Each kernel may start, and the second one fetch its first weights, while the one before it ends.
    overlap = overlaps(x)
    late = {"launch_pdl": True} if overlap else {}
    tile, warps = tiles.gate_up
    _gate_up_kernel[(d_ff // 8, top_k)](
        x.contiguous().view(torch.int32), gate_up.view(torch.int32), gate_up_scale, ids, h,
        D_FF=d_ff, ATOMS=d_model // 64, ROUTED=routed, TILE=tile, OVERLAP=overlap, num_warps=warps, **late,
    )  # fmt: skip
    tile, warps = tiles.down
    _down_kernel[(d_model // 16,)](
        h.view(torch.int32), down.view(torch.int32), down_scale, ids, shares, out,
        D_MODEL=d_model, ATOMS=d_ff // 64, TOP_K=top_k, ROUTED=routed, TILE=tile, OVERLAP=overlap,
        num_warps=warps, **late,
    )  # fmt: skip
    return out
