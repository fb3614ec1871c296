"""The selective scan for Hopper: both directions in Gluon, which ships inside Triton."""

from __future__ import annotations

from torch import Tensor

from plait.ops.selective_scan import gluon_backward, triton
from plait.ops.selective_scan.gluon_forward import SAVED_TILE, forward
from plait.ops.selective_scan.registration import exporting, register


def backward(
    dy: Tensor, dfinal: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor, tile_states: Tensor, pre_gate: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """See registration.register. The Hopper kernel's exchanges are laid out for d_state 16; the portable one takes the
    others.
    """
    run = gluon_backward.backward if A.shape[1] == 16 else triton.backward
    return run(dy, dfinal, u, dt, A, B, C, D, z, dt_bias, cu_seqlens, tile_states, pre_gate)


selective_scan = register("gluon", forward, backward, SAVED_TILE)
selective_scan_exporting = exporting(forward)
