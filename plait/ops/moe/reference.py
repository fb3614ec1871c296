"""Routing; and experts, one at a time over the tokens that chose them, with weights made full precision first."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.ops.moe import packed


def route(router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(router_logits.dtype, torch.float32)
    weights, expert_ids = router_logits.to(wide).softmax(-1).topk(top_k, dim=-1)
    return weights, expert_ids


def dequantize(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rows of int8 times their fp32 scales, in `dtype`; unquantized weights as they are."""
    return (
        weight if scale is None else (weight.to(torch.promote_types(dtype, torch.float32)) * scale[..., None]).to(dtype)
    )


def expert_outputs(
    x: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> Tensor:
    tokens, top_k = expert_ids.shape
    out = x.new_zeros(tokens, top_k, x.shape[1])
    for expert in range(gate_up.shape[0]):
        token, choice = (expert_ids == expert).nonzero(as_tuple=True)
        scales = (
            (None, None) if gate_up_scale is None or down_scale is None else (gate_up_scale[expert], down_scale[expert])
        )
        gate, up = F.linear(x[token], dequantize(gate_up[expert], scales[0], x.dtype)).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, dequantize(down[expert], scales[1], x.dtype))
        out = out.index_put((token, choice), y)
    return out


def combine(outputs: Tensor, weights: Tensor) -> Tensor:
    return (outputs * weights.to(outputs.dtype)[..., None]).sum(1)


def combine_sized(outputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(outputs.dtype, torch.float32)
    squares = torch.linalg.vector_norm(outputs, dtype=wide).square()
    return combine(outputs, weights), squares, torch.linalg.vector_norm(outputs.detach(), torch.inf).to(wide)


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> Tensor:
    return combine(expert_outputs(x, expert_ids, gate_up, down, gate_up_scale, down_scale), weights)


def packed_moe(
    x: Tensor,
    weights: Tensor | None,
    expert_ids: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor,
    down_scale: Tensor,
    experts: tuple[int, int] | None = None,
) -> Tensor:
    if expert_ids is None or weights is None:  # the dense MLP
        expert_ids = torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)
        weights = torch.ones(x.shape[0], 1, dtype=x.dtype, device=x.device)
    rows = packed.unpack(gate_up, gated=True), packed.unpack(down, gated=False)
    if experts is not None:
        return share(expert_outputs)(x, weights, expert_ids, *rows, gate_up_scale, down_scale, experts)
    return moe(x, weights, expert_ids, *rows, gate_up_scale, down_scale)


def share(outputs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The weighted sum over those choices whose expert lies here, by an `expert_outputs` that knows no others."""

    def run(
        x: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None,
        down_scale: Tensor | None, experts: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        here = (expert_ids >= experts[0]) & (expert_ids < experts[0] + down.shape[0])
        token, choice = here.nonzero(as_tuple=True)
        out = x.new_zeros(x.shape)
        if len(token) == 0:
            return out
        own = expert_ids[token, choice, None] - experts[0]
        y = outputs(x[token], own, gate_up, down, gate_up_scale, down_scale)[:, 0]
        return out.index_add(0, token, y * weights[token, choice, None].to(y.dtype))

    return run
