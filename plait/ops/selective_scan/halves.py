"""Few sequences, cut in two for the backward: a program takes 64 channels of one sequence from end to start, so one
sequence of 4096 channels keeps 64 of an H100's 132 multiprocessors busy.

A second half needs nothing from the first (the states at its start are saved), and the first needs the gradient of the
state between them. That is a sum over the second half's tokens, which can be taken in any order:

    g = sum_t exp(A S_t) C_t dy_t + exp(A S_end) g_end,    S_t = dt_mid + ... + dt_t,  dy_t = dout_t silu(z_t)

chunks of it by programs of their own, then over the chunks. Cost: an exponential per (token, channel, state index) of
half the tokens.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import cdiv, direct, next_power_of_2, on_device_of, speaks_ptx
from plait.ops.selective_scan.triton import LOG2E, SAVED_TILE, exp2, reciprocal, rows, softplus

CHUNK, TILE, CHANNELS = 512, 16, 16
LEAST = 1024  # tokens of a sequence on average, below which two halves bring nothing


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def pay(u: Tensor, n_seqs: int, channels: int) -> bool:
    """Whether twice as many programs of `channels` channels still find a multiprocessor each."""
    tokens, d_inner = u.shape
    return tokens >= LEAST * n_seqs and 2 * cdiv(d_inner, channels) * n_seqs <= _multiprocessors(u.device)


@direct
@triton.jit
def cut_kernel(bounds_ptr, cut_ptr, n_seqs, T: tl.constexpr):
    seq = tl.program_id(0)
    start = tl.load(bounds_ptr + seq)
    tl.store(cut_ptr + 2 * seq, start)
    if seq < n_seqs:
        length = tl.load(bounds_ptr + seq + 1) - start
        tl.store(cut_ptr + 2 * seq + 1, start + tl.minimum(length, (length + 2 * T - 1) // (2 * T) * T))


@direct
@triton.jit
def chunk_kernel(
    dt_ptr, A_ptr, C_ptr, z_ptr, dout_ptr, bias_ptr, cut_ptr, sums_ptr, elapsed_ptr,
    dt_stride, C_stride, z_stride, dout_stride, d_inner, d_state, n_seqs,
    CHUNK: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, N: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """A chunk's share of g, counted from the chunk's start, [chunk, seq, d_inner, d_state], and the sum of its dt."""
    seq, chunk = tl.program_id(1), tl.program_id(2)
    d, n, r = tl.program_id(0) * BD + tl.arange(0, BD), tl.arange(0, N), tl.arange(0, T)
    in_d, in_n = d < d_inner, n < d_state
    begin = tl.load(cut_ptr + 2 * seq + 1).to(tl.int64) + chunk * CHUNK
    end = tl.minimum(tl.load(cut_ptr + 2 * seq + 2).to(tl.int64), begin + CHUNK)
    A2 = tl.load(A_ptr + d[:, None] * d_state + n[None, :], in_d[:, None] & in_n[None, :], 0.0).to(tl.float32) * LOG2E
    bias = tl.load(bias_ptr + d, in_d, 0.0).to(tl.float32)
    total, elapsed = tl.zeros([BD, N], tl.float32), tl.zeros([BD], tl.float32)
    for first in range(begin, end, T):
        token = first + r
        inside = (token < end)[:, None] & in_d[None, :]
        raw = tl.load(dt_ptr + token[:, None] * dt_stride + d[None, :], inside, 0.0).to(tl.float32)
        dt = tl.where(inside, softplus(raw + bias[None, :], PTX), 0.0)
        gate = tl.load(z_ptr + token[:, None] * z_stride + d[None, :], inside, 0.0).to(tl.float32)
        dout = tl.load(dout_ptr + token[:, None] * dout_stride + d[None, :], inside, 0.0).to(tl.float32)
        C = tl.load(C_ptr + token[:, None] * C_stride + n[None, :], (token < end)[:, None] & in_n[None, :], 0.0)
        dy = dout * gate * reciprocal(1.0 + exp2(-gate * LOG2E, PTX), PTX)
        passed = elapsed[None, :] + tl.cumsum(dt, axis=0)  # [T, BD]
        decay = exp2(passed[:, :, None] * A2[None, :, :], PTX)
        total += tl.sum(decay * dy[:, :, None] * C.to(tl.float32)[:, None, :], axis=0)
        elapsed += tl.sum(dt, axis=0)
    row = (chunk * n_seqs + seq).to(tl.int64) * d_inner
    tl.store(sums_ptr + (row + d)[:, None] * d_state + n[None, :], total, in_d[:, None] & in_n[None, :])
    tl.store(elapsed_ptr + row + d, elapsed, in_d)


@direct
@triton.jit
def over_chunks_kernel(
    A_ptr, dfinal_ptr, sums_ptr, elapsed_ptr, ends_ptr, d_inner, d_state, n_seqs, n_chunks,
    BD: tl.constexpr, N: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """g [seq, d_inner, d_state] and dfinal into the gradients of both halves' last states."""
    seq = tl.program_id(1)
    d, n = tl.program_id(0) * BD + tl.arange(0, BD), tl.arange(0, N)
    in_d = d < d_inner
    at, inside = d[:, None] * d_state + n[None, :], in_d[:, None] & (n < d_state)[None, :]
    A2 = tl.load(A_ptr + at, inside, 0.0).to(tl.float32) * LOG2E
    size = d_inner * d_state
    g = tl.load(dfinal_ptr + seq.to(tl.int64) * size + at, inside, 0.0).to(tl.float32)
    tl.store(ends_ptr + (2 * seq + 1).to(tl.int64) * size + at, g, inside)
    for back in range(n_chunks):
        row = ((n_chunks - 1 - back) * n_seqs + seq).to(tl.int64)
        elapsed = tl.load(elapsed_ptr + row * d_inner + d, in_d, 0.0)
        g = exp2(elapsed[:, None] * A2, PTX) * g + tl.load(sums_ptr + row * size + at, inside, 0.0)
    tl.store(ends_ptr + (2 * seq).to(tl.int64) * size + at, g, inside)


def halved(
    dy: Tensor, dfinal: Tensor, dt: Tensor, A: Tensor, C: Tensor, z: Tensor, dt_bias: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    """cu_seqlens of the halves, [2 n_seqs + 1], each first one a multiple of SAVED_TILE tokens (the second may be
    empty); and the gradients of the states they end with, [2 n_seqs, d_inner, d_state].
    """
    (tokens, d_inner), d_state, n_seqs = dt.shape, A.shape[1], cu_seqlens.shape[0] - 1
    dt, C, z, dy = (rows(t) for t in (dt, C, z, dy))
    n_chunks = cdiv(tokens // 2 + SAVED_TILE, CHUNK)
    cut = cu_seqlens.new_empty(2 * n_seqs + 1)
    sums = dt.new_empty((n_chunks, n_seqs, *A.shape), dtype=torch.float32)
    elapsed = dt.new_empty((n_chunks, n_seqs, d_inner), dtype=torch.float32)
    ends = dt.new_empty((2 * n_seqs, *A.shape), dtype=torch.float32)
    N, blocks, ptx, A = next_power_of_2(d_state), cdiv(d_inner, CHANNELS), speaks_ptx(dt), A.contiguous()
    with on_device_of(dt):
        cut_kernel[(n_seqs + 1,)](cu_seqlens, cut, n_seqs, T=SAVED_TILE)
        chunk_kernel[(blocks, n_seqs, n_chunks)](
            dt, A, C, z, dy, dt_bias.contiguous(), cut, sums, elapsed,
            dt.stride(0), C.stride(0), z.stride(0), dy.stride(0), d_inner, d_state, n_seqs,
            CHUNK=CHUNK, T=TILE, BD=CHANNELS, N=N, PTX=ptx, num_warps=4,
        )  # fmt: skip
        over_chunks_kernel[(blocks, n_seqs)](
            A, dfinal.contiguous(), sums, elapsed, ends, d_inner, d_state, n_seqs, n_chunks,
            BD=CHANNELS, N=N, PTX=ptx, num_warps=1,
        )  # fmt: skip
    return cut, ends
