"""State-space duality (Mamba-2) as matrix products: attention-like inside a chunk, a recurrence between chunks
(Mamba-2, section 6).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, cu_seqlens: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(x.dtype, torch.float32)
    heads_per_group = x.shape[1] // B.shape[1]
    B, C = (t.to(wide).repeat_interleave(heads_per_group, dim=1) for t in (B, C))  # [tokens, n_ssm_heads, d_state]
    delta = F.softplus(dt.to(wide) + dt_bias)
    driven = delta[:, :, None] * x
    outputs, finals = [driven[:0]], []
    bounds = cu_seqlens.tolist()
    for i, (start, stop) in enumerate(pairwise(bounds)):
        h = x.new_zeros(*x.shape[1:], B.shape[-1], dtype=wide) if initial_state is None else initial_state[i].to(wide)
        if start < stop:
            y, h = _sequence(driven[start:stop], (delta * A)[start:stop], B[start:stop], C[start:stop], h)
            outputs.append(y)
        finals.append(h)
    return (torch.cat(outputs) + D[:, None] * x).to(x.dtype), torch.stack(finals)


def _sequence(driven: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence. driven [length, heads, d_head], log_decay [length, heads], B and C [length, heads, d_state]."""
    length = driven.shape[0]
    missing = -length % CHUNK

    def chunks(t: Tensor) -> Tensor:
        return F.pad(t, (0, 0) * (t.dim() - 1) + (0, missing)).unflatten(0, (-1, CHUNK)).movedim(2, 1)

    driven, B, C = chunks(driven), chunks(B), chunks(C)  # [n_chunks, heads, CHUNK, ...]
    cumulative = chunks(log_decay[..., None])[..., 0].cumsum(-1)  # [n_chunks, heads, CHUNK]
    between = cumulative[..., :, None] - cumulative[..., None, :]
    causal = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=driven.device).tril()
    weight = torch.exp(between.masked_fill(~causal, -torch.inf))
    y = ((C @ B.mT) * weight) @ driven

    to_end = torch.exp(cumulative[..., -1:] - cumulative)
    gained = (driven * to_end[..., None]).mT @ B  # [n_chunks, heads, d_head, d_state]
    kept = torch.exp(cumulative[..., -1])[..., None, None]
    incoming = []
    for kept_k, gained_k in zip(kept.unbind(0), gained.unbind(0), strict=True):
        incoming.append(h)
        h = kept_k * h + gained_k
    y = y + torch.exp(cumulative)[..., None] * (C @ torch.stack(incoming).mT)
    return y.movedim(1, 2).flatten(0, 1)[:length], h
