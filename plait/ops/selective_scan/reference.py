"""The selective scan of Mamba-1, one token at a time (Mamba, algorithm 2)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, cu_seqlens: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(u.dtype, torch.float32)
    x, B, C = u.to(wide), B.to(wide), C.to(wide)
    step = F.softplus(dt.to(wide) + dt_bias)
    outputs, finals = [x[:0]], []
    bounds = cu_seqlens.tolist()
    for i, (start, stop) in enumerate(pairwise(bounds)):
        h = torch.zeros_like(A, dtype=wide) if initial_state is None else initial_state[i].to(wide)
        for t in range(start, stop):
            h = torch.exp(step[t, :, None] * A) * h + (step[t] * x[t])[:, None] * B[t]
            outputs.append((h @ C[t])[None])
        finals.append(h)
    y = torch.cat(outputs) + D * x
    return (y * F.silu(z.to(wide))).to(u.dtype), torch.stack(finals)


def selective_scan_update(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, states: Tensor,
    slots: Tensor,
) -> Tensor:  # fmt: skip
    wide = torch.promote_types(u.dtype, torch.float32)
    x = u.to(wide)
    step = F.softplus(dt.to(wide) + dt_bias)
    h = torch.exp(step[:, :, None] * A) * states[slots].to(wide) + (step * x)[:, :, None] * B.to(wide)[:, None, :]
    states[slots] = h.to(states.dtype)
    y = torch.einsum("sdn,sn->sd", h, C.to(wide)) + D * x
    return (y * F.silu(z.to(wide))).to(u.dtype)
