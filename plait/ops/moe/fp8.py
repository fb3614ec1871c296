"""SwiGLU experts with E4M3 weights and activations, for comparison: each token (and each h) rounded to fp8 under a
scale of its own, PyTorch's scaled products, fp32 sums.

Needs tensor cores for fp8 (compute capability 8.9 and later) to be worth it; PyTorch computes the same on the CPU. The
number of tokens of each expert is read on the host, so it is for prefill, outside of CUDA graphs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.ops.moe import reference

LARGEST = 448.0


def why_not(device: torch.device) -> str | None:
    """None where the products run."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return f"{torch.cuda.get_device_name(device)} has no fp8 products (compute capability 8.9 or later has)"
    return None if device.type in ("cuda", "cpu") else f"no fp8 products on {device}"


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [tokens, width] -> E4M3 of the same shape and fp32 scales [tokens, 1]."""
    scale = (x.float().abs().amax(1, keepdim=True) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (x.float() / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Rounded x [tokens, width] times the transpose of E4M3 weight [rows, width] with row scales [rows] -> bf16."""
    values, token_scale = rounded(x)
    return torch._scaled_mm(values, weight.t(), scale_a=token_scale, scale_b=scale[None], out_dtype=torch.bfloat16)


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor, down_scale: Tensor) -> Tensor:
    """The dense MLP: x [tokens, d_model] -> the same, in x's dtype."""
    gate, up = product(x, gate_up, gate_up_scale).chunk(2, dim=-1)
    return product(F.silu(gate) * up, down, down_scale).to(x.dtype)


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor,
    down_scale: Tensor,
) -> Tensor:
    """As `plait.ops.moe.moe`, for E4M3 rows."""
    tokens, top_k = expert_ids.shape
    chosen, order = expert_ids.flatten().sort(stable=True)
    counts = torch.bincount(chosen, minlength=gate_up.shape[0]).tolist()
    y = [
        swiglu(rows, gate_up[e], down[e], gate_up_scale[e], down_scale[e])
        for e, rows in enumerate(x[order // top_k].split(counts))
        if len(rows)
    ]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return reference.combine(torch.cat(y)[back].view(tokens, top_k, x.shape[1]), weights)
