"""The selective scan on the CPU in C (plait/native/src/scan*.c): forward, backward and one decode step.

A channel is stepped token by token in fp32, whatever the cut into sequences, calls or threads, so whole = chunked =
token by token holds to the last bit in fp32. The backward stores one state per 32 tokens and sums in an order that only
the shapes decide.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from plait import native
from plait.native import why_not as why_not  # for IMPLEMENTATIONS
from plait.ops.dispatch import outside_graphs

CHUNK, MAX_STATE, MAX_SUMS = 32, 256, 32  # of src/scan.h
LANES = 16  # no level has wider vectors

INTEGERS = (
    "n_seqs",
    "d_inner",
    "d_state",
    "tokens",
    "n_threads",
    "type",
    "bc_type",
    "u_stride",
    "dt_stride",
    "z_stride",
    "B_stride",
    "C_stride",
    "y_stride",
)
POINTERS = (
    "u",
    "dt",
    "z",
    "B",
    "C",
    "A",
    "D",
    "dt_bias",
    "cu_seqlens",
    "y",
    "state_in",
    "state_out",
    "slots",
)
BACKWARD_POINTERS = (
    "gy",
    "g_state_out",
    "gu",
    "gdt",
    "gz",
    "gB",
    "gC",
    "gA",
    "gD",
    "gdt_bias",
    "g_state_in",
    "sums_BC",
    "sums_A",
    "sums_D",
    "sums_dt",
)


class ScanArgs(native.Arguments):
    """scan_args of src/scan.h, in its order."""

    _fields_ = native.fields(INTEGERS, POINTERS, ("n_slots",), ("chunk_states",), ("gy_stride",), BACKWARD_POINTERS)

    def read_once(self) -> list[tuple[int, int]]:
        return [(self.A, self.d_inner * self.d_state * 4)]


@outside_graphs
def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    inputs = (u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return SelectiveScan.apply(*inputs)
    y, final_state, _ = _forward(*_ready(*inputs), save=False)
    return y, final_state


@outside_graphs
def selective_scan_update(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    states: Tensor,
    slots: Tensor,
) -> Tensor:
    """One token of each sequence: as many sequences of one token, their states read and written in the pool."""
    if states.dtype != torch.float32 or not states.is_contiguous():
        pool = states[slots].float()
        y = selective_scan_update(u, dt, A, B, C, D, z, dt_bias, pool, torch.arange(len(slots)))
        states[slots] = pool.to(states.dtype)
        return y
    u, dt, A, B, C, D, z, dt_bias, each, _ = _ready(u, dt, A, B, C, D, z, dt_bias, native.one_each(len(slots)), None)
    slots = native.dense(slots, torch.int64)
    y = torch.empty(u.shape, dtype=u.dtype)
    args = _arguments(u, dt, A, B, C, D, z, dt_bias, each, y)
    args.point(state_in=states, state_out=states, slots=slots)
    args.n_slots = len(states)
    native.call("scan_forward", args)
    return y


class SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
        ready = _ready(*inputs)
        y, final_state, chunk_states = _forward(*ready, save=True)
        ctx.save_for_backward(*ready, chunk_states)
        ctx.dtypes = [None if t is None else t.dtype for t in inputs]
        return y, final_state

    @staticmethod
    def backward(ctx, gy, g_final):  # type: ignore[no-untyped-def]
        grads = _backward(gy, g_final, *ctx.saved_tensors)
        return tuple(None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True))


def _ready(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, ...]:
    """The dtypes and layouts the kernels take; nothing is copied that has them."""
    if A.shape[1] > MAX_STATE:
        raise ValueError(
            f"d_state={A.shape[1]}: the native scan takes at most {MAX_STATE}; PLAIT_OPS=selective_scan=chunked"
        )
    assert u.shape == dt.shape == z.shape == (B.shape[0], A.shape[0])
    assert B.shape == C.shape == (u.shape[0], A.shape[1])
    rows, dense, f32 = native.rows, native.dense, torch.float32
    bc = B.dtype if B.dtype is C.dtype and B.dtype in (f32, torch.bfloat16) else f32
    return (
        rows(u, u.dtype), rows(dt, u.dtype), dense(A, f32), rows(B, bc), rows(C, bc), dense(D, f32), rows(z, u.dtype),
        dense(dt_bias, f32), dense(cu_seqlens, torch.int32),
        None if initial_state is None else dense(initial_state, f32),
    )  # type: ignore[return-value]  # fmt: skip


def _arguments(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor,
    y: Tensor,
) -> ScanArgs:
    strides = (t.stride(0) for t in (u, dt, z, B, C, y))
    numbers = (
        len(cu_seqlens) - 1,
        *A.shape,
        u.shape[0],
        torch.get_num_threads(),
        native.TYPES[u.dtype],
        native.TYPES[B.dtype],
    )
    return ScanArgs(*numbers, *strides, *(t.data_ptr() for t in (u, dt, z, B, C, A, D, dt_bias, cu_seqlens, y)))


def _forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    *,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    n_seqs, (d_inner, d_state) = len(cu_seqlens) - 1, A.shape
    y = torch.empty(u.shape, dtype=u.dtype)
    final_state = torch.empty(n_seqs, d_inner, d_state)
    n_chunks = u.shape[0] // CHUNK + n_seqs
    chunk_states = torch.empty(n_chunks, -(-d_inner // LANES) * LANES, d_state) if save else None
    args = _arguments(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, y)
    args.point(state_in=initial_state, state_out=final_state, chunk_states=chunk_states)
    native.call("scan_forward", args)
    return y, final_state, chunk_states


def _backward(
    gy: Tensor,
    g_final: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    chunk_states: Tensor,
) -> Iterable[Tensor | None]:
    n_seqs, (d_inner, d_state), tokens = len(cu_seqlens) - 1, A.shape, u.shape[0]
    gy, g_final = native.rows(gy, u.dtype), native.dense(g_final, torch.float32)
    gu, gdt, gz = (torch.empty(u.shape, dtype=u.dtype) for _ in range(3))
    gB, gC = (torch.empty(B.shape, dtype=B.dtype) for _ in range(2))
    gA, gD, g_bias = torch.empty_like(A), torch.empty_like(D), torch.empty_like(dt_bias)
    g_initial = None if initial_state is None else torch.empty_like(initial_state)
    sums_BC = torch.empty(min(MAX_SUMS, -(-d_inner // 64)), tokens, 2 * d_state)
    sums_A, sums_D, sums_dt = (
        torch.empty(n_seqs, d_inner, d_state),
        torch.empty(n_seqs, d_inner),
        torch.empty(n_seqs, d_inner),
    )
    args = _arguments(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, gy)
    args.y_stride, args.gy_stride = 0, gy.stride(0)
    args.point(
        y=None,
        chunk_states=chunk_states,
        gy=gy,
        g_state_out=g_final,
        gu=gu,
        gdt=gdt,
        gz=gz,
        gB=gB,
        gC=gC,
        gA=gA,
        gD=gD,
        gdt_bias=g_bias,
        g_state_in=g_initial,
        sums_BC=sums_BC,
        sums_A=sums_A,
        sums_D=sums_D,
        sums_dt=sums_dt,
    )
    native.call("scan_backward", args)
    return gu, gdt, gA, gB, gC, gD, gz, g_bias, None, g_initial
