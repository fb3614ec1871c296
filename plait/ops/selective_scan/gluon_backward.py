"""The selective scan's backward for Hopper, in Gluon. The arithmetic and the legend are triton.py's (backward_kernel).

A program takes 64 channels of one sequence, tiles of 16 tokens in reverse, with two kinds of warps that meet at
barriers:

    reverse warps  four steps forward, keeping decays and states in registers, then the same four in reverse
    tile warps     before a tile loads, softplus, gates, dz, and every fourth state from the one the forward saved;
                   after it d dt, du, and the sum of dB, dC over warps

    STATE  [BD, N]  two channels and four state indices a lane; lane bits 0, 1 count state indices, 2 to 4 channel pairs

Instructions are the limit, not exponentials: the sums over channels (dB, dC) and over state indices (for du, d dt) of
every step. They are done by exchanges in which each lane keeps half of what it has and sends the other half, so seven
shuffles do the work of 24 and three that of 8, and each lane ends with one number. Written for d_state 16.

Floor: one exponential per (token, channel, state index) again. Measured shares of it: docs/kernels.md.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from plait.ops.launch import cdiv, direct
from plait.ops.selective_scan import halves
from plait.ops.selective_scan.gluon_forward import LOG2E, NEVER, SAVED_TILE, all_warps_meet, exp2, sigmoid, softplus
from plait.ops.selective_scan.triton import rows

LN2 = gl.constexpr(0.6931471805599453)
WARPS = 4  # of each kind, for 64 channels
TILE_WARP_REGISTERS = (
    208  # one program a multiprocessor: two would leave the reverse warps 150 registers, and they spill
)


def _exchange(bit: int) -> gl.constexpr:
    """PTX: lanes with `bit` clear get a + partner's a, the others b + partner's b; partners differ in that bit."""
    return gl.constexpr(f"""{{
        .reg .pred upper; .reg .b32 lane, sent, kept, received;
        mov.u32 lane, %laneid;
        and.b32 lane, lane, {bit};
        setp.ne.u32 upper, lane, 0;
        selp.b32 sent, $1, $2, upper;
        selp.b32 kept, $2, $1, upper;
        shfl.sync.bfly.b32 received, sent, {bit}, 31, 0xffffffff;
        add.f32 $0, kept, received;
    }}""")


BIT0, BIT1, BIT2, BIT3, BIT4 = (_exchange(1 << i) for i in range(5))


@gluon.jit
def exchange(a, b, BIT: gl.constexpr):
    return gl.inline_asm_elementwise(BIT, "=f,f,f", [a, b], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def sum_of_pairs(x, PAIRS: gl.constexpr):
    """[2 PAIRS, 16] -> [PAIRS, 16]: a lane's two channels."""
    a, b = gl.split(gl.permute(gl.reshape(x, [PAIRS, 2, 16]), (0, 2, 1)))
    return a + b


@gluon.jit
def over_channels(dB, dC, PAIRS: gl.constexpr):
    """Two [2 PAIRS, 16] -> [PAIRS, 4], one number a lane, summed over the warp's channels.

    Lane bit 4 says dB or dC, bits 1, 0, 3, 2 the state index, most significant first.
    """
    both = exchange(sum_of_pairs(dB, PAIRS), sum_of_pairs(dC, PAIRS), BIT4)
    low, high = gl.split(gl.permute(gl.reshape(both, [PAIRS, 4, 2, 2]), (0, 1, 3, 2)))
    even, odd = gl.split(exchange(low, high, BIT3))
    return exchange(even, odd, BIT2)


@gluon.jit
def over_states(yA, yB, PAIRS: gl.constexpr):
    """Two [2 PAIRS, 16] -> [PAIRS, 4], one number a lane, summed over state indices.

    Lane bit 0 says yA or yB, bit 1 which of its channels.
    """
    yA, yB = gl.sum(gl.reshape(yA, [2 * PAIRS, 4, 4]), axis=2), gl.sum(gl.reshape(yB, [2 * PAIRS, 4, 4]), axis=2)
    both = exchange(yA, yB, BIT0)
    even, odd = gl.split(gl.permute(gl.reshape(both, [PAIRS, 2, 4]), (0, 2, 1)))
    return exchange(even, odd, BIT1)


@gluon.jit
def in_lane_order(newest_first, PAIRS: gl.constexpr):
    """Four [PAIRS, 4] of one number a lane, the last step first -> [4, 4 PAIRS]."""
    four = gl.join(gl.join(newest_first[3], newest_first[1]), gl.join(newest_first[2], newest_first[0]))
    return gl.permute(gl.reshape(four, [4 * PAIRS, 4]), (1, 0))


@gluon.jit
def reverse_partition(
    dt_tiles, dtu_tiles, dy_tiles, B_tiles, C_tiles, starts, y_fours, dBC_fours, ready, done,
    A_ptr, dfinal_ptr, dA_ptr, dinitial_ptr, seq, block, n_tiles, d_inner,
    T: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Steps through each tile in reverse once it is ready, and leaves the sums in shared memory."""
    N: gl.constexpr = 16
    PAIRS: gl.constexpr = 8 * WARPS
    BD: gl.constexpr = 2 * PAIRS
    STATE: gl.constexpr = gl.BlockedLayout([2, 4], [8, 4], [WARPS, 1], [1, 0])
    of_channel: gl.constexpr = gl.SliceLayout(1, STATE)
    of_index: gl.constexpr = gl.SliceLayout(0, STATE)
    ROW: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    dt_rows = dt_tiles._reinterpret(gl.float32, [2 * T, BD], ROW)
    dtu_rows = dtu_tiles._reinterpret(gl.float32, [2 * T, BD], ROW)
    dy_rows = dy_tiles._reinterpret(gl.float32, [2 * T, BD], ROW)
    B_rows = B_tiles._reinterpret(gl.float32, [2 * T, N], ROW)
    C_rows = C_tiles._reinterpret(gl.float32, [2 * T, N], ROW)

    d, n = block * BD + gl.arange(0, BD, of_channel), gl.arange(0, N, of_index)
    in_h = (d < d_inner)[:, None] & (n < N)[None, :]
    of_h = d[:, None] * N + n[None, :]
    state_base = seq.to(gl.int64) * d_inner * N
    A2 = gl.load(A_ptr + of_h, in_h, 0.0).to(gl.float32) * LOG2E
    carried = gl.load(dfinal_ptr + state_base + of_h, in_h, 0.0)  # a_{t+1} g_{t+1}
    dA = gl.zeros([BD, N], gl.float32, STATE)
    for i in range(n_tiles):
        buffer = i & 1
        mbarrier.wait(ready.index(buffer), (i >> 1) & 1)
        for back in range(T // 4):
            sub = buffer * (T // 4) + T // 4 - 1 - back
            h = starts.index(sub).load(STATE)
            decays, befores, dts, dtus, Bs = (), (), (), (), ()
            for j in gl.static_range(4):
                t = sub * 4 + j
                dt_row, dtu_row = dt_rows.index(t).load(of_channel), dtu_rows.index(t).load(of_channel)
                B_row = B_rows.index(t).load(of_index)
                decay = exp2(dt_row[:, None] * A2)
                befores = befores + (h,)
                h = decay * h + dtu_row[:, None] * B_row[None, :]
                decays, dts, dtus, Bs = decays + (decay,), dts + (dt_row,), dtus + (dtu_row,), Bs + (B_row,)
            dBCs, ys = (), ()
            for j in gl.static_range(3, -1, -1):
                t = sub * 4 + j
                dy_row = dy_rows.index(t).load(of_channel)
                g = dy_row[:, None] * C_rows.index(t).load(of_index)[None, :] + carried
                dBCs = dBCs + (over_channels(g * dtus[j][:, None], dy_row[:, None] * h, PAIRS),)
                carried = decays[j] * g
                h = befores[j]
                q = carried * h
                dA += q * dts[j][:, None]
                ys = ys + (over_states(q * A2, g * Bs[j][None, :], PAIRS),)
            dBC_fours.index(sub).store(in_lane_order(dBCs, PAIRS))
            y_fours.index(sub).store(in_lane_order(ys, PAIRS))
        all_warps_meet()
        mbarrier.arrive(done.index(buffer), count=1)
    gl.store(dA_ptr + state_base + of_h, dA, in_h)
    gl.store(dinitial_ptr + state_base + of_h, carried, in_h)


@gluon.jit
def finish_tile(
    dt_tiles, dy_tiles, y_fours, dBC_fours, done, i, u, slope, skip, inside, of_own, own_base, of_dBC, dBC_base, in_dBC,
    ddt_ptr, du_ptr, dBC_ptr,
    T: gl.constexpr, BD: gl.constexpr, WARPS: gl.constexpr, TILE: gl.constexpr, PAIR_TILE: gl.constexpr,
    LANES: gl.constexpr,
):  # fmt: skip
    """d dt (returned), du, and dB, dC summed over warps, of the i-th tile from the end, once the reverse warps are
    through it.
    """
    SOLID: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    buffer = i & 1
    mbarrier.wait(done.index(buffer), (i >> 1) & 1)
    yA, yB = gl.split(y_fours._reinterpret(gl.float32, [2, T, BD, 2], SOLID).index(buffer).load(PAIR_TILE))
    yA, yB = gl.convert_layout(yA, TILE), gl.convert_layout(yB, TILE)
    ddt = (LN2 * yA + u.to(gl.float32) * yB) * slope
    du = dt_tiles.index(buffer).load(TILE) * yB + skip[None, :] * dy_tiles.index(buffer).load(TILE)
    gl.store(ddt_ptr + own_base + of_own, ddt.to(ddt_ptr.dtype.element_ty), inside)
    gl.store(du_ptr + own_base + of_own, du.to(du_ptr.dtype.element_ty), inside)
    dBC = gl.sum(dBC_fours._reinterpret(gl.float32, [2, T, WARPS, 32], SOLID).index(buffer).load(LANES), axis=1)
    gl.store(dBC_ptr + dBC_base + of_dBC, dBC, in_dBC)
    return ddt


@gluon.jit
def tile_partition(
    dt_tiles, dtu_tiles, dy_tiles, B_tiles, C_tiles, starts, y_fours, dBC_fours, ready, done,
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, tile_states_ptr, pre_gate_ptr, dout_ptr,
    du_ptr, ddt_ptr, dz_ptr, dBC_ptr, dD_ptr, dbias_ptr,
    u_stride, dt_stride, B_stride, C_stride, z_stride, dout_stride, seq, block, begin, end, n_tiles, d_inner, tokens,
    T: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Prepares tile i, loads tile i + 1 into registers, finishes tile i - 1 while the reverse warps are at i."""
    N: gl.constexpr = 16
    BD: gl.constexpr = 16 * WARPS
    STATE: gl.constexpr = gl.BlockedLayout([2, 4], [8, 4], [WARPS, 1], [1, 0])
    TILE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BD, BD // 8], [WARPS, 1], [1, 0])
    PAIR_TILE: gl.constexpr = gl.BlockedLayout([1, 8, 2], [256 // BD, BD // 8, 1], [WARPS, 1, 1], [2, 1, 0])
    BC: gl.constexpr = gl.BlockedLayout([1, 2], [4, 8], [WARPS, 1], [1, 0])
    LANES: gl.constexpr = gl.BlockedLayout([1, WARPS, 1], [1, 1, 32], [WARPS, 1, 1], [2, 1, 0])
    of_channel: gl.constexpr = gl.SliceLayout(1, STATE)
    of_index: gl.constexpr = gl.SliceLayout(0, STATE)
    ROW: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    dt_rows = dt_tiles._reinterpret(gl.float32, [2 * T, BD], ROW)
    dtu_rows = dtu_tiles._reinterpret(gl.float32, [2 * T, BD], ROW)
    B_rows = B_tiles._reinterpret(gl.float32, [2 * T, N], ROW)

    d, n = block * BD + gl.arange(0, BD, of_channel), gl.arange(0, N, of_index)
    in_h = (d < d_inner)[:, None] & (n < N)[None, :]
    of_h = d[:, None] * N + n[None, :]
    A2 = gl.load(A_ptr + of_h, in_h, 0.0).to(gl.float32) * LOG2E
    r, c = gl.arange(0, T, gl.SliceLayout(1, TILE)), block * BD + gl.arange(0, BD, gl.SliceLayout(0, TILE))
    r_bc, n_bc = gl.arange(0, T, gl.SliceLayout(1, BC)), gl.arange(0, N, gl.SliceLayout(0, BC))
    in_c, in_n = (c < d_inner)[None, :], (n_bc < N)[None, :]
    bias = gl.load(bias_ptr + c, c < d_inner, 0.0).to(gl.float32)
    skip = gl.load(D_ptr + c, c < d_inner, 0.0).to(gl.float32)
    dD, dbias = gl.zeros([T, BD], gl.float32, TILE), gl.zeros([T, BD], gl.float32, TILE)
    token = gl.arange(0, T, gl.SliceLayout(1, gl.SliceLayout(1, LANES)))
    lane = gl.arange(0, 32, gl.SliceLayout(0, gl.SliceLayout(1, LANES)))

    t0 = begin + (n_tiles - 1) * T
    u_base, dt_base, z_base = u_ptr + t0 * u_stride, dt_ptr + t0 * dt_stride, z_ptr + t0 * z_stride
    B_base, C_base, dout_base = B_ptr + t0 * B_stride, C_ptr + t0 * C_stride, dout_ptr + t0 * dout_stride
    own_base = t0 * d_inner  # of tensors made here or by the forward: no padding between rows
    dBC_base = (block.to(gl.int64) * tokens + t0) * 2 * N
    h_base = tile_states_ptr + (begin // T + seq // PARTS + n_tiles - 1) * d_inner * N
    of_u, of_dt = r[:, None] * u_stride + c[None, :], r[:, None] * dt_stride + c[None, :]
    of_z, of_dout = r[:, None] * z_stride + c[None, :], r[:, None] * dout_stride + c[None, :]
    of_own = r[:, None] * d_inner + c[None, :]
    of_B, of_C = r_bc[:, None] * B_stride + n_bc[None, :], r_bc[:, None] * C_stride + n_bc[None, :]
    of_dBC = token[:, None] * 2 * N + lane[None, :]

    first_rows = gl.minimum(end - t0, end - begin).to(gl.int32)  # 0 in an empty sequence, whose t0 is before it
    inside, inside_bc = (r < first_rows)[:, None] & in_c, (r_bc < first_rows)[:, None] & in_n
    u = gl.load(u_base + of_u, inside, 0.0)
    dt_raw = gl.load(dt_base + of_dt, inside, NEVER)
    z = gl.load(z_base + of_z, inside, 0.0)
    dout = gl.load(dout_base + of_dout, inside, 0.0)
    pre_gate = gl.load(pre_gate_ptr + own_base + of_own, inside, 0.0)
    B, C = gl.load(B_base + of_B, inside_bc, 0.0), gl.load(C_base + of_C, inside_bc, 0.0)
    h = gl.load(h_base + of_h, in_h & (n_tiles > 0), 0.0)
    u_again, slope_before = u_base, gl.zeros([T, BD], gl.float32, TILE)  # of the tile to finish

    for i in range(n_tiles):
        buffer = i & 1
        rows_before = gl.minimum(first_rows + T * gl.maximum(i - 1, 0), T)  # only the tile done first can be short
        earlier = (r < rows_before)[:, None] & in_c
        u_before = gl.load(u_again + of_u, earlier, 0.0)
        x, gate, upstream = u.to(gl.float32), z.to(gl.float32), dout.to(gl.float32)
        raw = dt_raw.to(gl.float32) + bias[None, :]
        dt, slope, opened = softplus(raw), sigmoid(raw), sigmoid(gate)
        dy = upstream * gate * opened
        dz = upstream * pre_gate.to(gl.float32) * opened * (1.0 + gate * (1.0 - opened))
        dt_tiles.index(buffer).store(dt)
        dtu_tiles.index(buffer).store(dt * x)
        dy_tiles.index(buffer).store(dy)
        B_tiles.index(buffer).store(B.to(gl.float32))
        C_tiles.index(buffer).store(C.to(gl.float32))
        gl.store(dz_ptr + own_base + of_own, dz.to(dz_ptr.dtype.element_ty), inside)
        dD += dy * x
        for sub in range(T // 4 - 1):
            starts.index(buffer * (T // 4) + sub).store(h)
            for j in gl.static_range(4):
                t = buffer * T + sub * 4 + j
                decay = exp2(dt_rows.index(t).load(of_channel)[:, None] * A2)
                h = decay * h + dtu_rows.index(t).load(of_channel)[:, None] * B_rows.index(t).load(of_index)[None, :]
        starts.index(buffer * (T // 4) + T // 4 - 1).store(h)
        all_warps_meet()
        mbarrier.arrive(ready.index(buffer), count=1)

        more = i + 1 < n_tiles  # and then all its rows are inside
        u_base -= T * u_stride
        dt_base -= T * dt_stride
        z_base -= T * z_stride
        dout_base -= T * dout_stride
        B_base -= T * B_stride
        C_base -= T * C_stride
        h_base -= d_inner * N
        inside, inside_bc = (r >= 0)[:, None] & in_c & more, (r_bc >= 0)[:, None] & in_n & more
        u = gl.load(u_base + of_u, inside, 0.0)
        dt_raw = gl.load(dt_base + of_dt, inside, NEVER)
        z = gl.load(z_base + of_z, inside, 0.0)
        dout = gl.load(dout_base + of_dout, inside, 0.0)
        pre_gate = gl.load(pre_gate_ptr + (own_base - T * d_inner) + of_own, inside, 0.0)
        B, C = gl.load(B_base + of_B, inside_bc, 0.0), gl.load(C_base + of_C, inside_bc, 0.0)
        h = gl.load(h_base + of_h, in_h & more, 0.0)
        if i > 0:
            in_dBC = (token < rows_before)[:, None] & (lane < 32)[None, :]
            dbias += finish_tile(
                dt_tiles, dy_tiles, y_fours, dBC_fours, done, i - 1, u_before, slope_before, skip, earlier, of_own,
                own_base + T * d_inner, of_dBC, dBC_base + T * 2 * N, in_dBC, ddt_ptr, du_ptr, dBC_ptr,
                T, BD, WARPS, TILE, PAIR_TILE, LANES,
            )  # fmt: skip
            u_again -= T * u_stride
        slope_before = slope
        own_base -= T * d_inner
        dBC_base -= T * 2 * N
    if n_tiles > 0:
        rows_before = gl.minimum(first_rows + T * (n_tiles - 1), T)
        first, in_dBC = (r < rows_before)[:, None] & in_c, (token < rows_before)[:, None] & (lane < 32)[None, :]
        dbias += finish_tile(
            dt_tiles, dy_tiles, y_fours, dBC_fours, done, n_tiles - 1, gl.load(u_again + of_u, first, 0.0),
            slope_before, skip, first, of_own, own_base + T * d_inner, of_dBC, dBC_base + T * 2 * N, in_dBC,
            ddt_ptr, du_ptr, dBC_ptr, T, BD, WARPS, TILE, PAIR_TILE, LANES,
        )  # fmt: skip
    gl.store(dD_ptr + seq * d_inner + c, gl.sum(dD, axis=0), c < d_inner)
    gl.store(dbias_ptr + seq * d_inner + c, gl.sum(dbias, axis=0), c < d_inner)


@direct
@gluon.jit
def backward_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, bounds_ptr, tile_states_ptr, pre_gate_ptr, dout_ptr,
    dfinal_ptr,
    du_ptr, ddt_ptr, dz_ptr, dBC_ptr, dA_ptr, dD_ptr, dbias_ptr, dinitial_ptr,
    u_stride, dt_stride, B_stride, C_stride, z_stride, dout_stride, d_inner, tokens,
    T: gl.constexpr, PARTS: gl.constexpr, TILE_WARP_REGISTERS: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """PARTS: of each sequence, all but the last whole tiles; bounds are the parts'. `tile_states` knows no parts."""
    N: gl.constexpr = 16
    BD: gl.constexpr = 16 * num_warps
    PLANE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    dt_tiles = gl.allocate_shared_memory(gl.float32, [2, T, BD], PLANE)
    dtu_tiles = gl.allocate_shared_memory(gl.float32, [2, T, BD], PLANE)
    dy_tiles = gl.allocate_shared_memory(gl.float32, [2, T, BD], PLANE)
    B_tiles = gl.allocate_shared_memory(gl.float32, [2, T, N], PLANE)
    C_tiles = gl.allocate_shared_memory(gl.float32, [2, T, N], PLANE)
    starts = gl.allocate_shared_memory(gl.float32, [2 * T // 4, BD, N], PLANE)  # every fourth state
    y_fours = gl.allocate_shared_memory(gl.float32, [2 * T // 4, 4, 2 * BD], PLANE)  # [token, channel, yA or yB]
    dBC_fours = gl.allocate_shared_memory(gl.float32, [2 * T // 4, 4, 2 * BD], PLANE)  # [token, warp, lane]
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(done.index(i), count=1)
    n_blocks = gl.cdiv(d_inner, BD)
    seq, block = gl.program_id(0) // n_blocks, gl.program_id(0) % n_blocks
    begin, end = gl.load(bounds_ptr + seq).to(gl.int64), gl.load(bounds_ptr + seq + 1).to(gl.int64)
    n_tiles = gl.cdiv(end - begin, T).to(gl.int32)
    gl.warp_specialize(
        [
            (reverse_partition, (
                dt_tiles, dtu_tiles, dy_tiles, B_tiles, C_tiles, starts, y_fours, dBC_fours, ready, done,
                A_ptr, dfinal_ptr, dA_ptr, dinitial_ptr, seq, block, n_tiles, d_inner, T, num_warps,
            )),
            (tile_partition, (
                dt_tiles, dtu_tiles, dy_tiles, B_tiles, C_tiles, starts, y_fours, dBC_fours, ready, done,
                u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, tile_states_ptr, pre_gate_ptr, dout_ptr,
                du_ptr, ddt_ptr, dz_ptr, dBC_ptr, dD_ptr, dbias_ptr,
                u_stride, dt_stride, B_stride, C_stride, z_stride, dout_stride, seq, block, begin, end, n_tiles,
                d_inner, tokens,
                T, PARTS, num_warps,
            )),
        ],
        [num_warps],
        [TILE_WARP_REGISTERS],
    )  # fmt: skip


@direct
@triton.jit
def sum_partials_kernel(partials_ptr, dB_ptr, dC_ptr, n_blocks, tokens, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """partials [n_blocks, tokens, 32], as over_channels leaves them -> dB, dC [tokens, 16], summed in a fixed order."""
    at = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    rows = tl.arange(0, ROWS)
    inside = at < tokens * 32
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for block in range(0, n_blocks, ROWS):
        here = (block + rows < n_blocks)[:, None] & inside[None, :]
        total += tl.load(partials_ptr + (block + rows).to(tl.int64)[:, None] * tokens * 32 + at[None, :], here, 0.0)
    summed = tl.sum(total, axis=0)
    token, lane = at // 32, at % 32
    index = token * 16 + lane % 4 * 4 + lane // 8 % 2 * 2 + lane // 4 % 2
    tl.store(dB_ptr + index, summed, inside & (lane < 16))
    tl.store(dC_ptr + index, summed, inside & (lane >= 16))


def backward(
    dy: Tensor, dfinal: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor, tile_states: Tensor, pre_gate: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """See registration.register. A.shape[1] must be 16."""
    (tokens, d_inner), parts = u.shape, 1
    if halves.pay(u, cu_seqlens.shape[0] - 1, 16 * WARPS):
        cu_seqlens, dfinal = halves.halved(dy, dfinal, dt, A, C, z, dt_bias, cu_seqlens)
        parts = 2
    n_seqs = cu_seqlens.shape[0] - 1  # or halves of them
    du, ddt, dz, dB, dC = (t.new_empty(t.shape) for t in (u, dt, z, B, C))
    u, dt, B, C, z, dy = (rows(t) for t in (u, dt, B, C, z, dy))
    n_blocks = cdiv(d_inner, 16 * WARPS)
    partials = u.new_empty((n_blocks, tokens, 32), dtype=torch.float32)
    dA, dinitial = (u.new_empty((n_seqs, *A.shape), dtype=torch.float32) for _ in range(2))
    dD, dbias = (u.new_empty((n_seqs, d_inner), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device(u.device):
        backward_kernel[(n_blocks * n_seqs,)](
            u, dt, A.contiguous(), B, C, D.contiguous(), z, dt_bias.contiguous(), cu_seqlens, tile_states, pre_gate, dy,
            dfinal.contiguous(), du, ddt, dz, partials, dA, dD, dbias, dinitial,
            u.stride(0), dt.stride(0), B.stride(0), C.stride(0), z.stride(0), dy.stride(0), d_inner, tokens,
            T=SAVED_TILE, PARTS=parts, TILE_WARP_REGISTERS=TILE_WARP_REGISTERS, num_warps=WARPS,
        )  # fmt: skip
        sum_partials_kernel[(cdiv(tokens * 32, 256),)](partials, dB, dC, n_blocks, tokens, ROWS=16, WIDTH=256)
    return (
        du, ddt, dA.sum(0).to(A.dtype), dB, dC, dD.sum(0).to(D.dtype), dz, dbias.sum(0).to(dt_bias.dtype),
        dinitial if parts == 1 else dinitial[::2].contiguous(),
    )  # fmt: skip
