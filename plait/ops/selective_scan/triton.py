"""The selective scan in plain Triton: runs wherever Triton does, in its CPU interpreter too.

Legend of the kernels

    T   tokens of a tile              BD  channels of a program          N   d_state, padded to a power of two
    r   token inside the tile [T]     d   channel [BD]                   n   state index [N]
    h   state [BD, N], fp32           A2  A log2(e), so that the decay exp(dt A) is exp2(dt A2)

A program takes one block of channels of one sequence through time, so a sequence start costs nothing and no step needs
a mask: tokens past the end of a sequence have dt = 0, which leaves the state alone. What all state indices of a (token,
channel) share (softplus, gate, products) is computed once per tile, in a layout with channels along lanes, and handed
to the steps, whose layout has state indices in registers, through `scratch`: a few KiB of global memory per program
that stay in cache. Plain Triton has no shared memory to place by hand; gluon.py has, and is the faster twin on Hopper.
B and C are read once for BD channels.

Floor: d_inner * tokens * d_state exponentials (4.19e12 a second on an H100), forward and backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import cdiv, direct, next_power_of_2, on_device_of, speaks_ptx
from plait.ops.selective_scan.registration import empty_results, exporting, register, saved_rows

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

FORWARD_CHANNELS, FORWARD_WARPS = 32, 2
BACKWARD_CHANNELS, BACKWARD_WARPS = 16, 1  # one warp: its sums over channels are shuffles, with no barrier
INFERENCE_TILE, SAVED_TILE = 32, 16  # training stores a state per tile for the backward
MAX_PROGRAMS = 4096  # bounds the scratch; more work is looped over


@triton.jit
def exp2(x, PTX: tl.constexpr):
    """2^x for x <= 0 or where a flushed denormal is harmless. tl.exp2 spends three more instructions on denormals."""
    if PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def reciprocal(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def softplus(x, PTX: tl.constexpr):
    """log(1 + e^x) = max(x, 0) + 2 atanh(e / (2 + e)) with e = e^-|x|: accurate to fp32 everywhere, no logarithm."""
    e = exp2(tl.abs(x) * -LOG2E, PTX)
    s = e * reciprocal(2.0 + e, PTX)
    q = s * s
    # 2 atanh(s) / s on [0, 1/9], relative error 4e-9
    series = 2.0000000077 + q * (0.6666632041 + q * (0.4002465133 + q * (0.2796434471 + q * 0.2816145376)))
    return tl.maximum(x, 0.0) + s * series


@triton.jit
def sigmoid(x, PTX: tl.constexpr):
    return reciprocal(1.0 + exp2(x * -LOG2E, PTX), PTX)


@triton.jit
def step(h, A2, dt_row, dtu_row, B_row, C_row, PTX: tl.constexpr):
    """One token: the new state [BD, N] and y [BD]."""
    h = exp2(dt_row[:, None] * A2, PTX) * h + dtu_row[:, None] * B_row[None, :]
    return h, tl.sum(h * C_row[None, :], axis=1)


@direct
@triton.jit(do_not_specialize=["n_seqs"])
def forward_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, bounds_ptr, initial_ptr, export_at_ptr,
    out_ptr, final_ptr, tile_states_ptr, pre_gate_ptr, exported_ptr, scratch_ptr,
    u_stride, dt_stride, B_stride, C_stride, z_stride, d_inner, d_state, n_seqs,
    T: tl.constexpr, BD: tl.constexpr, N: tl.constexpr, HAS_INITIAL: tl.constexpr, SAVE: tl.constexpr,
    EXPORT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """EXPORT: a sequence's tiles are cut after export_at tokens, and the state there is stored too."""
    r, d_local, n = tl.arange(0, T), tl.arange(0, BD), tl.arange(0, N)
    eight = tl.arange(0, 8)
    scratch_ptr += tl.program_id(0).to(tl.int64) * (3 * T * BD + 2 * T * N)
    dt_tile, dtu_tile, y_tile = scratch_ptr, scratch_ptr + T * BD, scratch_ptr + 2 * T * BD
    B_tile, C_tile = scratch_ptr + 3 * T * BD, scratch_ptr + 3 * T * BD + T * N
    tile_channels = r[:, None] * BD + d_local[None, :]
    tile_states = r[:, None] * N + n[None, :]
    n_blocks = tl.cdiv(d_inner, BD)

    for item in range(tl.program_id(0), n_blocks * n_seqs, tl.num_programs(0)):
        seq, block = item // n_blocks, item % n_blocks
        begin, end = tl.load(bounds_ptr + seq).to(tl.int64), tl.load(bounds_ptr + seq + 1).to(tl.int64)
        d = block * BD + d_local
        in_d, in_n = d < d_inner, n < d_state
        in_h = in_d[:, None] & in_n[None, :]
        of_h = d[:, None] * d_state + n[None, :]
        A2 = tl.load(A_ptr + of_h, in_h, 0.0).to(tl.float32) * LOG2E
        bias, skip = tl.load(bias_ptr + d, in_d, 0.0).to(tl.float32), tl.load(D_ptr + d, in_d, 0.0).to(tl.float32)
        state_base = seq.to(tl.int64) * d_inner * d_state
        if HAS_INITIAL:
            h = tl.load(initial_ptr + state_base + of_h, in_h, 0.0).to(tl.float32)
        else:
            h = tl.zeros([BD, N], tl.float32)

        cut, n_before = begin, 0  # tiles before the cut
        if EXPORT:
            cut += tl.load(export_at_ptr + seq).to(tl.int64)
            n_before = tl.cdiv(cut - begin, T)
        inside = (begin + r < (cut if n_before > 0 else end))[:, None]
        at = begin + r.to(tl.int64)[:, None]
        dt_raw = tl.load(dt_ptr + at * dt_stride + d[None, :], inside & in_d[None, :], 0.0)
        u = tl.load(u_ptr + at * u_stride + d[None, :], inside & in_d[None, :], 0.0)
        z = tl.load(z_ptr + at * z_stride + d[None, :], inside & in_d[None, :], 0.0)
        B = tl.load(B_ptr + at * B_stride + n[None, :], inside & in_n[None, :], 0.0)
        C = tl.load(C_ptr + at * C_stride + n[None, :], inside & in_n[None, :], 0.0)
        tile_row = begin // T + seq  # room for every sequence's tiles without knowing their number: see saved_rows()

        for tile in range(n_before + tl.cdiv(end - cut, T)):
            t0 = begin + tile * T if tile < n_before else cut + (tile - n_before) * T
            after = t0 + T if tile + 1 < n_before else cut + (tile + 1 - n_before) * T
            if EXPORT:
                tl.store(exported_ptr + state_base + of_h, h, in_h & (tile == n_before))
            if SAVE:
                tl.store(tile_states_ptr + tile_row * d_inner * d_state + of_h, h, in_h)
                tile_row += 1
            x = u.to(tl.float32)
            dt = tl.where(inside, softplus(dt_raw.to(tl.float32) + bias[None, :], PTX), 0.0)
            tl.store(dt_tile + tile_channels, dt)
            tl.store(dtu_tile + tile_channels, dt * x)
            tl.store(B_tile + tile_states, B.to(tl.float32))
            tl.store(C_tile + tile_states, C.to(tl.float32))
            gate = z.to(tl.float32)
            tl.debug_barrier()

            # The next tile's inputs, on their way while this one is stepped through.
            here = inside & in_d[None, :]
            out_at = (t0 + r.to(tl.int64))[:, None] * d_inner + d[None, :]
            inside = (after + r < (cut if tile + 1 < n_before else end))[:, None]
            at = after + r.to(tl.int64)[:, None]
            dt_raw = tl.load(dt_ptr + at * dt_stride + d[None, :], inside & in_d[None, :], 0.0)
            u = tl.load(u_ptr + at * u_stride + d[None, :], inside & in_d[None, :], 0.0)
            z = tl.load(z_ptr + at * z_stride + d[None, :], inside & in_d[None, :], 0.0)
            B = tl.load(B_ptr + at * B_stride + n[None, :], inside & in_n[None, :], 0.0)
            C = tl.load(C_ptr + at * C_stride + n[None, :], inside & in_n[None, :], 0.0)

            for k in range(0, T, 8):
                ys = ()
                for j in tl.static_range(8):
                    t = k + j
                    h, y = step(
                        h, A2, tl.load(dt_tile + t * BD + d_local), tl.load(dtu_tile + t * BD + d_local),
                        tl.load(B_tile + t * N + n), tl.load(C_tile + t * N + n), PTX,
                    )  # fmt: skip
                    ys = ys + (y,)
                # One store of eight steps: a store each step would keep the next step's loads from moving up.
                even, odd = (
                    tl.join(tl.join(ys[0], ys[4]), tl.join(ys[2], ys[6])),
                    tl.join(tl.join(ys[1], ys[5]), tl.join(ys[3], ys[7])),
                )
                y8 = tl.reshape(tl.join(even, odd), [BD, 8])
                tl.store(y_tile + (k + eight)[None, :] * BD + d_local[:, None], y8)
            tl.debug_barrier()

            y = tl.load(y_tile + tile_channels) + skip[None, :] * x
            if SAVE:
                tl.store(pre_gate_ptr + out_at, y, here)
            tl.store(out_ptr + out_at, y * gate * sigmoid(gate, PTX), here)
            tl.debug_barrier()
        tl.store(final_ptr + state_base + of_h, h, in_h)
        if EXPORT:
            tl.store(exported_ptr + state_base + of_h, h, in_h & (cut >= end))


@direct
@triton.jit(do_not_specialize=["n_seqs", "tokens"])
def backward_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, bounds_ptr, tile_states_ptr, pre_gate_ptr, dout_ptr,
    dfinal_ptr,
    du_ptr, ddt_ptr, dz_ptr, dB_ptr, dC_ptr, dA_ptr, dD_ptr, dbias_ptr, dinitial_ptr, scratch_ptr,
    u_stride, dt_stride, B_stride, C_stride, z_stride, dout_stride, d_inner, d_state, n_seqs, tokens,
    T: tl.constexpr, BD: tl.constexpr, N: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Tiles in reverse. Within a tile, with g the gradient of h_t and a_t its decay:

        g_t = dy_t C_t + a_{t+1} g_{t+1}      dC_t = sum_d dy_t h_t      dB_t = sum_d g_t dt_t u_t
        q_t = a_t g_t h_{t-1}                 dA = sum_t q_t dt_t        d(dt_t) = sum_n q_t A + u_t sum_n g_t B_t

    A tile's states are recomputed from the one saved at its start, first one in four tokens, then four at a time: no
    inversion of the recurrence, no division. dB and dC are sums over channels: a partial per program, summed in a fixed
    order afterwards. No atomics.
    """
    r, d_local, n = tl.arange(0, T), tl.arange(0, BD), tl.arange(0, N)
    four = tl.arange(0, 4)
    scratch_ptr += tl.program_id(0).to(tl.int64) * (5 * T * BD + 2 * T * N + T // 4 * BD * N)
    dt_tile, dtu_tile, dy_tile = scratch_ptr, scratch_ptr + T * BD, scratch_ptr + 2 * T * BD
    yA_tile, yB_tile = scratch_ptr + 3 * T * BD, scratch_ptr + 4 * T * BD
    B_tile, C_tile = scratch_ptr + 5 * T * BD, scratch_ptr + 5 * T * BD + T * N
    start_states = scratch_ptr + 5 * T * BD + 2 * T * N  # [T / 4, BD, N]
    tile_channels = r[:, None] * BD + d_local[None, :]
    tile_states = r[:, None] * N + n[None, :]
    in_block = d_local[:, None] * N + n[None, :]
    n_blocks = tl.cdiv(d_inner, BD)

    for item in range(tl.program_id(0), n_blocks * n_seqs, tl.num_programs(0)):
        seq, block = item // n_blocks, item % n_blocks
        begin, end = tl.load(bounds_ptr + seq).to(tl.int64), tl.load(bounds_ptr + seq + 1).to(tl.int64)
        d = block * BD + d_local
        in_d, in_n = d < d_inner, n < d_state
        in_h = in_d[:, None] & in_n[None, :]
        of_h = d[:, None] * d_state + n[None, :]
        A2 = tl.load(A_ptr + of_h, in_h, 0.0).to(tl.float32) * LOG2E
        bias, skip = tl.load(bias_ptr + d, in_d, 0.0).to(tl.float32), tl.load(D_ptr + d, in_d, 0.0).to(tl.float32)
        state_base = seq.to(tl.int64) * d_inner * d_state
        carried = tl.load(dfinal_ptr + state_base + of_h, in_h, 0.0)  # a_{t+1} g_{t+1}
        dA = tl.zeros([BD, N], tl.float32)
        dD, dbias = tl.zeros([T, BD], tl.float32), tl.zeros([T, BD], tl.float32)
        n_tiles = tl.cdiv(end - begin, T)

        for tile in range(n_tiles - 1, -1, -1):
            t0 = begin + tile * T
            inside = (t0 + r < end)[:, None]
            here = inside & in_d[None, :]
            at = t0 + r.to(tl.int64)[:, None]
            x = tl.load(u_ptr + at * u_stride + d[None, :], here, 0.0).to(tl.float32)
            raw = tl.load(dt_ptr + at * dt_stride + d[None, :], here, 0.0).to(tl.float32) + bias[None, :]
            gate = tl.load(z_ptr + at * z_stride + d[None, :], here, 0.0).to(tl.float32)
            dout = tl.load(dout_ptr + at * dout_stride + d[None, :], here, 0.0).to(tl.float32)
            pre_gate = tl.load(pre_gate_ptr + at * d_inner + d[None, :], here, 0.0).to(tl.float32)
            B = tl.load(B_ptr + at * B_stride + n[None, :], inside & in_n[None, :], 0.0)
            C = tl.load(C_ptr + at * C_stride + n[None, :], inside & in_n[None, :], 0.0)
            h = tl.load(tile_states_ptr + (begin // T + seq + tile) * d_inner * d_state + of_h, in_h, 0.0)

            dt = tl.where(inside, softplus(raw, PTX), 0.0)
            open_ = sigmoid(gate, PTX)
            dy = dout * gate * open_
            tl.store(dz_ptr + at * d_inner + d[None, :], dout * pre_gate * open_ * (1.0 + gate * (1.0 - open_)), here)
            dD += dy * x
            tl.store(dt_tile + tile_channels, dt)
            tl.store(dtu_tile + tile_channels, dt * x)
            tl.store(dy_tile + tile_channels, dy)
            tl.store(B_tile + tile_states, B.to(tl.float32))
            tl.store(C_tile + tile_states, C.to(tl.float32))
            tl.debug_barrier()

            for sub in range(T // 4):
                tl.store(start_states + sub * BD * N + in_block, h)
                if sub < T // 4 - 1:
                    for j in tl.static_range(4):
                        t = sub * 4 + j
                        dt_row, dtu_row = tl.load(dt_tile + t * BD + d_local), tl.load(dtu_tile + t * BD + d_local)
                        h = (
                            exp2(dt_row[:, None] * A2, PTX) * h
                            + dtu_row[:, None] * tl.load(B_tile + t * N + n)[None, :]
                        )
            tl.debug_barrier()

            for sub in range(T // 4 - 1, -1, -1):
                h = tl.load(start_states + sub * BD * N + in_block)
                decays, befores, dts, dtus, Bs = (), (), (), (), ()
                for j in tl.static_range(4):
                    t = sub * 4 + j
                    dt_row, dtu_row = tl.load(dt_tile + t * BD + d_local), tl.load(dtu_tile + t * BD + d_local)
                    B_row = tl.load(B_tile + t * N + n)
                    decay = exp2(dt_row[:, None] * A2, PTX)
                    befores = befores + (h,)
                    h = decay * h + dtu_row[:, None] * B_row[None, :]
                    decays, dts, dtus, Bs = decays + (decay,), dts + (dt_row,), dtus + (dtu_row,), Bs + (B_row,)
                dBs, dCs, yAs, yBs = (), (), (), ()
                for j in tl.static_range(3, -1, -1):
                    t = sub * 4 + j
                    dy_row = tl.load(dy_tile + t * BD + d_local)
                    g = dy_row[:, None] * tl.load(C_tile + t * N + n)[None, :] + carried
                    dCs = dCs + (tl.sum(dy_row[:, None] * h, axis=0),)
                    dBs = dBs + (tl.sum(g * dtus[j][:, None], axis=0),)
                    carried = decays[j] * g
                    h = befores[j]
                    q = carried * h
                    dA += q * dts[j][:, None]
                    yAs = yAs + (tl.sum(q * A2, axis=1),)
                    yBs = yBs + (tl.sum(g * Bs[j][None, :], axis=1),)
                rows = sub * 4 + four
                tl.store(yA_tile + rows[None, :] * BD + d_local[:, None], four_columns(yAs, BD))
                tl.store(yB_tile + rows[None, :] * BD + d_local[:, None], four_columns(yBs, BD))
                of_row = ((block.to(tl.int64) * tokens + t0 + rows.to(tl.int64)) * N)[None, :] + n[:, None]
                tl.store(dB_ptr + of_row, four_columns(dBs, N), (t0 + rows < end)[None, :])
                tl.store(dC_ptr + of_row, four_columns(dCs, N), (t0 + rows < end)[None, :])
            tl.debug_barrier()

            yA, yB = tl.load(yA_tile + tile_channels), tl.load(yB_tile + tile_channels)
            ddt = (LN2 * yA + x * yB) * sigmoid(raw, PTX)
            dbias += tl.where(inside, ddt, 0.0)
            tl.store(ddt_ptr + at * d_inner + d[None, :], ddt, here)
            tl.store(du_ptr + at * d_inner + d[None, :], dt * yB + skip[None, :] * dy, here)
            tl.debug_barrier()

        tl.store(dA_ptr + state_base + of_h, dA, in_h)
        tl.store(dinitial_ptr + state_base + of_h, carried, in_h)
        tl.store(dD_ptr + seq * d_inner + d, tl.sum(dD, axis=0), in_d)
        tl.store(dbias_ptr + seq * d_inner + d, tl.sum(dbias, axis=0), in_d)


@triton.jit
def four_columns(newest_first, ROWS: tl.constexpr):
    """Four [ROWS] vectors, the last of them first, as the columns of [ROWS, 4]."""
    even, odd = tl.join(newest_first[3], newest_first[1]), tl.join(newest_first[2], newest_first[0])
    return tl.reshape(tl.join(even, odd), [ROWS, 4])


def forward(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, cu_seqlens: Tensor,
    initial_state: Tensor | None, save: bool, export_at: Tensor | None = None, exported: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See registration.register. Writes `exported`, if given."""
    (tokens, d_inner), d_state, n_seqs = u.shape, A.shape[1], cu_seqlens.shape[0] - 1
    N, T = next_power_of_2(d_state), SAVED_TILE if save else INFERENCE_TILE
    u, dt, B, C, z = (rows(t) for t in (u, dt, B, C, z))
    y, final, tile_states, pre_gate = empty_results(u, A, n_seqs, saved_rows(tokens, n_seqs, T) if save else 0)
    n_programs = min(cdiv(d_inner, FORWARD_CHANNELS) * n_seqs, MAX_PROGRAMS)
    scratch = u.new_empty(n_programs * (3 * T * FORWARD_CHANNELS + 2 * T * N), dtype=torch.float32)
    with on_device_of(u):
        forward_kernel[(n_programs,)](
            u, dt, A.contiguous(), B, C, D.contiguous(), z, dt_bias.contiguous(), cu_seqlens,
            None if initial_state is None else initial_state.contiguous(), export_at,
            y, final, tile_states, pre_gate, exported, scratch,
            u.stride(0), dt.stride(0), B.stride(0), C.stride(0), z.stride(0), d_inner, d_state, n_seqs,
            T=T, BD=FORWARD_CHANNELS, N=N, HAS_INITIAL=initial_state is not None, SAVE=save,
            EXPORT=export_at is not None, PTX=speaks_ptx(u), num_warps=FORWARD_WARPS,
        )  # fmt: skip
    return y, final, tile_states, pre_gate


def backward(
    dy: Tensor, dfinal: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor, tile_states: Tensor, pre_gate: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """See registration.register."""
    (tokens, d_inner), d_state, n_seqs = u.shape, A.shape[1], cu_seqlens.shape[0] - 1
    N, T, BD = next_power_of_2(d_state), SAVED_TILE, BACKWARD_CHANNELS
    du, ddt, dz = (t.new_empty(t.shape) for t in (u, dt, z))
    u, dt, B, C, z, dy = (rows(t) for t in (u, dt, B, C, z, dy))
    n_blocks = cdiv(d_inner, BD)
    n_programs = min(n_blocks * n_seqs, MAX_PROGRAMS)
    scratch = u.new_empty(n_programs * (5 * T * BD + 2 * T * N + T // 4 * BD * N), dtype=torch.float32)
    dB, dC = (u.new_empty((n_blocks, tokens, N), dtype=torch.float32) for _ in range(2))
    dA, dinitial = (u.new_empty((n_seqs, d_inner, d_state), dtype=torch.float32) for _ in range(2))
    dD, dbias = (u.new_empty((n_seqs, d_inner), dtype=torch.float32) for _ in range(2))
    with on_device_of(u):
        backward_kernel[(n_programs,)](
            u, dt, A.contiguous(), B, C, D.contiguous(), z, dt_bias.contiguous(), cu_seqlens, tile_states, pre_gate, dy,
            dfinal.contiguous(), du, ddt, dz, dB, dC, dA, dD, dbias, dinitial, scratch,
            u.stride(0), dt.stride(0), B.stride(0), C.stride(0), z.stride(0), dy.stride(0), d_inner, d_state, n_seqs,
            tokens,
            T=T, BD=BD, N=N, PTX=speaks_ptx(u), num_warps=BACKWARD_WARPS,
        )  # fmt: skip
    return (
        du, ddt, dA.sum(0).to(A.dtype), dB.sum(0)[:, :d_state].to(B.dtype), dC.sum(0)[:, :d_state].to(C.dtype),
        dD.sum(0).to(D.dtype), dz, dbias.sum(0).to(dt_bias.dtype),
        dinitial,
    )  # fmt: skip


def rows(t: Tensor) -> Tensor:
    """Rows may be strided (a slice of a projection's output); what is in a row lies together."""
    return t if t.stride(-1) == 1 else t.contiguous()


selective_scan = register("triton", forward, backward, SAVED_TILE)
selective_scan_exporting = exporting(forward)
