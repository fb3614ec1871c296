"""AdamW in plain Triton: a launch a tensor, a program a block of its elements.

Floor: 14 bytes a bf16 parameter (parameter, gradient, two moments read; all but the gradient written).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.adamw.numbers import Numbers
from plait.ops.adamw.reference import seed
from plait.ops.launch import cdiv, direct, on_device_of

BLOCK, WARPS = 1024, 4  # eight elements a lane: 16-byte loads of bf16


@triton.jit
def hashed(x):
    """uint32 -> uint32, murmur3's finalizer."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@direct
@triton.jit(do_not_specialize=["place_seed"])
def step_kernel(
    p_ptr, g_ptr, m_ptr, v_ptr, numbers_ptr, n, place_seed, beta1, beta2, eps,
    BLOCK: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    factor = tl.load(numbers_ptr)
    if factor >= 0.0:
        decay, size, scale = tl.load(numbers_ptr + 1), tl.load(numbers_ptr + 2), tl.load(numbers_ptr + 3)
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        p = tl.load(p_ptr + at, inside, 0.0).to(tl.float32)
        g = tl.load(g_ptr + at, inside, 0.0).to(tl.float32) * factor
        m = tl.load(m_ptr + at, inside, 0.0).to(tl.float32)
        v = tl.load(v_ptr + at, inside, 0.0).to(tl.float32)
        m += (1.0 - beta1) * (g - m)
        v = beta2 * v + (1.0 - beta2) * g * g
        p = p * decay - size * m / (tl.sqrt(v) * scale + eps)
        tl.store(m_ptr + at, m.to(m_ptr.dtype.element_ty), inside)
        tl.store(v_ptr + at, v.to(v_ptr.dtype.element_ty), inside)
        if STOCHASTIC:
            t = tl.load(numbers_ptr + 4).to(tl.int32).to(tl.uint32)
            r = hashed(at.to(tl.uint32) * 0x9E3779B1 + (t * 0x9E3779B1 + place_seed.to(tl.uint32)))
            bits = p.to(tl.uint32, bitcast=True)
            finite = (bits & 0x7F800000) != 0x7F800000
            up = tl.where(finite, bits + (r & 0xFFFF), bits) >> 16
            tl.store(p_ptr + at, up.to(tl.uint16).to(tl.bfloat16, bitcast=True), inside)
        else:
            tl.store(p_ptr + at, p.to(p_ptr.dtype.element_ty), inside)


def step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    numbers: Numbers,
) -> None:
    vector = numbers.vector.float()
    stochastic = numbers.stochastic and parameters[0].dtype == torch.bfloat16
    with on_device_of(parameters[0]):
        for place, (p, g, m, v) in enumerate(zip(parameters, gradients, means, squares, strict=True)):
            assert all(t.is_contiguous() for t in (p, m, v))
            step_kernel[(cdiv(p.numel(), BLOCK),)](
                p, g.contiguous(), m, v, vector, p.numel(), seed(0, place), numbers.beta1, numbers.beta2, numbers.eps,
                BLOCK=BLOCK, STOCHASTIC=stochastic, num_warps=WARPS,
            )  # fmt: skip
