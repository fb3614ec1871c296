"""One launch each way, where indexing takes two or three. Floor: every state read once and written once."""

import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import cdiv, direct, on_device_of

BLOCK = 2048


@direct
@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "fresh_ptr"])  # they begin behind the rows that decode
def take_kernel(pool_ptr, slots_ptr, fresh_ptr, out_ptr, A, B: tl.constexpr, TURNED: tl.constexpr, BLOCK: tl.constexpr):
    """Writes in the order of memory of `out`, which is [n, B, A] if TURNED."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < A * B
    source = at % A * B + at // A if TURNED else at
    kept = inside & (tl.load(fresh_ptr + row) == 0)
    held = tl.load(pool_ptr + tl.load(slots_ptr + row).to(tl.int64) * A * B + source, kept, other=0.0)
    tl.store(out_ptr + row * A * B + at, held, inside)


@direct
@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def put_kernel(pool_ptr, slots_ptr, rows_ptr, A, B: tl.constexpr, TURNED: tl.constexpr, BLOCK: tl.constexpr):
    """Writes in the order of the pool, from rows that are [n, B, A] if TURNED."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < A * B
    source = at % B * A + at // B if TURNED else at
    value = tl.load(rows_ptr + row * A * B + source, inside)
    target = pool_ptr + tl.load(slots_ptr + row).to(tl.int64) * A * B + at
    tl.store(target, value.to(pool_ptr.dtype.element_ty), inside)


def take(pool: Tensor, slots: Tensor, fresh: Tensor) -> Tensor:
    A, B = _sizes(pool)
    turned = pool.dim() == 3 and B < 8
    n = slots.shape[0]
    out = pool.new_empty((n, B, A) if turned else (n, *pool.shape[1:]))
    with on_device_of(pool):
        take_kernel[(cdiv(A * B, BLOCK), n)](
            pool, slots, fresh, out, A, B=B, TURNED=turned, BLOCK=BLOCK, num_warps=8
        )  # fmt: skip
    return out.transpose(1, 2) if turned else out


def put(pool: Tensor, slots: Tensor, rows: Tensor) -> None:
    A, B = _sizes(pool)
    turned = rows.dim() == 3 and rows.stride() == (A * B, 1, A) and B > 1
    rows = rows if turned else rows.contiguous()
    with on_device_of(pool):
        put_kernel[(cdiv(A * B, BLOCK), slots.shape[0])](
            pool, slots, rows, A, B=B, TURNED=turned, BLOCK=BLOCK, num_warps=8
        )  # fmt: skip


def _sizes(pool: Tensor) -> tuple[int, int]:
    """A slot's rows and their width. ValueError for a pool that is not in one piece: copies would not reach it."""
    if not pool.is_contiguous():
        raise ValueError(f"a pool must be contiguous, got strides {pool.stride()} for shape {tuple(pool.shape)}")
    width = pool.shape[-1]
    return pool[0].numel() // width, width
