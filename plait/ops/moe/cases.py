"""Inputs of the experts and of their router: odd sizes for tests, the shapes of real models for benchmarks."""

import torch
from torch import Tensor

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.moe import (
    COMBINE_IMPLEMENTATIONS,
    IMPLEMENTATIONS,
    MOE_IMPLEMENTATIONS,
    PACKED_IMPLEMENTATIONS,
    ROUTE_IMPLEMENTATIONS,
    combine,
    combine_sized,
    expert_outputs,
    moe,
    packed,
    route,
)

# Of the largest result. Activations are rounded between the two products, so bf16 and fp16 err by a few of their steps.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}
GRAD_TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def _case(
    name: str,
    tokens: int,
    n_experts: int,
    top_k: int,
    d_model: int,
    d_ff: int,
    *,
    int8: bool = False,
    pack: bool = False,
    weighted: bool = True,
    skewed: bool = False,
    large: bool = False,
) -> Case:
    """skewed: every token chooses the last experts, and the others get none."""

    def inputs(generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float32 if large else torch.float64)

        def weight(rows: int, width: int) -> Tensor:
            if int8:
                return torch.randint(-127, 128, (n_experts, rows, width), generator=generator, dtype=torch.int8)
            return normal(n_experts, rows, width) * width**-0.5

        def scale(rows: int, width: int) -> Tensor:
            return (normal(n_experts, rows).abs() + 0.5) * (width**-0.5 / 100)

        logits = normal(tokens, n_experts) + (10.0 * torch.arange(n_experts) if skewed else 0.0)
        weights, expert_ids = logits.softmax(-1).topk(top_k, dim=-1)
        made: Inputs = {"x": normal(tokens, d_model), "expert_ids": expert_ids}
        if weighted:
            made["weights"] = weights
        made["gate_up"], made["down"] = weight(2 * d_ff, d_model), weight(d_model, d_ff)
        if int8:
            made["gate_up_scale"], made["down_scale"] = scale(2 * d_ff, d_model), scale(d_model, d_ff)
        if pack:
            made["gate_up"] = packed.pack(made["gate_up"], gated=True)
            made["down"] = packed.pack(made["down"], gated=False)
        return made

    def cost(inputs: Inputs) -> Cost:
        per_expert = 3 * d_model * d_ff * inputs["gate_up"].element_size()
        activations = 2 * tokens * d_model * inputs["x"].element_size()
        experts_hit = inputs["expert_ids"].unique().numel()
        return Cost(bytes=experts_hit * per_expert + activations, flops=6 * tokens * top_k * d_model * d_ff)

    grads = () if large or int8 or weighted else ("x", "gate_up", "down")
    return Case(name, inputs, grads, large, cost)


SMALL = (
    ("one token", 1, 5, 2, 17, 9),
    ("one expert", 7, 1, 1, 24, 40),
    ("odd", 33, 5, 2, 40, 24),
    ("odd widths", 19, 3, 2, 33, 21),
    ("three of seven", 63, 7, 3, 16, 8),
    ("many tokens", 131, 4, 2, 24, 16),
)
MINI, SHARD = (16, 2, 4096, 14336), (16, 2, 8192, 3072)  # Jamba-1.5-Mini; one of 8 tensor-parallel shards of Large

EXPERT_OUTPUTS = OpCases(
    op="moe",
    call=lambda **inputs: (expert_outputs(**inputs),),
    implementations=IMPLEMENTATIONS,
    cases=(
        *(_case(name, *sizes, weighted=False) for name, *sizes in SMALL),
        _case("experts without tokens", 21, 6, 2, 24, 16, weighted=False, skewed=True),
        _case("int8", 33, 5, 2, 40, 24, int8=True, weighted=False),
        _case("mini layer, 8K", 8192, *MINI, weighted=False, large=True),
    ),
    tolerance=TOLERANCE,
    grad_tolerance=GRAD_TOLERANCE,
    keep=("gate_up_scale", "down_scale"),
)

FUSED = OpCases(
    op="moe",
    call=lambda **inputs: (moe(**inputs),),
    implementations=MOE_IMPLEMENTATIONS,
    cases=(
        *(_case(name, *sizes) for name, *sizes in SMALL),
        *(_case(f"{name}, int8", *sizes, int8=True) for name, *sizes in SMALL),
        _case("experts without tokens", 21, 6, 2, 24, 16, skewed=True),
        *(_case(f"mini layer, {n}", n, *MINI, large=True) for n in (1, 8, 64, 512, 2048, 8192)),
    ),
    tolerance=TOLERANCE,
    keep=("weights", "gate_up_scale", "down_scale"),
)

PACKED = OpCases(
    op="moe",
    call=lambda **inputs: (moe(**inputs),),
    implementations=PACKED_IMPLEMENTATIONS,
    cases=(  # rows in multiples of 256 and widths in multiples of 128 are the layout's; tokens are odd
        _case("one token, packed", 1, 3, 2, 256, 128, int8=True, pack=True),
        _case("odd, packed", 37, 5, 2, 256, 256, int8=True, pack=True),
        _case("experts without tokens, packed", 21, 6, 2, 256, 128, int8=True, pack=True, skewed=True),
        _case("many tokens, packed", 517, 3, 2, 256, 384, int8=True, pack=True),
        *(_case(f"mini layer, {n}, packed", n, *MINI, int8=True, pack=True, large=True) for n in (1, 8, 64, 128, 512)),
        *(_case(f"mini layer, {n}, packed", n, *MINI, int8=True, pack=True, large=True) for n in (2048, 8192, 32768)),
        *(_case(f"large shard, {n}, packed", n, *SHARD, int8=True, pack=True, large=True) for n in (1, 64, 512, 4096)),
    ),
    tolerance=TOLERANCE,
    keep=("weights", "gate_up_scale", "down_scale"),
)


def _route_case(name: str, tokens: int, n_experts: int, top_k: int, *, large: bool = False) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        logits = torch.randn(tokens, n_experts, generator=generator, dtype=torch.float64)
        return {"router_logits": logits.bfloat16().double() * 3, "top_k": top_k}

    return Case(name, inputs, large=large)


def _route(router_logits: Tensor, top_k: int) -> tuple[Tensor, ...]:
    """The chosen experts as one number a token, with the weights: equal logits may be ranked either way."""
    weights, expert_ids = route(router_logits, top_k)
    chosen = router_logits.gather(1, expert_ids)
    return weights, chosen


ROUTE = OpCases(
    op="moe_route",
    call=_route,
    implementations=ROUTE_IMPLEMENTATIONS,
    cases=(
        _route_case("one token", 1, 3, 2),
        _route_case("one expert", 5, 1, 1),
        _route_case("odd", 33, 7, 3),
        _route_case("sixteen", 1025, 16, 2),
        _route_case("prefill", 8192, 16, 2, large=True),
    ),
    tolerance={torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6},
)


def _combine_case(name: str, tokens: int, top_k: int, width: int, *, large: bool = False) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        outputs = torch.randn(tokens, top_k, width, generator=generator, dtype=torch.float64)
        return {"outputs": outputs, "weights": torch.rand(tokens, top_k, generator=generator, dtype=torch.float64)}

    def cost(inputs: Inputs) -> Cost:
        outputs = inputs["outputs"]
        return Cost(bytes=outputs.element_size() * outputs.numel() * (1 + 1 / outputs.shape[1]))

    return Case(name, inputs, ("outputs", "weights"), large, cost)


def _combine(outputs: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    out, squares, max_abs = combine_sized(outputs, weights)
    return combine(outputs, weights), out, squares / outputs.numel(), max_abs.detach() + 0 * squares


COMBINE = OpCases(
    op="moe_combine",
    call=_combine,
    implementations=COMBINE_IMPLEMENTATIONS,  # and SIZED_IMPLEMENTATIONS, which have the same names
    cases=(
        _combine_case("one token", 1, 1, 7),
        _combine_case("odd", 33, 3, 100),
        _combine_case("two of each", 65, 2, 512),
        _combine_case("a layer", 8192, 2, 2048, large=True),
    ),
    tolerance=TOLERANCE,
    grad_tolerance=GRAD_TOLERANCE,
    keep=("weights",),
)
