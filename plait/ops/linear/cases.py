"""Inputs of x W^T: odd sizes for tests, one and few tokens of real models for benchmarks."""

import torch
from torch import Tensor

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.linear import IMPLEMENTATIONS, linear


def _case(
    name: str, tokens: int, width: int, n_out: int, *, int8: bool = False, outlier: bool = False, large: bool = False
) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float32 if large else torch.float64)

        made: Inputs = {"x": normal(tokens, width)}
        if outlier:
            made["x"][:, 0] *= 100  # one channel far above the rest, as trained models have
        if int8:
            made["weight"] = torch.randint(-127, 128, (n_out, width), generator=generator, dtype=torch.int8)
            made["scale"] = (normal(n_out).abs() + 0.5) * (width**-0.5 / 100)
        else:
            made["weight"] = normal(n_out, width) * width**-0.5
        return made

    def cost(inputs: Inputs) -> Cost:
        weight, x = inputs["weight"], inputs["x"]
        moved = weight.numel() * weight.element_size() + tokens * (width + n_out) * x.element_size()
        return Cost(bytes=moved, flops=2 * tokens * width * n_out)

    return Case(name, inputs, () if large or int8 else ("x", "weight"), large, cost)


SMALL = (
    ("one by one", 1, 1, 1),
    ("one token", 1, 33, 17),
    ("one token, wide", 1, 1000, 65),
    ("few tokens", 3, 129, 40),
    ("eight tokens", 8, 64, 16),
    ("many tokens", 63, 40, 24),
)
LARGE = (
    ("tiny mlp", 1, 512, 4096),
    ("1b mlp", 1, 2560, 16384),
    ("mini mlp", 1, 4096, 28672),
    ("mini head", 1, 4096, 65536),
    ("mini mlp, 4 tokens", 4, 4096, 28672),
)

LINEAR = OpCases(
    op="linear",
    call=lambda **inputs: (linear(**inputs),),
    implementations=IMPLEMENTATIONS,
    cases=(
        *(_case(name, *sizes) for name, *sizes in SMALL),
        *(_case(f"{name}, int8", *sizes, int8=True) for name, *sizes in SMALL),
        _case("outlier, int8", 2, 512, 48, int8=True, outlier=True),
        *(_case(name, *sizes, large=True) for name, *sizes in LARGE),
        *(_case(f"{name}, int8", *sizes, int8=True, large=True) for name, *sizes in LARGE),
    ),
    tolerance={torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    grad_tolerance={torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    keep=("scale",),
)
