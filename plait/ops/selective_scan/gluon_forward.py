"""The selective scan's forward for Hopper, in Gluon: triton.py's arithmetic, its warps, layouts and shared memory
placed by hand.

Legend as in triton.py. A program takes 64 channels of one sequence, with two kinds of warps that meet at barriers:

    scan warps  the recurrence and nothing else: one a scheduler keeps the exponential unit busy half of the time
    tile warps  before a tile loads, softplus, dt u, and B, C widened, into shared memory; after it skip, gate, output

    STATE   [BD, N]  two lanes share a channel and hold eight state indices each; a step needs one shuffle
    TILE    [T, BD]  eight adjacent channels a lane: 16-byte loads, each (token, channel) computed once
    shared  two buffers of dt, dt u, y [T, BD] and B, C [T, N], fp32: one stepped through, one finished and refilled

Few channels (a tensor-parallel shard, one sequence) leave most of the chip idle. Then time is cut into chunks: each
chunk is scanned from a zero state, a small kernel carries the true states over the chunks (a chunk's decay is
exp(A sum dt)), and each chunk is scanned again from its own. Twice the exponentials, but all chunks at once.

Floor: d_inner * tokens * d_state exponentials, 4.19e12 a second on an H100. Measured shares of it: docs/kernels.md.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from plait.ops.launch import cdiv, direct, next_power_of_2
from plait.ops.selective_scan.registration import empty_results, saved_rows
from plait.ops.selective_scan.triton import rows

LOG2E = gl.constexpr(1.4426950408889634)
NEVER = gl.constexpr(-60000.0)  # as a raw dt: softplus gives exactly 0, and fp16 can hold it
all_warps_meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # of one kind; renamed in Triton 3.7
WARPS = 4  # of each kind
TILE_WARP_REGISTERS, AVERAGE_REGISTERS = 112, 128  # two programs fit a multiprocessor
FORWARD_TILE, SAVED_TILE = 32, 16  # tokens; the backward wants a state every 16
CHUNK = 512  # 256 and 1024 tokens were no better for 1024 to 2048 channels
WIDE_ENOUGH = 4096  # with more (sequence, channel) pairs than this, whole sequences keep the chip as busy as chunks do


@gluon.jit
def exp2(x):
    """2^x, denormals flushed: gl.exp2 spends three more instructions on them."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def reciprocal(x):
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + 2 atanh(e / (2 + e)) with e = e^-|x|: accurate to fp32 everywhere, no logarithm."""
    e = exp2(gl.abs(x) * -LOG2E)
    s = e * reciprocal(2.0 + e)
    q = s * s
    # 2 atanh(s) / s on [0, 1/9], relative error 4e-9
    series = 2.0000000077 + q * (0.6666632041 + q * (0.4002465133 + q * (0.2796434471 + q * 0.2816145376)))
    return gl.maximum(x, 0.0) + s * series


@gluon.jit
def sigmoid(x):
    return reciprocal(1.0 + exp2(x * -LOG2E))


@gluon.jit
def segment(bounds_ptr, n_seqs, row, CHUNK: gl.constexpr):
    """Sequence, first and last token of a program's stretch of time, and the first token of its sequence.

    Chunk j of sequence s is row bounds[s] // CHUNK + s + j, which leaves some rows empty (begin >= end).
    """
    if CHUNK == 0:
        begin = gl.load(bounds_ptr + row).to(gl.int64)
        return row, begin, gl.load(bounds_ptr + row + 1).to(gl.int64), begin
    else:
        low, high = 0, n_seqs - 1
        while low < high:
            middle = (low + high + 1) // 2
            if gl.load(bounds_ptr + middle) // CHUNK + middle <= row:
                low = middle
            else:
                high = middle - 1
        start, stop = gl.load(bounds_ptr + low).to(gl.int64), gl.load(bounds_ptr + low + 1).to(gl.int64)
        begin = start + (row - start // CHUNK - low) * CHUNK
        return low, begin, gl.minimum(begin + CHUNK, stop), start


@gluon.jit
def scan_partition(
    dt_tiles, dtu_tiles, B_tiles, C_tiles, y_tiles, ready, done, A_ptr, initial_ptr, final_ptr, saved_states_ptr,
    exported_ptr, row, seq, block, first_saved_row, begin, end, n_tiles, n_before, exports, d_inner, d_state,
    T: gl.constexpr, BD: gl.constexpr, N: gl.constexpr, HAS_INITIAL: gl.constexpr, SAVE_EVERY: gl.constexpr,
    CHUNK: gl.constexpr, EXPORT: gl.constexpr,
    STATES_ONLY: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Steps through each tile once its rows are ready, and leaves y in shared memory."""
    STATE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // N, N // 8], [WARPS, 1], [1, 0])
    of_channel: gl.constexpr = gl.SliceLayout(1, STATE)
    of_index: gl.constexpr = gl.SliceLayout(0, STATE)
    ROW: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    dt_rows = dt_tiles._reinterpret(gl.float32, [2 * T, BD], ROW)
    dtu_rows = dtu_tiles._reinterpret(gl.float32, [2 * T, BD], ROW)
    B_rows = B_tiles._reinterpret(gl.float32, [2 * T, N], ROW)
    C_rows = C_tiles._reinterpret(gl.float32, [2 * T, N], ROW)

    d, n = block * BD + gl.arange(0, BD, of_channel), gl.arange(0, N, of_index)
    in_h = (d < d_inner)[:, None] & (n < d_state)[None, :]
    of_h = d[:, None] * d_state + n[None, :]
    A2 = gl.load(A_ptr + of_h, in_h, 0.0).to(gl.float32) * LOG2E
    state_base = row.to(gl.int64) * d_inner * d_state
    if HAS_INITIAL:
        h = gl.load(initial_ptr + state_base + of_h, in_h, 0.0).to(gl.float32)
    else:
        h = gl.zeros([BD, N], gl.float32, STATE)

    for i in range(n_tiles):
        buffer = i & 1
        mbarrier.wait(ready.index(buffer), (i >> 1) & 1)
        if EXPORT:
            gl.store(
                exported_ptr + seq.to(gl.int64) * d_inner * d_state + of_h, h, in_h & (exports > 0) & (i == n_before)
            )
        for k in range(T // 8):
            if SAVE_EVERY > 0:
                t = i * T + k * 8  # a tile that starts past the end has no row
                saved_base = (first_saved_row + t // SAVE_EVERY) * d_inner * d_state
                gl.store(saved_states_ptr + saved_base + of_h, h, in_h & (t % SAVE_EVERY == 0) & (begin + t < end))
            ys = ()
            for j in gl.static_range(8):
                t = buffer * T + k * 8 + j
                decay = exp2(dt_rows.index(t).load(of_channel)[:, None] * A2)
                h = decay * h + dtu_rows.index(t).load(of_channel)[:, None] * B_rows.index(t).load(of_index)[None, :]
                if not STATES_ONLY:
                    ys = ys + (gl.sum(h * C_rows.index(t).load(of_index)[None, :], axis=1),)
            if not STATES_ONLY:
                # One store of eight steps: the compiler puts a barrier between any two stores to one allocation.
                even = gl.join(gl.join(ys[0], ys[4]), gl.join(ys[2], ys[6]))
                odd = gl.join(gl.join(ys[1], ys[5]), gl.join(ys[3], ys[7]))
                eight = gl.permute(gl.reshape(gl.join(even, odd), [BD, 8]), (1, 0))
                y_tiles.index(buffer * (T // 8) + k).store(eight)
        all_warps_meet()
        mbarrier.arrive(done.index(buffer), count=1)
    if EXPORT:
        gl.store(
            exported_ptr + seq.to(gl.int64) * d_inner * d_state + of_h, h, in_h & (exports > 0) & (n_before == n_tiles)
        )
    if STATES_ONLY or CHUNK == 0:
        gl.store(final_ptr + state_base + of_h, h, in_h)


@gluon.jit
def finish_tile(
    y_tiles, done, i, u, z, skip, inside, of_out, out_base, out_ptr, pre_gate_ptr,
    T: gl.constexpr, BD: gl.constexpr, TILE: gl.constexpr, SAVE: gl.constexpr,
):  # fmt: skip
    """y of tile i with skip and gate, once the scan warps have been through it."""
    PLANE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    mbarrier.wait(done.index(i & 1), (i >> 1) & 1)
    y = y_tiles._reinterpret(gl.float32, [2, T, BD], PLANE).index(i & 1).load(TILE) + skip[None, :] * u.to(gl.float32)
    if SAVE:
        gl.store(pre_gate_ptr + out_base + of_out, y.to(pre_gate_ptr.dtype.element_ty), inside)
    gate = z.to(gl.float32)
    gl.store(out_ptr + out_base + of_out, (y * gate * sigmoid(gate)).to(out_ptr.dtype.element_ty), inside)


@gluon.jit
def tile_partition(
    dt_tiles, dtu_tiles, B_tiles, C_tiles, y_tiles, ready, done,
    u_ptr, dt_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, out_ptr, pre_gate_ptr, elapsed_ptr,
    u_stride, dt_stride, B_stride, C_stride, z_stride, row, block, begin, end, n_tiles, n_before, short, d_inner,
    d_state,
    T: gl.constexpr, BD: gl.constexpr, N: gl.constexpr, SAVE: gl.constexpr, EXPORT: gl.constexpr,
    STATES_ONLY: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Fills buffer i, loads tile i + 1 into registers, finishes tile i - 1 while the scan warps are at i.

    EXPORT: the last of the first n_before tiles is `short` tokens shorter than T.
    """
    TILE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BD, BD // 8], [WARPS, 1], [1, 0])
    BC: gl.constexpr = gl.BlockedLayout([1, 4], [128 // N, N // 4], [WARPS, 1], [1, 0])
    r, c = gl.arange(0, T, gl.SliceLayout(1, TILE)), block * BD + gl.arange(0, BD, gl.SliceLayout(0, TILE))
    r_bc, n_bc = gl.arange(0, T, gl.SliceLayout(1, BC)), gl.arange(0, N, gl.SliceLayout(0, BC))
    in_c, in_n = (c < d_inner)[None, :], (n_bc < d_state)[None, :]
    bias = gl.load(bias_ptr + c, c < d_inner, 0.0).to(gl.float32)
    skip = gl.load(D_ptr + c, c < d_inner, 0.0).to(gl.float32)
    elapsed = gl.zeros([T, BD], gl.float32, TILE)  # sum of dt, for a chunk's decay

    # Bases are scalars that move, offsets stay: half the address arithmetic of a moving tensor of 64-bit pointers.
    dt_base, u_base, z_base = dt_ptr + begin * dt_stride, u_ptr + begin * u_stride, z_ptr + begin * z_stride
    B_base, C_base = B_ptr + begin * B_stride, C_ptr + begin * C_stride
    of_dt, of_u = r[:, None] * dt_stride + c[None, :], r[:, None] * u_stride + c[None, :]
    of_z, of_out = r[:, None] * z_stride + c[None, :], r[:, None] * d_inner + c[None, :]
    of_B, of_C = r_bc[:, None] * B_stride + n_bc[None, :], r_bc[:, None] * C_stride + n_bc[None, :]
    first_end = end
    if EXPORT:
        first_end = gl.minimum(end, begin + T - short) if n_before == 1 else end
    inside, inside_bc = (begin + r < first_end)[:, None] & in_c, (begin + r_bc < first_end)[:, None] & in_n
    dt_raw = gl.load(dt_base + of_dt, inside, NEVER)
    u = gl.load(u_base + of_u, inside, 0.0)
    B = gl.load(B_base + of_B, inside_bc, 0.0)
    C = B if STATES_ONLY else gl.load(C_base + of_C, inside_bc, 0.0)
    u_again, out_base = u_base, begin * d_inner  # of the tile to finish

    t0 = begin
    for i in range(n_tiles):
        buffer = i & 1
        if STATES_ONLY:  # otherwise finish_tile has waited for it
            if i >= 2:
                mbarrier.wait(done.index(buffer), ((i - 2) >> 1) & 1)
        else:
            # u again, from the L2: kept over an iteration, it would spill.
            rows_before = T - (i == n_before).to(gl.int32) * short if EXPORT else T
            earlier = (r < rows_before)[:, None] & in_c & (i > 0)
            u_before, z_before = gl.load(u_again + of_u, earlier, 0.0), gl.load(z_base + of_z, earlier, 0.0)
        dt = softplus(dt_raw.to(gl.float32) + bias[None, :])
        if STATES_ONLY:
            elapsed += dt
        dt_tiles.index(buffer).store(dt)
        dtu_tiles.index(buffer).store(dt * u.to(gl.float32))
        B_tiles.index(buffer).store(B.to(gl.float32))
        if not STATES_ONLY:
            C_tiles.index(buffer).store(C.to(gl.float32))
        all_warps_meet()
        mbarrier.arrive(ready.index(buffer), count=1)

        rows_now = T - (i + 1 == n_before).to(gl.int32) * short if EXPORT else T
        next_end = end
        if EXPORT:
            next_end = gl.minimum(end, t0 + rows_now + T - short) if i + 2 == n_before else end
        t0 += rows_now
        dt_base += rows_now * dt_stride
        u_base += rows_now * u_stride
        B_base += rows_now * B_stride
        inside, inside_bc = (t0 + r < next_end)[:, None] & in_c, (t0 + r_bc < next_end)[:, None] & in_n
        dt_raw = gl.load(dt_base + of_dt, inside, NEVER)
        u = gl.load(u_base + of_u, inside, 0.0)
        B = gl.load(B_base + of_B, inside_bc, 0.0)
        if not STATES_ONLY:
            C_base += rows_now * C_stride
            C = gl.load(C_base + of_C, inside_bc, 0.0)
            if i > 0:
                finish_tile(
                    y_tiles, done, i - 1, u_before, z_before, skip, earlier, of_out, out_base, out_ptr, pre_gate_ptr,
                    T, BD, TILE, SAVE,
                )  # fmt: skip
                u_again += rows_before * u_stride
                z_base += rows_before * z_stride
                out_base += rows_before * d_inner
    if STATES_ONLY:
        gl.store(elapsed_ptr + row.to(gl.int64) * d_inner + c, gl.sum(elapsed, axis=0), c < d_inner)
    else:
        if n_tiles > 0:
            rows_now = T - (n_tiles == n_before).to(gl.int32) * short if EXPORT else T
            last = (t0 - rows_now + r < end)[:, None] & in_c
            u_before, z_before = gl.load(u_again + of_u, last, 0.0), gl.load(z_base + of_z, last, 0.0)
            finish_tile(
                y_tiles, done, n_tiles - 1, u_before, z_before, skip, last, of_out, out_base, out_ptr, pre_gate_ptr, T,
                BD, TILE, SAVE,
            )  # fmt: skip


@direct
@gluon.jit(do_not_specialize=["n_seqs"])
def forward_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, bounds_ptr, initial_ptr, export_at_ptr,
    out_ptr, final_ptr, saved_states_ptr, pre_gate_ptr, elapsed_ptr, exported_ptr,
    u_stride, dt_stride, B_stride, C_stride, z_stride, d_inner, d_state, n_seqs,
    T: gl.constexpr, BD: gl.constexpr, N: gl.constexpr, HAS_INITIAL: gl.constexpr, SAVE_EVERY: gl.constexpr,
    CHUNK: gl.constexpr, EXPORT: gl.constexpr, STATES_ONLY: gl.constexpr, TILE_WARP_REGISTERS: gl.constexpr,
    num_warps: gl.constexpr,
):  # fmt: skip
    PLANE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    dt_tiles = gl.allocate_shared_memory(gl.float32, [2, T, BD], PLANE)
    dtu_tiles = gl.allocate_shared_memory(gl.float32, [2, T, BD], PLANE)
    B_tiles = gl.allocate_shared_memory(gl.float32, [2, T, N], PLANE)
    C_tiles = gl.allocate_shared_memory(gl.float32, [2, T, N], PLANE)
    y_tiles = gl.allocate_shared_memory(gl.float32, [2 * (T // 8), 8, BD], PLANE)
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())  # buffer filled
    done = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())  # buffer stepped through
    for i in gl.static_range(2):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(done.index(i), count=1)

    n_blocks = gl.cdiv(d_inner, BD)
    row, block = gl.program_id(0) // n_blocks, gl.program_id(0) % n_blocks
    seq, begin, end, start = segment(bounds_ptr, n_seqs, row, CHUNK)
    n_tiles = gl.maximum(gl.cdiv(end - begin, T), 0).to(gl.int32)
    n_before, short, exports = 0, 0, 0
    if EXPORT:
        n_before, short, exports = n_tiles * 0, n_tiles * 0, n_tiles * 0
        cut = start + gl.load(export_at_ptr + seq).to(gl.int64)
        stop = gl.load(bounds_ptr + seq + 1).to(gl.int64)
        owns = (cut >= begin) & ((cut < end) | ((cut == stop) & (end == stop) & (begin < end)))
        if owns:
            exports += 1
            n_before = gl.cdiv(cut - begin, T).to(gl.int32)
            short = (begin + n_before * T - cut).to(gl.int32)
            n_tiles = n_before + gl.cdiv(end - cut, T).to(gl.int32)
    first_saved_row = start // max(SAVE_EVERY, 1) + seq + (begin - start) // max(SAVE_EVERY, 1)
    gl.warp_specialize(
        [
            (scan_partition, (
                dt_tiles, dtu_tiles, B_tiles, C_tiles, y_tiles, ready, done, A_ptr, initial_ptr, final_ptr,
                saved_states_ptr, exported_ptr,
                row, seq, block, first_saved_row, begin, end, n_tiles, n_before, exports, d_inner, d_state,
                T, BD, N, HAS_INITIAL, SAVE_EVERY, CHUNK, EXPORT, STATES_ONLY, num_warps,
            )),
            (tile_partition, (
                dt_tiles, dtu_tiles, B_tiles, C_tiles, y_tiles, ready, done,
                u_ptr, dt_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, out_ptr, pre_gate_ptr, elapsed_ptr,
                u_stride, dt_stride, B_stride, C_stride, z_stride, row, block, begin, end, n_tiles, n_before, short,
                d_inner, d_state,
                T, BD, N, SAVE_EVERY > 0, EXPORT, STATES_ONLY, num_warps,
            )),
        ],
        [num_warps],
        [TILE_WARP_REGISTERS],
    )  # fmt: skip


@direct
@triton.jit
def carry_kernel(
    A_ptr, bounds_ptr, initial_ptr, chunk_ends_ptr, elapsed_ptr, chunk_starts_ptr, final_ptr, d_inner, d_state,
    BD: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """From each chunk's end state from zero to its true start state, and the sequence's final state."""
    seq, d, n = tl.program_id(1), tl.program_id(0) * BD + tl.arange(0, BD), tl.arange(0, N)
    begin, end = tl.load(bounds_ptr + seq).to(tl.int64), tl.load(bounds_ptr + seq + 1).to(tl.int64)
    in_d = d < d_inner
    in_h = in_d[:, None] & (n < d_state)[None, :]
    of_h = d[:, None] * d_state + n[None, :]
    A2 = tl.load(A_ptr + of_h, in_h, 0.0).to(tl.float32) * 1.4426950408889634
    h = tl.zeros([BD, N], tl.float32)
    if HAS_INITIAL:
        h = tl.load(initial_ptr + seq.to(tl.int64) * d_inner * d_state + of_h, in_h, 0.0).to(tl.float32)
    row = begin // CHUNK + seq
    for _ in tl.range(begin, end, CHUNK, num_stages=4):
        base = row * d_inner * d_state
        tl.store(chunk_starts_ptr + base + of_h, h, in_h)
        decay = tl.exp2(tl.load(elapsed_ptr + row * d_inner + d, in_d, 0.0)[:, None] * A2)
        h = decay * h + tl.load(chunk_ends_ptr + base + of_h, in_h, 0.0)
        row += 1
    tl.store(final_ptr + seq.to(tl.int64) * d_inner * d_state + of_h, h, in_h)


def forward(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, cu_seqlens: Tensor,
    initial_state: Tensor | None, save: bool, export_at: Tensor | None = None, exported: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See registration.register. Writes `exported`, if given, but for empty sequences."""
    (tokens, d_inner), d_state, n_seqs = u.shape, A.shape[1], cu_seqlens.shape[0] - 1
    N = max(16, next_power_of_2(d_state))
    BD = 256 * WARPS // N
    u, dt, B, C, z = (rows(t) for t in (u, dt, B, C, z))
    A, initial = A.contiguous(), None if initial_state is None else initial_state.contiguous()
    y, final, tile_states, pre_gate = empty_results(u, A, n_seqs, saved_rows(tokens, n_seqs, SAVED_TILE) if save else 0)

    def scan(n_rows: int, initial: Tensor | None, ends: Tensor, elapsed: Tensor | None, chunk: int) -> None:
        forward_kernel[(cdiv(d_inner, BD) * n_rows,)](
            u, dt, A, B, C, D.contiguous(), z, dt_bias.contiguous(), cu_seqlens, initial, export_at,
            y, ends, tile_states, pre_gate, elapsed, exported,
            u.stride(0), dt.stride(0), B.stride(0), C.stride(0), z.stride(0), d_inner, d_state, n_seqs,
            T=FORWARD_TILE, BD=BD, N=N, HAS_INITIAL=initial is not None,
            SAVE_EVERY=SAVED_TILE if save and elapsed is None else 0,
            CHUNK=chunk, EXPORT=export_at is not None and elapsed is None, STATES_ONLY=elapsed is not None,
            TILE_WARP_REGISTERS=TILE_WARP_REGISTERS, num_warps=WARPS, maxnreg=AVERAGE_REGISTERS,
        )  # fmt: skip

    with torch.cuda.device(u.device):
        if n_seqs * d_inner > WIDE_ENOUGH or tokens <= 2 * CHUNK:
            scan(n_seqs, initial, final, None, 0)
            return y, final, tile_states, pre_gate
        n_rows = saved_rows(tokens, n_seqs, CHUNK)
        ends, starts = (u.new_empty((n_rows, *A.shape), dtype=torch.float32) for _ in range(2))
        elapsed = u.new_empty((n_rows, d_inner), dtype=torch.float32)
        scan(n_rows, None, ends, elapsed, CHUNK)
        carry_kernel[(cdiv(d_inner, 16), n_seqs)](
            A, cu_seqlens, initial, ends, elapsed, starts, final, d_inner, d_state,
            BD=16, N=N, CHUNK=CHUNK, HAS_INITIAL=initial is not None, num_warps=1,
        )  # fmt: skip
        scan(n_rows, starts, final, None, CHUNK)
    return y, final, tile_states, pre_gate
