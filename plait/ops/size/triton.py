"""Programs that walk over x in strides, each with two partial results; these are added up in a fixed order. Floor: one
read of x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import cdiv, direct, on_device_of
from plait.ops.operator import operator

BLOCK, PROGRAMS = 4096, 528  # four programs a multiprocessor of an H100


@direct
@triton.jit
def size_kernel(x_ptr, partials_ptr, n, BLOCK: tl.constexpr):
    squares, top = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK, n, tl.num_programs(0) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, at < n, 0.0).to(tl.float32)
        squares += x * x
        top = tl.maximum(top, tl.abs(x))
    tl.store(partials_ptr + tl.program_id(0), tl.sum(squares, axis=0))
    tl.store(partials_ptr + tl.num_programs(0) + tl.program_id(0), tl.max(top, axis=0))


@operator("plait::size_triton")
def _size(x: Tensor) -> tuple[Tensor, Tensor]:
    n_programs = max(1, min(cdiv(x.numel(), BLOCK), PROGRAMS))
    partials = x.new_empty((2, n_programs), dtype=torch.float32)
    with on_device_of(x):
        size_kernel[(n_programs,)](x.contiguous(), partials, x.numel(), BLOCK=BLOCK, num_warps=8)
    total = partials[0].sum()
    return total, torch.where(total.isnan(), total, partials[1].amax())


@_size.register_fake
def _(x):
    return x.new_empty((), dtype=torch.float32), x.new_empty((), dtype=torch.float32)


def size(x: Tensor) -> tuple[Tensor, Tensor]:
    total, top = _size(x)
    return total, top


@direct
@triton.jit
def add_scaled_kernel(a_ptr, x_ptr, factor_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(factor_ptr).to(tl.float32)
    a, x = tl.load(a_ptr + at, at < n, 0.0), tl.load(x_ptr + at, at < n, 0.0)
    out = a.to(tl.float32) + factor * x.to(tl.float32)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), at < n)


def add_scaled(a: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    a, x = a.contiguous(), x.contiguous()
    out = torch.empty_like(a)
    if a.numel():
        with on_device_of(x):
            add_scaled_kernel[(cdiv(a.numel(), 1024),)](a, x, factor, out, a.numel(), BLOCK=1024, num_warps=4)
    return out
