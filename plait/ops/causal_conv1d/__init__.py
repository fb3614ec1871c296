"""Depthwise causal convolution with SiLU, the short memory of a Mamba mixer (d_conv taps, the last on the current
token).
"""

from typing import Any

import torch
from torch import Tensor

from plait.ops.causal_conv1d import lagged, native, reference
from plait.ops.dispatch import Implementation, anywhere, lazily, pick, why_not_triton
from plait.ops.shapes import Shapes

_WEIGHTS = {"weight": "channels d_conv", "bias": "channels"}
_BEGUN = {"cu_seqlens": "n_seqs+1", "initial_columns": "n_seqs channels d_conv-1"}
_CONV = Shapes("causal_conv1d", x="tokens channels", **_WEIGHTS, **_BEGUN)
_UPDATE = Shapes(
    "causal_conv1d_update", x="n_seqs channels", **_WEIGHTS, columns="n_slots channels d_conv-1", slots="n_seqs"
)
_COLUMNS = Shapes("columns_at", x="tokens channels", **_BEGUN, export_at="n_seqs")


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.float32, torch.bfloat16, torch.float16))


# Imported when first called, so that this package needs no Triton; by statement, which torch.compile can follow.
def _triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    from plait.ops.causal_conv1d.triton import causal_conv1d as run

    return run(*arguments)


def _triton_update(*arguments: Any) -> Tensor:
    from plait.ops.causal_conv1d.triton import causal_conv1d_update as run

    return run(*arguments)


IMPLEMENTATIONS = {
    "triton": Implementation(_triton, _why_not_triton),
    "native": Implementation(native.causal_conv1d, native.why_not),
    "lagged": Implementation(lagged.causal_conv1d, anywhere),
    "reference": Implementation(reference.causal_conv1d, anywhere),
}
UPDATE_IMPLEMENTATIONS = {
    "triton": Implementation(_triton_update, _why_not_triton),
    "native": Implementation(native.causal_conv1d_update, native.why_not),
    "lagged": Implementation(reference.causal_conv1d_update, anywhere),
    "reference": Implementation(reference.causal_conv1d_update, anywhere),
}
COLUMNS_IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.causal_conv1d.triton", "columns_at"), _why_not_triton),
    "native": Implementation(reference.columns_at, native.why_not),
    **{name: Implementation(reference.columns_at, anywhere) for name in ("lagged", "reference")},
}


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, cu_seqlens: Tensor, initial_columns: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """silu(sum_j weight[:, j] * x[t - d_conv + 1 + j] + bias), within each sequence.

    x [tokens, channels], weight [channels, d_conv], bias [channels]; cu_seqlens [n_seqs + 1] are the bounds of the
    sequences, which may be empty. initial_columns [n_seqs, channels, d_conv - 1]: the inputs just before each sequence,
    oldest first (None: zeros). Returns (out [tokens, channels], final_columns [n_seqs, channels, d_conv - 1]).
    Accumulates in fp32, mutates nothing.
    """
    _CONV.check(x, weight, bias, cu_seqlens, initial_columns)
    run = pick("causal_conv1d", IMPLEMENTATIONS, x)
    if torch.compiler.is_compiling() and run is not _triton:
        from plait.ops.compiled import CAUSAL_CONV1D

        out, final = CAUSAL_CONV1D(x, weight, bias, cu_seqlens, initial_columns)
        return out, final
    return run(x, weight, bias, cu_seqlens, initial_columns)


def causal_conv1d_update(x: Tensor, weight: Tensor, bias: Tensor | None, *, columns: Tensor, slots: Tensor) -> Tensor:
    """One decode step: x [n_seqs, channels], one token of each sequence. Writes the shifted columns back.

    columns [n_slots, channels, d_conv - 1] is the pool, slots [n_seqs] says which row belongs to which sequence.
    """
    _UPDATE.check(x, weight, bias, columns, slots)
    return pick("causal_conv1d", UPDATE_IMPLEMENTATIONS, x)(x, weight, bias, columns, slots)


def columns_at(
    x: Tensor, *, cu_seqlens: Tensor, export_at: Tensor, d_conv: int, initial_columns: Tensor | None = None
) -> Tensor:
    """The columns that continue each sequence after export_at [n_seqs] of its tokens (0 to all of them), as
    final_columns does after the last: [n_seqs, channels, d_conv - 1], the oldest first. No host sync.
    """
    _COLUMNS.check(x, cu_seqlens, initial_columns, export_at)
    return pick("causal_conv1d", COLUMNS_IMPLEMENTATIONS, x)(x, cu_seqlens, export_at, d_conv, initial_columns)
