"""The selective scan of Mamba-1 (paper section 2; Mamba, algorithm 2), with softplus, skip and gate fused in.

    dt_t = softplus(dt_t + dt_bias)
    h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t          h is [d_inner, d_state], fp32
    y_t  = (C_t h_t + D u_t) silu(z_t)

A sequence is affine in its initial state, so one op with a state in and a state out serves training, prefill, chunked
prefill, speculative verification and context parallelism.
"""

from typing import Any

import torch
from torch import Tensor

from plait.ops.dispatch import Implementation, anywhere, pick, why_not_triton
from plait.ops.hopper import why_not_gluon
from plait.ops.linear import linear
from plait.ops.rms_norm import rms_norm_sections
from plait.ops.selective_scan import chunked, cut, native, reference
from plait.ops.shapes import Shapes

_PACKED = {
    "u": "tokens d_inner", "dt": "tokens d_inner", "A": "d_inner d_state", "B": "tokens d_state", "C": "tokens d_state",
    "D": "d_inner", "z": "tokens d_inner", "dt_bias": "d_inner",
}  # fmt: skip
_BEGUN = {"cu_seqlens": "n_seqs+1", "initial_state": "n_seqs d_inner d_state"}
_SCAN = Shapes("selective_scan", **_PACKED, **_BEGUN)
_EXPORTING = Shapes("selective_scan_exporting", **_PACKED, **_BEGUN, export_at="n_seqs")
_UPDATE = Shapes("selective_scan_update", **_PACKED, states="n_slots d_inner d_state", slots="tokens")
_STEP = Shapes(
    "selective_scan_step", u="tokens d_inner", dt_weight="d_inner dt_rank", A="d_inner d_state", D="d_inner",
    z="tokens d_inner", dt_bias="d_inner", states="n_slots d_inner d_state", slots="tokens", dt_norm="dt_rank",
    B_norm="d_state", C_norm="d_state",
)  # fmt: skip


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.float32, torch.bfloat16, torch.float16))


def _why_not_gluon(probe: Tensor) -> str | None:
    reason = _why_not_triton(probe)
    return reason or ("the interpreter has no Gluon" if not probe.is_cuda else why_not_gluon(probe.device))


# Imported when first called, so that this package needs no Triton; by statement, which torch.compile can follow.
def _gluon(*arguments: Any) -> tuple[Tensor, Tensor]:
    from plait.ops.selective_scan.gluon import selective_scan as run

    return run(*arguments)


def _triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    from plait.ops.selective_scan.triton import selective_scan as run

    return run(*arguments)


def _triton_update(*arguments: Any) -> Tensor:
    from plait.ops.selective_scan.triton_decode import selective_scan_update as run

    return run(*arguments)


def _gluon_exporting(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from plait.ops.selective_scan.gluon import selective_scan_exporting as run

    return run(*arguments)


def _triton_exporting(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from plait.ops.selective_scan.triton import selective_scan_exporting as run

    return run(*arguments)


def _triton_step(u: Tensor, projected: Tensor, *arguments: Any) -> Tensor:
    from plait.ops.selective_scan.triton_decode import FEW_SEQUENCES, selective_scan_step

    return (selective_scan_step if u.shape[0] <= FEW_SEQUENCES else _in_steps)(u, projected, *arguments)


def _in_steps(
    u: Tensor, projected: Tensor, norms: tuple[Tensor, Tensor, Tensor], eps: float, dt_weight: Tensor, A: Tensor,
    D: Tensor, z: Tensor, dt_bias: Tensor, states: Tensor, slots: Tensor,
) -> Tensor:  # fmt: skip
    low, B, C = rms_norm_sections(projected, norms, eps)
    dt = linear(low, dt_weight)
    return selective_scan_update(u, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, states=states, slots=slots)


IMPLEMENTATIONS = {
    "gluon": Implementation(_gluon, _why_not_gluon),
    "triton": Implementation(_triton, _why_not_triton),
    "native": Implementation(native.selective_scan, native.why_not),
    "chunked": Implementation(chunked.selective_scan, anywhere),
    "reference": Implementation(reference.selective_scan, anywhere),
}
UPDATE_IMPLEMENTATIONS = {
    "gluon": Implementation(_triton_update, _why_not_gluon),
    "triton": Implementation(_triton_update, _why_not_triton),
    "native": Implementation(native.selective_scan_update, native.why_not),
    "chunked": Implementation(reference.selective_scan_update, anywhere),
    "reference": Implementation(reference.selective_scan_update, anywhere),
}
EXPORTING_IMPLEMENTATIONS = {
    "gluon": Implementation(_gluon_exporting, _why_not_gluon),
    "triton": Implementation(_triton_exporting, _why_not_triton),
    "native": Implementation(cut.exporting(native.selective_scan), native.why_not),
    "chunked": Implementation(cut.exporting(chunked.selective_scan), anywhere),
    "reference": Implementation(cut.exporting(reference.selective_scan), anywhere),
}
STEP_IMPLEMENTATIONS = {
    "gluon": Implementation(_triton_step, _why_not_gluon),
    "triton": Implementation(_triton_step, _why_not_triton),
    **{name: Implementation(_in_steps, UPDATE_IMPLEMENTATIONS[name].why_not) for name in ("native", "chunked")},
    "reference": Implementation(_in_steps, anywhere),
}


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan packed sequences; the state restarts at every bound of cu_seqlens.

    u, dt, z [tokens, d_inner]; A [d_inner, d_state], negative; B, C [tokens, d_state]; D, dt_bias [d_inner];
    cu_seqlens [n_seqs + 1], of sequences that may be empty; initial_state [n_seqs, d_inner, d_state] (None: zeros).
    Returns (y [tokens, d_inner] in u.dtype, final_state [n_seqs, d_inner, d_state] in fp32). Mutates nothing;
    differentiable in every floating argument, through both results.
    """
    _SCAN.check(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state)
    run = pick("selective_scan", IMPLEMENTATIONS, u)
    if torch.compiler.is_compiling() and run is not _gluon and run is not _triton:
        from plait.ops.compiled import SELECTIVE_SCAN

        y, final = SELECTIVE_SCAN(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state)
        return y, final
    return run(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state)


def selective_scan_update(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    states: Tensor,
    slots: Tensor,
) -> Tensor:
    """One decode step: one token of each sequence, [n_seqs, ...] in place of [tokens, ...]. Writes the new states back.

    states [n_slots, d_inner, d_state] is the pool, slots [n_seqs] says which row belongs to which sequence.
    """
    _UPDATE.check(u, dt, A, B, C, D, z, dt_bias, states, slots)
    run = pick("selective_scan", UPDATE_IMPLEMENTATIONS, u)
    return run(u, dt, A, B, C, D, z, dt_bias, states, slots)


def selective_scan_exporting(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor,
    export_at: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """selective_scan, and the state inside each sequence after export_at [n_seqs] of its tokens (0 to all of them):
    what a prefix cache keeps, and what is left of a draft that was verified in part.

    Returns (y, final_state, exported [n_seqs, d_inner, d_state] in fp32). For inference: raises ValueError where a
    gradient is wanted.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (u, dt, A, B, C, D, z, dt_bias)):
        raise ValueError("selective_scan_exporting has no gradient: call it under torch.no_grad(), or selective_scan")
    _EXPORTING.check(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state, export_at)
    run = pick("selective_scan", EXPORTING_IMPLEMENTATIONS, u)
    return run(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state, export_at)


def selective_scan_step(
    u: Tensor,
    projected: Tensor,
    norms: tuple[Tensor, Tensor, Tensor],
    eps: float,
    dt_weight: Tensor,
    A: Tensor,
    *,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    states: Tensor,
    slots: Tensor,
) -> Tensor:
    """All of a decode step between x_proj and out_proj: norms of dt, B and C, projection of dt, selective_scan_update.

    projected [n_seqs, dt_rank + 2 d_state], x_proj's output; norms: the weights of the three norms; dt_weight [d_inner,
    dt_rank]; the rest as in selective_scan_update. Writes the new states back. No gradient.
    """
    _STEP.check(u, dt_weight, A, D, z, dt_bias, states, slots, *norms)
    run = pick("selective_scan", STEP_IMPLEMENTATIONS, u)
    return run(u, projected, norms, eps, dt_weight, A, D, z, dt_bias, states, slots)
