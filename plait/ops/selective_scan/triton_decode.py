"""One decode step of the selective scan in plain Triton: the state update alone, and with all that lies between x_proj
and out_proj. Legend as in triton.py.

Floor: the state read and written once, and what projects dt read once. At one sequence a step is mostly launches: the
kernels start while the one before them ends (see launch.py), and the fused one is one launch instead of three.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take no types but constexpr)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import cdiv, direct, next_power_of_2, on_device_of, overlaps, speaks_ptx
from plait.ops.selective_scan.triton import LOG2E, rows, sigmoid, softplus, step

CHANNELS, WARPS = 32, 1
FUSED_CHANNELS, FUSED_WARPS = 16, 2
FEW_SEQUENCES = 4  # beyond, the fused kernel would read the projection of dt too often


@triton.jit
def advance(
    h_ptr, A_ptr, D_ptr, z_ptr, out_ptr, dt, x, B, C, d, n, d_inner, d_state, PTX: tl.constexpr
):  # fmt: skip
    """The new state of channels d of one sequence, written back, and the gated output."""
    in_d, in_h = d < d_inner, (d < d_inner)[:, None] & (n < d_state)[None, :]
    of_h = d[:, None] * d_state + n[None, :]
    h = tl.load(h_ptr + of_h, in_h, 0.0).to(tl.float32)
    A2 = tl.load(A_ptr + of_h, in_h, 0.0).to(tl.float32) * LOG2E
    z = tl.load(z_ptr + d, in_d, 0.0).to(tl.float32)
    h, y = step(h, A2, dt, dt * x, B, C, PTX)
    tl.store(h_ptr + of_h, h, in_h)
    y += tl.load(D_ptr + d, in_d, 0.0).to(tl.float32) * x
    tl.store(out_ptr + d, y * z * sigmoid(z, PTX), in_d)


@direct
@triton.jit
def update_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, slots_ptr, out_ptr,
    u_stride, dt_stride, B_stride, C_stride, z_stride, d_inner, d_state,
    BD: tl.constexpr, N: tl.constexpr, PTX: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One token of one sequence."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    seq, d, n = tl.program_id(1).to(tl.int64), tl.program_id(0) * BD + tl.arange(0, BD), tl.arange(0, N)
    in_d, in_n = d < d_inner, n < d_state
    states_ptr += tl.load(slots_ptr + seq).to(tl.int64) * d_inner * d_state
    raw = tl.load(dt_ptr + seq * dt_stride + d, in_d, 0.0).to(tl.float32)
    dt = softplus(raw + tl.load(bias_ptr + d, in_d, 0.0).to(tl.float32), PTX)
    x = tl.load(u_ptr + seq * u_stride + d, in_d, 0.0).to(tl.float32)
    B = tl.load(B_ptr + seq * B_stride + n, in_n, 0.0).to(tl.float32)
    C = tl.load(C_ptr + seq * C_stride + n, in_n, 0.0).to(tl.float32)
    advance(
        states_ptr, A_ptr, D_ptr, z_ptr + seq * z_stride, out_ptr + seq * d_inner, dt, x, B, C, d, n, d_inner, d_state,
        PTX,
    )  # fmt: skip


@triton.jit
def normed(x_ptr, weight_ptr, column, d, eps):
    """d values from x_ptr on, normalised as ops.rms_norm does it and rounded to their own type."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + column, column < d, 0.0).to(tl.float32)
    x = (x * tl.rsqrt(tl.sum(x * x, axis=0) / d + eps)).to(DTYPE).to(tl.float32)
    return (x * tl.load(weight_ptr + column, column < d, 0.0).to(tl.float32)).to(DTYPE).to(tl.float32)


@direct
@triton.jit
def step_kernel(
    u_ptr, projected_ptr, dt_norm_ptr, B_norm_ptr, C_norm_ptr, weight_ptr, A_ptr, D_ptr, z_ptr, bias_ptr, states_ptr,
    slots_ptr, out_ptr, u_stride, projected_stride, z_stride, d_inner, d_state, dt_rank, eps,
    BD: tl.constexpr, N: tl.constexpr, R: tl.constexpr, PTX: tl.constexpr, EARLY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One token of one sequence from x_proj's output. Every program normalises dt, B and C again: 288 numbers."""
    d, k, n = tl.program_id(0) * BD + tl.arange(0, BD), tl.arange(0, R), tl.arange(0, N)
    in_d = d < d_inner
    weight_at = weight_ptr + d[:, None] * dt_rank + k[None, :]
    in_weight = in_d[:, None] & (k < dt_rank)[None, :]
    if OVERLAP and not EARLY:
        tl.extra.cuda.gdc_wait()
    weight = tl.load(weight_at, in_weight, 0.0)
    if OVERLAP:
        if EARLY:
            tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    seq = tl.program_id(1).to(tl.int64)
    projected_ptr += seq * projected_stride
    states_ptr += tl.load(slots_ptr + seq).to(tl.int64) * d_inner * d_state
    low = normed(projected_ptr, dt_norm_ptr, k, dt_rank, eps)
    B = normed(projected_ptr + dt_rank, B_norm_ptr, n, d_state, eps)
    C = normed(projected_ptr + dt_rank + d_state, C_norm_ptr, n, d_state, eps)
    raw = tl.sum(weight.to(tl.float32) * low[None, :], axis=1).to(u_ptr.dtype.element_ty).to(tl.float32)
    dt = softplus(raw + tl.load(bias_ptr + d, in_d, 0.0).to(tl.float32), PTX)
    x = tl.load(u_ptr + seq * u_stride + d, in_d, 0.0).to(tl.float32)
    advance(
        states_ptr, A_ptr, D_ptr, z_ptr + seq * z_stride, out_ptr + seq * d_inner, dt, x, B, C, d, n, d_inner, d_state,
        PTX,
    )  # fmt: skip


def selective_scan_update(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, states: Tensor,
    slots: Tensor,
) -> Tensor:  # fmt: skip
    """Mutates states, which must be contiguous: they are a pool."""
    (n_seqs, d_inner), d_state = u.shape, A.shape[1]
    _check_pool(states)
    u, dt, B, C, z = (rows(t) for t in (u, dt, B, C, z))
    y = u.new_empty(u.shape)
    overlap = overlaps(u)
    with on_device_of(u):
        update_kernel[(cdiv(d_inner, CHANNELS), n_seqs)](
            u, dt, A.contiguous(), B, C, D.contiguous(), z, dt_bias.contiguous(), states, slots, y,
            u.stride(0), dt.stride(0), B.stride(0), C.stride(0), z.stride(0), d_inner, d_state,
            BD=CHANNELS, N=next_power_of_2(d_state), PTX=speaks_ptx(u), OVERLAP=overlap, num_warps=WARPS,
            **({"launch_pdl": True} if overlap else {}),
        )  # fmt: skip
    return y


def selective_scan_step(
    u: Tensor, projected: Tensor, norms: tuple[Tensor, Tensor, Tensor], eps: float, dt_weight: Tensor, A: Tensor,
    D: Tensor, z: Tensor, dt_bias: Tensor, states: Tensor, slots: Tensor,
) -> Tensor:  # fmt: skip
    """Mutates states. For at most FEW_SEQUENCES; a dt_weight that is a parameter counts as a constant (launch.py)."""
    (n_seqs, d_inner), d_state, dt_rank = u.shape, A.shape[1], dt_weight.shape[1]
    _check_pool(states)
    u, projected, z = (rows(t) for t in (u, projected, z))
    y = u.new_empty(u.shape)
    overlap = overlaps(u)
    with on_device_of(u):
        step_kernel[(cdiv(d_inner, FUSED_CHANNELS), n_seqs)](
            u, projected, *norms, dt_weight, A, D, z, dt_bias, states, slots, y,
            u.stride(0), projected.stride(0), z.stride(0), d_inner, d_state, dt_rank, eps,
            BD=FUSED_CHANNELS, N=next_power_of_2(d_state), R=next_power_of_2(dt_rank),
            PTX=speaks_ptx(u), EARLY=isinstance(dt_weight, torch.nn.Parameter), OVERLAP=overlap,
            num_warps=FUSED_WARPS, **({"launch_pdl": True} if overlap else {}),
        )  # fmt: skip
    return y


def _check_pool(states: Tensor) -> None:
    if not states.is_contiguous():
        raise ValueError(f"states must be contiguous, got strides {states.stride()} for shape {tuple(states.shape)}")
