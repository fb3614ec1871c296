"""Activations: odd sizes for tests, a layer's for benchmarks."""

import torch
from torch import Tensor

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.size import IMPLEMENTATIONS, size


def _call(x: Tensor) -> tuple[Tensor, ...]:
    return size(x)


def _case(name: str, *shape: int, large: bool = False) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        return {"x": 3 * torch.randn(shape, generator=generator, dtype=torch.float64)}

    def cost(inputs: Inputs) -> Cost:
        return Cost(bytes=inputs["x"].numel() * inputs["x"].element_size())

    return Case(name, inputs, (), large, cost)


SIZE = OpCases(
    op="size",
    call=_call,
    implementations=IMPLEMENTATIONS,
    cases=(
        _case("one number", 1),
        _case("odd", 63, 5),
        _case("more than a block", 3, 2, 1000),
        _case("a layer", 8192, 2, 2048, large=True),
    ),
    tolerance={torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6},
)
