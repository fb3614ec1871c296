"""Causal convolution with SiLU in plain Triton: forward, backward and one decode step.

Legend of the kernels

    T  tokens of a tile, UNROLL of them at a time   BD  channels of a program   K    taps
    d  channel [BD], 16 bytes of them a lane        at  token in its sequence   lag  K - 1 - tap, 0 on the current token

A program walks its channels through a tile token by token, with the last K - 1 inputs (and in the backward the
gradients before the activation) in registers, so that each is loaded once and computed once. A tile lies in one
sequence: tile j of sequence s is row cu_seqlens[s] // T + s + j, so nobody has to know the lengths on the host.

Floor: x read once and the output written once (the backward: x and dout read, dx written).
"""

# mypy: disable-error-code="unreachable"
# (tuples that grow in a loop unrolled at compile time are empty to mypy)

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import cdiv, direct, next_power_of_2, on_device_of, overlaps, speaks_ptx
from plait.ops.operator import operator


class Cut(NamedTuple):
    """Tokens of a tile, tokens at a time, channels and warps of a program, stages of the pipeline through shared memory
    (1: none).
    """

    tile: int
    unroll: int
    channels: int
    warps: int
    stages: int


FORWARD = Cut(32, 16, 256, 2, 1)


def backward_cut(tokens: int) -> Cut:
    """33 rows of tiles for 2K, 4K, 8K and 16K tokens: with 8192 channels four programs a multiprocessor of an H100, and
    there is room for four at once.
    """
    return Cut(min(max(next_power_of_2(tokens) // 32, 64), 512), 4, 512, 2, 3)


@triton.jit
def find_sequence(bounds_ptr, n_seqs, row, T, lead):
    """The sequence that owns a row of tiles, if each has `lead` tokens before its own."""
    low, high = 0, n_seqs - 1
    while low < high:
        middle = (low + high + 1) // 2
        if (tl.load(bounds_ptr + middle) + middle * lead) // T + middle <= row:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def parameters(weight_ptr, bias_ptr, d, in_d, K: tl.constexpr, BD: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Weights by lag, and the bias, [BD] fp32."""
    weights = ()
    for lag in tl.static_range(K):
        weights = weights + (tl.load(weight_ptr + d * K + (K - 1 - lag), in_d, 0.0).to(tl.float32),)
    bias = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + d, in_d, 0.0).to(tl.float32)
    return weights, bias


@triton.jit
def input_at(
    x_ptr, columns_ptr, at, length, x_stride, channels, d, in_d, K: tl.constexpr, HAS_INITIAL: tl.constexpr
):  # fmt: skip
    """x [BD] at token `at` of a sequence that x_ptr begins, fp32: before it the carried columns, past its end zero."""
    x = tl.load(x_ptr + at.to(tl.int64) * x_stride + d, in_d & (at >= 0) & (at < length), 0.0).to(tl.float32)
    if HAS_INITIAL:  # noqa: SIM102  known at compile time, unlike at
        if at < 0:
            x += tl.load(columns_ptr + (K - 1 + at) * channels + d, in_d & (at >= 1 - K), 0.0).to(tl.float32)
    return x


@triton.jit
def sigmoid(x, PTX: tl.constexpr):
    """1 / (1 + e^-x); with the approximate reciprocal, where an exact division is a third of all instructions."""
    e = tl.exp2(x * -1.4426950408889634)
    if PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + e], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / (1.0 + e)


@triton.jit
def weighted(window, weights, bias, K: tl.constexpr):
    """bias + sum over lags of weights[lag] window[lag]."""
    total = bias
    for lag in tl.static_range(K):
        total += weights[lag] * window[lag]
    return total


@triton.jit
def shifted(window, newest, K: tl.constexpr):
    """The window one token later, newest first."""
    moved = (newest,)
    for lag in tl.static_range(K - 1):
        moved = moved + (window[lag],)
    return moved


@direct
@triton.jit(do_not_specialize=["n_seqs"])
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, bounds_ptr, columns_ptr, out_ptr, final_ptr, x_stride, channels, n_seqs,
    K: tl.constexpr, T: tl.constexpr, UNROLL: tl.constexpr, BD: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, PTX: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(1), tl.program_id(0) * BD + tl.arange(0, BD)
    in_d = d < channels
    seq = find_sequence(bounds_ptr, n_seqs, row, T, 0)
    start, stop = tl.load(bounds_ptr + seq).to(tl.int64), tl.load(bounds_ptr + seq + 1).to(tl.int64)
    age, length = ((row - start // T - seq) * T).to(tl.int32), (stop - start).to(tl.int32)
    x_ptr += start * x_stride
    out_ptr += start * channels
    if HAS_INITIAL:
        columns_ptr += seq.to(tl.int64) * channels * (K - 1)
    weights, bias = parameters(weight_ptr, bias_ptr, d, in_d, K, BD, HAS_BIAS)
    window = ()
    for lag in tl.static_range(K):
        window = window + (
            input_at(x_ptr, columns_ptr, age - 1 - lag, length, x_stride, channels, d, in_d, K, HAS_INITIAL),
        )
    for done in tl.range(0, tl.minimum(length - age, T), UNROLL, num_stages=STAGES):
        xs = ()
        for i in tl.static_range(UNROLL):
            at = (age + (done + i)).to(tl.int64)
            xs = xs + (tl.load(x_ptr + at * x_stride + d, in_d & (at < length), 0.0),)
        for i in tl.static_range(UNROLL):
            window = shifted(window, xs[i].to(tl.float32), K)
            total = weighted(window, weights, bias, K)
            at = (age + (done + i)).to(tl.int64)
            tl.store(out_ptr + at * channels + d, total * sigmoid(total, PTX), in_d & (at < length))
    if (age + T >= length) & (age <= tl.maximum(length - 1, 0)):  # the last tile, or the one place of an empty sequence
        final_ptr += seq.to(tl.int64) * channels * (K - 1)
        for column in tl.static_range(K - 1):
            last = input_at(
                x_ptr, columns_ptr, length + (column + 1 - K), length, x_stride, channels, d, in_d, K, HAS_INITIAL
            )
            tl.store(final_ptr + column * channels + d, last, in_d)


@triton.jit
def silu_slope(total, PTX: tl.constexpr):
    """d silu(total) / d total."""
    s = sigmoid(total, PTX)
    return s * (1.0 + total * (1.0 - s))


@direct
@triton.jit(do_not_specialize=["n_seqs"])
def backward_kernel(
    x_ptr, weight_ptr, bias_ptr, bounds_ptr, columns_ptr, dout_ptr, dfinal_ptr, dx_ptr, dcolumns_ptr, partials_ptr,
    x_stride, dout_stride, channels, n_seqs,
    K: tl.constexpr, T: tl.constexpr, UNROLL: tl.constexpr, BD: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_INITIAL: tl.constexpr, PTX: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx_t = sum_lag w_lag p_{t + lag}, p the gradient before the activation, recomputed: only the inputs are saved.

    A sequence's tiles begin at its carried columns, K - 1 tokens before its start, and dx comes K - 1 tokens after p.
    Weight and bias gradients are partial sums, one [K + 1, channels] a program, added up in a fixed order afterwards.
    """
    row, d = tl.program_id(1), tl.program_id(0) * BD + tl.arange(0, BD)
    in_d = d < channels
    seq = find_sequence(bounds_ptr, n_seqs, row, T, K - 1)
    start, stop = tl.load(bounds_ptr + seq).to(tl.int64), tl.load(bounds_ptr + seq + 1).to(tl.int64)
    tile = (row - (start + seq * (K - 1)) // T - seq).to(tl.int32)
    begin, length = tile * T - (K - 1), (stop - start).to(tl.int32)
    end = tl.minimum(begin + T, length)  # of the tokens whose dx is this program's
    x_ptr += start * x_stride
    dout_ptr += start * dout_stride
    dx_ptr += start * channels
    if HAS_INITIAL:
        columns_ptr += seq.to(tl.int64) * channels * (K - 1)
        dcolumns_ptr += seq.to(tl.int64) * channels * (K - 1)
    dfinal_ptr += seq.to(tl.int64) * channels * (K - 1)
    weights, bias = parameters(weight_ptr, bias_ptr, d, in_d, K, BD, HAS_BIAS)
    sums, window, ps = (), (), ()  # sums: of the weight gradients by lag, then of the bias gradient
    for lag in tl.static_range(K):
        window = window + (
            input_at(x_ptr, columns_ptr, begin - 1 - lag, length, x_stride, channels, d, in_d, K, HAS_INITIAL),
        )
        ps = ps + (tl.zeros([BD], tl.float32),)
        sums = sums + (tl.zeros([BD], tl.float32),)
    sums = sums + (tl.zeros([BD], tl.float32),)

    for done in tl.range(0, tl.where(begin < length, end - begin + K - 1, 0), UNROLL, num_stages=STAGES):
        xs, douts = (), ()
        for i in tl.static_range(UNROLL):
            at = begin + (done + i)
            xs = xs + (input_at(x_ptr, columns_ptr, at, length, x_stride, channels, d, in_d, K, HAS_INITIAL),)
            live = in_d & (at >= 0) & (at < length)
            douts = douts + (tl.load(dout_ptr + at.to(tl.int64) * dout_stride + d, live, 0.0),)
        for i in tl.static_range(UNROLL):
            at = begin + (done + i)
            window = shifted(window, xs[i], K)
            p = douts[i].to(tl.float32) * silu_slope(weighted(window, weights, bias, K), PTX)
            ps = shifted(ps, p, K)
            own = tl.where(at < end, p, 0.0)
            added = ()
            for lag in tl.static_range(K):
                added = added + (sums[lag] + own * window[lag],)
            sums = added + (sums[K] + own,)
            token = at - (K - 1)
            dx = tl.zeros([BD], tl.float32)
            for lag in tl.static_range(K):
                dx += weights[lag] * ps[K - 1 - lag]
            if token > length - K:  # this token went into the final columns
                column = token - (length - (K - 1))
                dx += tl.load(dfinal_ptr + column * channels + d, in_d & (token < length), 0.0).to(tl.float32)
            mine = (token >= begin) & (token < end)
            tl.store(dx_ptr + token.to(tl.int64) * channels + d, dx, in_d & mine & (token >= 0))
            if HAS_INITIAL:
                tl.store(dcolumns_ptr + (token + K - 1) * channels + d, dx, in_d & mine & (token < 0))

    partials_ptr += row.to(tl.int64) * (K + 1) * channels
    for lag in tl.static_range(K):
        tl.store(partials_ptr + (K - 1 - lag) * channels + d, sums[lag], in_d)
    tl.store(partials_ptr + K * channels + d, sums[K], in_d)


@direct
@triton.jit(do_not_specialize=["n_rows"])
def sums_kernel(
    partials_ptr, dweight_ptr, dbias_ptr, n_rows, channels,
    K: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Gradients of the weights [channels, K] and of the bias [channels] from backward_kernel's partial sums."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    tap, d = tl.program_id(1), tl.program_id(0) * BD + tl.arange(0, BD)
    in_d = (d < channels)[None, :]
    total = tl.zeros([ROWS, BD], tl.float32)
    for first in range(0, n_rows, ROWS):
        row = (first + tl.arange(0, ROWS))[:, None]
        at = (row.to(tl.int64) * (K + 1) + tap) * channels + d[None, :]
        total += tl.load(partials_ptr + at, in_d & (row < n_rows), 0.0)
    own = tl.sum(total, 0)
    if tap < K:
        tl.store(dweight_ptr + d * K + tap, own, d < channels)
    elif HAS_BIAS:
        tl.store(dbias_ptr + d, own, d < channels)


@direct
@triton.jit
def update_kernel(
    x_ptr, weight_ptr, bias_ptr, columns_ptr, slots_ptr, out_ptr, x_stride, channels,
    K: tl.constexpr, BD: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    seq, d = tl.program_id(0), tl.program_id(1) * BD + tl.arange(0, BD)
    in_d = d < channels
    columns_ptr += (tl.load(slots_ptr + seq).to(tl.int64) * channels + d) * (K - 1)
    x = tl.load(x_ptr + seq.to(tl.int64) * x_stride + d, in_d, 0.0)
    total = x.to(tl.float32) * tl.load(weight_ptr + d * K + (K - 1), in_d, 0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + d, in_d, 0.0).to(tl.float32)
    for column in tl.static_range(K - 1):
        carried = tl.load(columns_ptr + column, in_d, 0.0)
        total += carried.to(tl.float32) * tl.load(weight_ptr + d * K + column, in_d, 0.0).to(tl.float32)
        if column > 0:
            tl.store(columns_ptr + (column - 1), carried, in_d)
    tl.store(columns_ptr + (K - 2), x, in_d)
    tl.store(out_ptr + seq.to(tl.int64) * channels + d, total * tl.sigmoid(total), in_d)


@direct
@triton.jit
def columns_kernel(
    x_ptr, bounds_ptr, at_ptr, initial_ptr, out_ptr, x_stride, channels,
    K: tl.constexpr, BD: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """The K - 1 inputs before token at_ptr[seq] of each sequence, [K - 1, channels]."""
    seq, d = tl.program_id(1).to(tl.int64), tl.program_id(0) * BD + tl.arange(0, BD)
    in_d = d < channels
    start = tl.load(bounds_ptr + seq).to(tl.int64)
    at = tl.load(at_ptr + seq).to(tl.int64)
    for column in tl.static_range(K - 1):
        token = at + (column + 1 - K)
        value = tl.load(x_ptr + (start + token) * x_stride + d, in_d & (token >= 0), 0.0)
        if HAS_INITIAL:
            carried = initial_ptr + (seq * (K - 1) + token + (K - 1)) * channels + d
            value += tl.load(carried, in_d & (token < 0), 0.0).to(value.dtype)
        tl.store(out_ptr + (seq * (K - 1) + column) * channels + d, value, in_d)


def columns_at(
    x: Tensor, cu_seqlens: Tensor, export_at: Tensor, d_conv: int, initial_columns: Tensor | None
) -> Tensor:  # fmt: skip
    n_seqs, channels = export_at.shape[0], x.shape[1]
    x, out = _rows(x), x.new_empty(n_seqs, d_conv - 1, channels)
    with on_device_of(x):
        columns_kernel[(cdiv(channels, 1024), n_seqs)](
            x, cu_seqlens, export_at, _token_major(initial_columns), out, x.stride(0), channels,
            K=d_conv, BD=1024, HAS_INITIAL=initial_columns is not None, num_warps=4,
        )  # fmt: skip
    return out.transpose(1, 2)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, initial_columns: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _conv(x, weight, bias, cu_seqlens, initial_columns)


def causal_conv1d_update(x: Tensor, weight: Tensor, bias: Tensor | None, columns: Tensor, slots: Tensor) -> Tensor:
    """Mutates columns."""
    if not columns.is_contiguous():
        raise ValueError(
            f"the pool of columns must be contiguous, got strides {columns.stride()} of {tuple(columns.shape)}"
        )
    n_seqs, channels = x.shape
    x, out = _rows(x), x.new_empty(n_seqs, channels)
    BD = 512 if n_seqs * channels > 1 << 16 else 128  # a single sequence needs more programs
    overlap = overlaps(x)
    with on_device_of(x):
        update_kernel[(n_seqs, cdiv(channels, BD))](
            x, weight.contiguous(), _packed(bias), columns, slots, out, x.stride(0), channels,
            K=weight.shape[1], BD=BD, HAS_BIAS=bias is not None, OVERLAP=overlap, num_warps=BD // 128,
            **({"launch_pdl": True} if overlap else {}),
        )  # fmt: skip
    return out


@operator("plait::causal_conv1d_triton")
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_columns: Tensor | None,
) -> tuple[Tensor, Tensor]:
    (tokens, channels), K, n_seqs = x.shape, weight.shape[1], cu_seqlens.shape[0] - 1
    x, cut = _rows(x), FORWARD
    out, final = x.new_empty(tokens, channels), x.new_empty(n_seqs, K - 1, channels)
    with on_device_of(x):
        forward_kernel[(cdiv(channels, cut.channels), tokens // cut.tile + n_seqs)](
            x, weight.contiguous(), _packed(bias), cu_seqlens, _token_major(initial_columns), out, final, x.stride(0),
            channels, n_seqs,
            K=K, T=cut.tile, UNROLL=cut.unroll, BD=cut.channels, HAS_BIAS=bias is not None,
            HAS_INITIAL=initial_columns is not None, PTX=speaks_ptx(x), STAGES=cut.stages, num_warps=cut.warps,
        )  # fmt: skip
    return out, final.transpose(1, 2)


@_conv.register_fake
def _(x, weight, bias, cu_seqlens, initial_columns):
    final = x.new_empty(cu_seqlens.shape[0] - 1, weight.shape[1] - 1, weight.shape[0])
    return x.new_empty(x.shape), final.transpose(1, 2)


@operator("plait::causal_conv1d_triton_backward")
def _conv_backward(
    dout: Tensor, dfinal: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor,
    initial_columns: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias and initial_columns; an empty tensor for one that was not given."""
    (tokens, channels), K, n_seqs = x.shape, weight.shape[1], cu_seqlens.shape[0] - 1
    x, dout, cut = _rows(x), _rows(dout), backward_cut(tokens)
    dx = x.new_empty(tokens, channels)
    dweight, dbias, dinitial = _gradients_like(x, weight, bias, initial_columns)
    n_rows = (tokens + n_seqs * (K - 1)) // cut.tile + n_seqs
    partials = x.new_empty(n_rows, K + 1, channels, dtype=torch.float32)
    with on_device_of(x):
        backward_kernel[(cdiv(channels, cut.channels), n_rows)](
            x, weight.contiguous(), _packed(bias), cu_seqlens, _token_major(initial_columns), dout,
            _token_major(dfinal), dx, dinitial.transpose(1, 2), partials, x.stride(0), dout.stride(0), channels, n_seqs,
            K=K, T=cut.tile, UNROLL=cut.unroll, BD=cut.channels, HAS_BIAS=bias is not None,
            HAS_INITIAL=initial_columns is not None, PTX=speaks_ptx(x), STAGES=cut.stages, num_warps=cut.warps,
        )  # fmt: skip
        overlap = overlaps(x)
        sums_kernel[(cdiv(channels, 64), K + 1)](
            partials, dweight, dbias, n_rows, channels,
            K=K, ROWS=32, BD=64, HAS_BIAS=bias is not None, OVERLAP=overlap, num_warps=4,
            **({"launch_pdl": True} if overlap else {}),
        )  # fmt: skip
    return dx, dweight, dbias, dinitial


@_conv_backward.register_fake
def _(dout, dfinal, x, weight, bias, cu_seqlens, initial_columns):
    return x.new_empty(x.shape), *_gradients_like(x, weight, bias, initial_columns)


def _gradients_like(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_columns: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of weight, bias and initial_columns (these with the channels last in memory)."""
    n_seqs, channels, d_columns = (0, 0, 0) if initial_columns is None else initial_columns.shape
    return (
        weight.new_empty(weight.shape),
        x.new_empty(0) if bias is None else bias.new_empty(bias.shape),
        (x if initial_columns is None else initial_columns).new_empty(n_seqs, d_columns, channels).transpose(1, 2),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.final_shape = output[1].shape


def _differentiate(ctx: Any, dout: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, cu_seqlens, initial_columns = ctx.saved_tensors
    dout = x.new_zeros(x.shape) if dout is None else dout
    dfinal = x.new_zeros(ctx.final_shape) if dfinal is None else dfinal
    dx, dweight, dbias, dinitial = _conv_backward(dout, dfinal, x, weight, bias, cu_seqlens, initial_columns)
    return dx, dweight, None if bias is None else dbias, None, None if initial_columns is None else dinitial


_conv.register_autograd(_differentiate, setup_context=_remember)


def _rows(t: Tensor) -> Tensor:
    """Rows may be strided (a slice of a projection's output); what is in a row lies together."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _packed(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _token_major(columns: Tensor | None) -> Tensor | None:
    """[n_seqs, channels, d_conv - 1] -> [n_seqs, d_conv - 1, channels]."""
    return None if columns is None else columns.transpose(1, 2).contiguous()
