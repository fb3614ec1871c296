"""Experts over tokens sorted by expert: contiguous rows in, one product per expert that has any, rows back in token
order.

int8 weights meet the activations as they are (every int8 is exact in bf16 and fp32) and the row scale multiplies the
result: x @ (q * s)^T = (x @ q^T) * s. The full-precision weight is never stored.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.ops.moe import reference


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """x @ weight^T, times the fp32 scale of each output row when the weight is int8."""
    if scale is None:
        return F.linear(x, weight)
    if x.dtype == torch.float16:  # values up to 127, summed before they are scaled, would pass 65504; 1/128 is exact
        return (F.linear(x, weight.to(x.dtype).div_(128)) * (scale * 128)).to(x.dtype)
    return (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None, down_scale: Tensor | None) -> Tensor:
    gate, up = scaled_linear(x, gate_up, gate_up_scale).chunk(2, dim=-1)
    return scaled_linear(F.silu(gate) * up, down, down_scale)


def expert_outputs(
    x: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> Tensor:
    tokens, top_k = expert_ids.shape
    chosen, order = expert_ids.flatten().sort(stable=True)
    counts = torch.bincount(chosen, minlength=gate_up.shape[0]).tolist()
    rows = x[order // top_k].split(counts)
    y = [
        swiglu(
            rows[e],
            gate_up[e],
            down[e],
            None if gate_up_scale is None else gate_up_scale[e],
            None if down_scale is None else down_scale[e],
        )
        for e, count in enumerate(counts)
        if count
    ]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return torch.cat([x[:0], *y])[back].view(tokens, top_k, x.shape[1])


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> Tensor:
    return reference.combine(expert_outputs(x, expert_ids, gate_up, down, gate_up_scale, down_scale), weights)
