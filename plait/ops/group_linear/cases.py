"""Inputs of products with int4 and with groups of columns: odd sizes for tests, an expert of Mini for benchmarks."""

import torch
from torch import Tensor

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.group_linear import IMPLEMENTATIONS, WIDENING, group_linear, widened


def _case(
    name: str,
    rows: int,
    width: int,
    n_out: int,
    group: int | None,
    *,
    int4: bool,
    experts: int = 0,
    large: bool = False,
) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        stack = [experts] if experts else []
        dtype = torch.float32 if large else torch.float64
        if int4:
            words = torch.randint(-(2**31), 2**31, (*stack, n_out, width // 8), generator=generator)
            values = words.to(torch.int32)
        else:
            values = torch.randint(-127, 128, (*stack, n_out, width), generator=generator, dtype=torch.int8)
        groups = [] if group is None else [width // group]
        scale = torch.rand(*stack, n_out, *groups, generator=generator) + 0.5
        made: Inputs = {"x": torch.randn(rows, width, generator=generator, dtype=dtype) * width**-0.5}
        made |= {"values": values, "scale": scale / (8 if int4 else 127)}
        if experts:
            made["expert_ids"] = torch.randint(0, experts, (rows,), generator=generator)
        return made

    def cost(inputs: Inputs) -> Cost:
        weights = sum(t.numel() * t.element_size() for t in (inputs["values"], inputs["scale"])) // max(experts, 1)
        n_read = min(rows, experts) if experts else 1
        return Cost(bytes=n_read * weights + 2 * rows * (width + n_out), flops=2 * rows * width * n_out)

    return Case(name, inputs, (), large, cost)


def _weights(case: Case) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        made = case.inputs(generator)
        return {"like": made["x"], "values": made["values"], "scale": made["scale"]}

    return Case(case.name, inputs, (), case.large)


def _widened(like: Tensor, values: Tensor, scale: Tensor) -> tuple[Tensor]:
    return (widened(values, scale, like.dtype),)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
SMALL = (
    _case("int4, one row, one group", 1, 8, 1, 8, int4=True),
    _case("int4, odd", 3, 72, 37, 24, int4=True),
    _case("int4, a scale per row", 2, 40, 19, None, int4=True),
    _case("int4, wider than a program", 2, 2056, 9, 8, int4=True),
    _case("int4, experts", 5, 48, 21, 16, int4=True, experts=3),
    _case("int4, more rows than one by one", 35, 32, 12, 16, int4=True),
    _case("int4, experts, more rows than one by one", 35, 32, 12, 16, int4=True, experts=4),
    _case("int8, groups", 3, 63, 37, 21, int4=False),
    _case("int8, experts, wide", 2, 1030, 5, 10, int4=False, experts=2),
)
GROUP_LINEAR = OpCases(
    op="group_linear",
    call=lambda **inputs: (group_linear(**inputs),),
    implementations=IMPLEMENTATIONS,
    cases=(
        *SMALL,
        _case("mini experts, gate and up, int4", 2, 4096, 28672, 128, int4=True, experts=16, large=True),
        _case("mini experts, down, int4", 2, 14336, 4096, 128, int4=True, experts=16, large=True),
        _case("mini mlp, int4", 1, 4096, 28672, 128, int4=True, large=True),
        _case("mini mlp, int8 in groups", 1, 4096, 28672, 128, int4=False, large=True),
    ),
    tolerance=TOLERANCE,
    keep=("scale",),
)
WIDENED = OpCases(
    op="group_linear",
    call=_widened,
    implementations=WIDENING,
    cases=tuple(_weights(case) for case in SMALL),
    tolerance=TOLERANCE,
    keep=("scale",),
)
