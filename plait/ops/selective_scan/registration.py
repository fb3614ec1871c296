"""Puts a pair of kernels, forward and backward, behind torch: autograd, and custom operators that torch.compile sees
through.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from plait.ops.operator import operator

Scan = Callable[..., tuple[Tensor, Tensor]]


def saved_rows(tokens: int, n_seqs: int, tile: int) -> int:
    """Rows that hold one entry per tile of every sequence: tile j of sequence s is row cu_seqlens[s] // tile + s + j.

    Enough for any lengths with this sum, so nobody has to ask the device for them.
    """
    return tokens // tile + n_seqs


def register(
    name: str, forward: Callable[..., tuple[Tensor, ...]], backward: Callable[..., tuple[Tensor, ...]], tile: int
) -> Scan:
    """A differentiable selective scan from two launchers.

    forward(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state, save) returns y, the final state and, if `save`,
    for the backward: the state at the start of every tile, fp32 [saved_rows, d_inner, d_state], and y before the gate,
    like u. backward(dy, dfinal, u, dt, A, B, C, D, z, dt_bias, cu_seqlens, tile_states, pre_gate) returns the gradients
    of u, dt, A, B, C, D, z, dt_bias and the initial state.
    """

    @operator(f"plait::selective_scan_{name}")
    def scan(
        u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor,
        cu_seqlens: Tensor,
        initial_state: Tensor | None, save: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        return forward(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state, save)  # type: ignore[return-value]

    @scan.register_fake
    def _(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state, save):  # type: ignore[no-untyped-def]
        n_seqs = cu_seqlens.shape[0] - 1
        return empty_results(u, A, n_seqs, saved_rows(u.shape[0], n_seqs, tile) if save else 0)

    @operator(f"plait::selective_scan_{name}_backward")
    def scan_backward(
        dy: Tensor, dfinal: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
        dt_bias: Tensor,
        cu_seqlens: Tensor, tile_states: Tensor, pre_gate: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        return backward(dy, dfinal, u, dt, A, B, C, D, z, dt_bias, cu_seqlens, tile_states, pre_gate)  # type: ignore[return-value]

    @scan_backward.register_fake
    def _(dy, dfinal, u, dt, A, B, C, D, z, dt_bias, cu_seqlens, tile_states, pre_gate):  # type: ignore[no-untyped-def]
        like_inputs = [t.new_empty(t.shape) for t in (u, dt, A, B, C, D, z, dt_bias)]
        return (*like_inputs, torch.empty_like(dfinal))

    def remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
        *tensors, initial_state, _ = inputs
        ctx.initial_dtype = None if initial_state is None else initial_state.dtype
        ctx.save_for_backward(*tensors, output[2], output[3])
        ctx.final = output[1].shape

    def differentiate(ctx, dy, dfinal, *_):  # type: ignore[no-untyped-def]
        saved = ctx.saved_tensors  # read once: under activation checkpointing a second reading fails
        u = saved[0]
        dy = u.new_zeros(u.shape) if dy is None else dy
        dfinal = u.new_zeros(ctx.final, dtype=torch.float32) if dfinal is None else dfinal
        *grads, dinitial = scan_backward(dy, dfinal, *saved)
        return (*grads, None, None if ctx.initial_dtype is None else dinitial.to(ctx.initial_dtype), None)

    scan.register_autograd(differentiate, setup_context=remember)

    def selective_scan(
        u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor,
        cu_seqlens: Tensor,
        initial_state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        inputs = (u, dt, A, B, C, D, z, dt_bias, initial_state)
        save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
        y, final, _, _ = scan(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state, save)
        return y, final

    return selective_scan


def exporting(forward: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """From the same launcher, which with two more arguments also writes the states at export_at: no gradient."""

    def run(
        u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor,
        cu_seqlens: Tensor, initial_state: Tensor | None, export_at: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        shape = (cu_seqlens.shape[0] - 1, *A.shape)
        if initial_state is None:
            exported = u.new_zeros(shape, dtype=torch.float32)
        else:
            exported = initial_state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        y, final, *_ = forward(u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state, False, export_at, exported)
        return y, final, exported

    return run


def empty_results(u: Tensor, A: Tensor, n_seqs: int, n_saved: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for y, final states, tile states and pre-gate y."""
    y = u.new_empty(u.shape)
    final = u.new_empty((n_seqs, *A.shape), dtype=torch.float32)
    tile_states = u.new_empty((n_saved, *A.shape), dtype=torch.float32)
    return y, final, tile_states, u.new_empty(u.shape if n_saved else (0,))
