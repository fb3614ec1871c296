"""State-space duality, the scan of Mamba-2: one decay per head in place of one per channel and state (paper Figure 1).

dt_t = softplus(dt_t + dt_bias)
h_t  = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        h is [n_ssm_heads, d_ssm_head, d_state], fp32
y_t  = h_t C_t + D x_t
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.ops.dispatch import Implementation, anywhere, pick, why_not_triton
from plait.ops.shapes import Shapes
from plait.ops.ssd import chunked, reference

_PACKED = {
    "x": "tokens n_ssm_heads d_ssm_head", "dt": "tokens n_ssm_heads", "A": "n_ssm_heads",
    "B": "tokens n_ssm_groups d_state", "C": "tokens n_ssm_groups d_state", "D": "n_ssm_heads",
    "dt_bias": "n_ssm_heads",
}  # fmt: skip
_POOL = "n_ssm_heads d_ssm_head d_state"
_SSD = Shapes("ssd", **_PACKED, cu_seqlens="n_seqs+1", initial_state=f"n_seqs {_POOL}")
_UPDATE = Shapes("ssd_update", **_PACKED, states=f"n_slots {_POOL}", slots="tokens")


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.float32, torch.bfloat16, torch.float16))


# Imported when first called, so that this package needs no Triton; by statement, which torch.compile can follow.
def _triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    from plait.ops.ssd.triton import ssd as run

    return run(*arguments)


IMPLEMENTATIONS = {
    "triton": Implementation(_triton, _why_not_triton),
    "chunked": Implementation(chunked.ssd, anywhere),
    "reference": Implementation(reference.ssd, anywhere),
}


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    dt_bias: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan packed sequences; the state restarts at every bound of cu_seqlens.

    x [tokens, n_ssm_heads, d_ssm_head]; dt [tokens, n_ssm_heads]; A (negative), D, dt_bias [n_ssm_heads];
    B, C [tokens, n_ssm_groups, d_state]; initial_state [n_seqs, n_ssm_heads, d_ssm_head, d_state] (None: zeros).
    Returns (y like x, final_state in fp32). Mutates nothing; differentiable.
    """
    _SSD.check(x, dt, A, B, C, D, dt_bias, cu_seqlens, initial_state)
    _check_groups(x, B)
    run = pick("ssd", IMPLEMENTATIONS, x)
    if torch.compiler.is_compiling() and run is not _triton:
        from plait.ops.compiled import SSD

        y, final = SSD(x, dt, A, B, C, D, dt_bias, cu_seqlens, initial_state)
        return y, final
    return run(x, dt, A, B, C, D, dt_bias, cu_seqlens, initial_state)


def ssd_update(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor, dt_bias: Tensor, states: Tensor, slots: Tensor
) -> Tensor:
    """One decode step: one token of each sequence. Writes the new states into `states` [n_slots, heads, d_head,
    d_state].
    """
    _UPDATE.check(x, dt, A, B, C, D, dt_bias, states, slots)
    _check_groups(x, B)
    wide = torch.promote_types(x.dtype, torch.float32)
    heads_per_group = x.shape[1] // B.shape[1]
    B, C = (t.to(wide).repeat_interleave(heads_per_group, dim=1) for t in (B, C))
    delta = F.softplus(dt.to(wide) + dt_bias)
    h = torch.exp(delta * A)[:, :, None, None] * states[slots] + (delta[:, :, None] * x)[..., None] * B[:, :, None, :]
    states[slots] = h.to(states.dtype)
    return (torch.einsum("shpn,shn->shp", h, C) + D[:, None] * x).to(x.dtype)


def _check_groups(x: Tensor, B: Tensor) -> None:
    if x.shape[1] % B.shape[1]:
        raise ValueError(
            f"ssd: n_ssm_heads={x.shape[1]} of x must be a multiple of n_ssm_groups={B.shape[1]} of B and C"
        )
