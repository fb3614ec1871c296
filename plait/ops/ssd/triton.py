"""State-space duality (Mamba-2) in plain Triton, three kernels over chunks of Q tokens (Mamba-2, section 6).

    1  each chunk alone: what its tokens add to the state by its end, and the sum of its log decays
    2  the true state at each chunk's start, carried from chunk to chunk, and each sequence's final state
    3  outputs: from the chunk's own tokens, (C B^T * decays) (dt x), and from its start state

Legend: t, s tokens of a chunk [Q]; p of d_ssm_head [P]; n of d_state [N]; cum_t the sum of log decays up to t.
Products run on the tensor cores in x's type, sums and states are fp32. Chunk j of sequence s is row
cu_seqlens[s] // Q + s + j, so nobody has to know the lengths on the host; no atomics. The backward recomputes through
chunked.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import cdiv, direct, next_power_of_2, on_device_of
from plait.ops.operator import operator
from plait.ops.recompute import gradients
from plait.ops.ssd import chunked

CHUNK = 128  # the states at every chunk's start, fp32, are most of the traffic


@triton.jit
def _chunk(bounds_ptr, n_seqs, row, Q: tl.constexpr):
    """Sequence, first token and one past the last of a row of chunks; some rows are empty (first >= last)."""
    low, high = 0, n_seqs - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(bounds_ptr + middle) // Q + middle <= row:
            low = middle
        else:
            high = middle - 1
    start, stop = tl.load(bounds_ptr + low).to(tl.int64), tl.load(bounds_ptr + low + 1).to(tl.int64)
    first = start + (row - start // Q - low) * Q
    return low, first, tl.minimum(first + Q, stop)


@triton.jit
def _log_decays(dt_ptr, A_ptr, bias_ptr, at, inside, head, n_heads):
    """delta [Q] (0 past the end) and the running sum of delta A."""
    raw = tl.load(dt_ptr + at * n_heads + head, inside, 0.0).to(tl.float32) + tl.load(bias_ptr + head).to(tl.float32)
    delta = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 20.0))))
    delta = tl.where(raw < -5.0, _small_softplus(raw), delta)
    delta = tl.where(inside, delta, 0.0)
    return delta, tl.cumsum(delta * tl.load(A_ptr + head).to(tl.float32), 0)


@triton.jit
def _small_softplus(x):
    """log(1 + e) by its series, where 1 + e would lose e's digits: e < 0.007."""
    e = tl.exp(tl.minimum(x, 0.0))
    return e * (1.0 - e * (0.5 - e * (0.3333333333 - e * 0.25)))


@direct
@triton.jit
def _gained_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, bounds_ptr, gained_ptr, total_ptr, n_seqs, n_heads, n_groups, d_head,
    d_state,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    _, first, last = _chunk(bounds_ptr, n_seqs, row, Q)
    if first < last:
        t, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
        inside, at = first + t < last, first + t
        delta, cum = _log_decays(dt_ptr, A_ptr, bias_ptr, at, inside, head, n_heads)
        total = tl.sum(tl.where(t == Q - 1, cum, 0.0), 0)
        group = head // (n_heads // n_groups)
        x_at = x_ptr + (at * n_heads + head)[None, :] * d_head + p[:, None]
        x = tl.load(x_at, inside[None, :] & (p < d_head)[:, None], 0.0)
        B_at = B_ptr + (at * n_groups + group)[:, None] * d_state + n[None, :]
        B = tl.load(B_at, inside[:, None] & (n < d_state)[None, :], 0.0)
        driven = (x.to(tl.float32) * (delta * tl.exp(total - cum))[None, :]).to(x.dtype)
        gained = tl.dot(driven, B, input_precision="ieee")
        of_h = (row.to(tl.int64) * n_heads + head) * d_head * d_state + p[:, None] * d_state + n[None, :]
        tl.store(gained_ptr + of_h, gained, (p < d_head)[:, None] & (n < d_state)[None, :])
        tl.store(total_ptr + row * n_heads + head, total)


@direct
@triton.jit
def _carry_kernel(
    bounds_ptr, initial_ptr, gained_ptr, total_ptr, final_ptr, n_heads, size,
    Q: tl.constexpr, BLOCK: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """In place: what a chunk gained becomes the state it starts from."""
    seq, head, i = tl.program_id(2), tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(bounds_ptr + seq).to(tl.int64), tl.load(bounds_ptr + seq + 1).to(tl.int64)
    of_seq = (seq.to(tl.int64) * n_heads + head) * size + i
    h = tl.zeros([BLOCK], tl.float32)
    if HAS_INITIAL:
        h = tl.load(initial_ptr + of_seq, i < size, 0.0).to(tl.float32)
    first_row = begin // Q + seq
    for chunk in range(tl.cdiv(end - begin, Q)):
        row = first_row + chunk
        at = (row * n_heads + head) * size + i
        gained, total = tl.load(gained_ptr + at, i < size, 0.0), tl.load(total_ptr + row * n_heads + head)
        tl.store(gained_ptr + at, h, i < size)
        h = tl.exp(total) * h + gained
    tl.store(final_ptr + of_seq, h, i < size)


@direct
@triton.jit
def _output_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, bounds_ptr, starts_ptr, out_ptr, n_seqs, n_heads, n_groups,
    d_head, d_state,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    _, first, last = _chunk(bounds_ptr, n_seqs, row, Q)
    if first < last:
        t, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
        inside, at = first + t < last, first + t
        delta, cum = _log_decays(dt_ptr, A_ptr, bias_ptr, at, inside, head, n_heads)
        group = head // (n_heads // n_groups)
        in_x, in_bc = inside[:, None] & (p < d_head)[None, :], inside[:, None] & (n < d_state)[None, :]
        of_x = (at * n_heads + head)[:, None] * d_head + p[None, :]
        of_bc = (at * n_groups + group)[:, None] * d_state + n[None, :]
        x = tl.load(x_ptr + of_x, in_x, 0.0)
        B, C = tl.load(B_ptr + of_bc, in_bc, 0.0), tl.load(C_ptr + of_bc, in_bc, 0.0)
        between = tl.where(t[:, None] >= t[None, :], cum[:, None] - cum[None, :], -float("inf"))
        weight = tl.dot(C, tl.trans(B), input_precision="ieee") * tl.exp(between) * delta[None, :]
        y = tl.dot(weight.to(x.dtype), x, input_precision="ieee")
        of_h = (row.to(tl.int64) * n_heads + head) * d_head * d_state + p[None, :] * d_state + n[:, None]
        h = tl.load(starts_ptr + of_h, (p < d_head)[None, :] & (n < d_state)[:, None], 0.0)
        y += tl.exp(cum)[:, None] * tl.dot(C, h.to(C.dtype), input_precision="ieee")
        y += tl.load(D_ptr + head).to(tl.float32) * x.to(tl.float32)
        tl.store(out_ptr + of_x, y.to(out_ptr.dtype.element_ty), in_x)


@operator("plait::ssd_triton")
def _ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, cu_seqlens: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (tokens, n_heads, d_head), (n_groups, d_state), n_seqs = x.shape, B.shape[1:], cu_seqlens.shape[0] - 1
    x, dt, A, B, C, D, dt_bias = (t.contiguous() for t in (x, dt, A, B, C, D, dt_bias))
    n_rows, size = tokens // CHUNK + n_seqs, d_head * d_state
    states = x.new_empty(n_rows, n_heads, d_head, d_state, dtype=torch.float32)
    totals = x.new_empty(n_rows, n_heads, dtype=torch.float32)
    out, final = torch.empty_like(x), x.new_empty(n_seqs, *states.shape[1:], dtype=torch.float32)
    P, N = (max(16, next_power_of_2(d)) for d in (d_head, d_state))
    block = min(1024, next_power_of_2(size))
    sizes = (n_seqs, n_heads, n_groups, d_head, d_state)
    with on_device_of(x):
        _gained_kernel[(n_rows, n_heads)](
            x, dt, A, B, dt_bias, cu_seqlens, states, totals, *sizes, Q=CHUNK, P=P, N=N, num_warps=8
        )
        _carry_kernel[(cdiv(size, block), n_heads, n_seqs)](
            cu_seqlens, None if initial_state is None else initial_state.contiguous(), states, totals, final, n_heads,
            size, Q=CHUNK, BLOCK=block, HAS_INITIAL=initial_state is not None,
        )  # fmt: skip
        _output_kernel[(n_rows, n_heads)](
            x, dt, A, B, C, D, dt_bias, cu_seqlens, states, out, *sizes, Q=CHUNK, P=P, N=N, num_warps=8
        )
    return out, final


@_ssd.register_fake
def _(x, dt, A, B, C, D, dt_bias, cu_seqlens, initial_state):
    return x.new_empty(x.shape), x.new_empty(cu_seqlens.shape[0] - 1, *x.shape[1:], B.shape[2], dtype=torch.float32)


@operator("plait::ssd_triton_backward")
def _ssd_backward(
    dy: Tensor, dfinal: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor,
    cu_seqlens: Tensor, initial_state: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the floating inputs, in order."""
    given = (x, dt, A, B, C, D, dt_bias, cu_seqlens, initial_state)
    wanted = [t is not None and t.is_floating_point() for t in given]
    return gradients(chunked.ssd, given, wanted, (dy, dfinal))


@_ssd_backward.register_fake
def _(dy, dfinal, *inputs):
    *given, _, initial_state = inputs
    return [t.new_empty(t.shape) for t in (*given, initial_state) if t is not None]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.final_shape = output[1].shape


def _differentiate(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: under activation checkpointing a second reading fails
    x, initial_state = saved[0], saved[-1]
    dy = x.new_zeros(x.shape) if dy is None else dy
    dfinal = x.new_zeros(ctx.final_shape, dtype=torch.float32) if dfinal is None else dfinal
    grads = _ssd_backward(dy, dfinal, *saved)
    return *grads[:7], None, None if initial_state is None else grads[7]


_ssd.register_autograd(_differentiate, setup_context=_remember)


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, cu_seqlens: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _ssd(x, dt, A, B, C, D, dt_bias, cu_seqlens, initial_state)
