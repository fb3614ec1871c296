"""State-space duality (Mamba-2), one token at a time."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, cu_seqlens: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(x.dtype, torch.float32)
    heads_per_group = x.shape[1] // B.shape[1]
    B, C = (t.to(wide).repeat_interleave(heads_per_group, dim=1) for t in (B, C))  # [tokens, n_ssm_heads, d_state]
    delta = F.softplus(dt.to(wide) + dt_bias)
    decay = torch.exp(delta * A)
    outputs, finals = [x[:0].to(wide)], []
    bounds = cu_seqlens.tolist()
    for i, (start, stop) in enumerate(pairwise(bounds)):
        h = x.new_zeros(*x.shape[1:], B.shape[-1], dtype=wide) if initial_state is None else initial_state[i].to(wide)
        for t in range(start, stop):
            h = decay[t, :, None, None] * h + (delta[t, :, None] * x[t])[:, :, None] * B[t, :, None, :]
            outputs.append(torch.einsum("hpn,hn->hp", h, C[t])[None])
        finals.append(h)
    return (torch.cat(outputs) + D[:, None] * x).to(x.dtype), torch.stack(finals)
