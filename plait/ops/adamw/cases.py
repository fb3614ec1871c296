"""Steps: the first and a later one, clipped, not taken; odd sizes for tests, an expert stack for benchmarks."""

from typing import Any

import torch
from torch import Tensor

from plait.ops.adamw import IMPLEMENTATIONS, Numbers, adamw_step
from plait.ops.case import Case, Cost, Inputs, OpCases


def _call(
    parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, lr: Tensor, steps: Tensor, factor: Tensor,
    weight_decay: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    state = [t.clone() for t in (parameter, mean, square)]
    numbers = Numbers(lr, steps, factor, weight_decay=weight_decay)
    adamw_step(state[:1], [gradient.clone()], state[1:2], state[2:], numbers)
    return tuple(state)


def _case(
    name: str, shape: tuple[int, ...], steps: int, factor: float, weight_decay: float, large: bool = False
) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        def draw(scale: float) -> Tensor:
            return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

        square = draw(0.01).square() if steps else torch.zeros(shape, dtype=torch.float64)
        scalars: dict[str, Any] = {
            "lr": torch.tensor(1e-2, dtype=torch.float64),
            "steps": torch.tensor(float(steps), dtype=torch.float64),
            "factor": torch.tensor(factor, dtype=torch.float64),
        }
        mean = draw(0.01) if steps else torch.zeros(shape, dtype=torch.float64)
        rest = {"mean": mean, "square": square, **scalars, "weight_decay": weight_decay}
        return {"parameter": draw(1.0), "gradient": draw(0.01), **rest}

    def cost(inputs: Inputs) -> Cost:
        parameter = inputs["parameter"]
        return Cost(bytes=7 * parameter.numel() * parameter.element_size())

    return Case(name, inputs, (), large, cost)


ADAMW = OpCases(
    op="adamw",
    call=_call,
    implementations=IMPLEMENTATIONS,
    cases=(
        _case("first step, one number", (1,), 0, 1.0, 0.1),
        _case("clipped", (63, 5), 3, 0.25, 0.1),
        _case("more than a block, no decay", (1000, 3), 1000, 1.0, 0.0),
        _case("not taken", (7,), 2, -1.0, 0.1),
        _case("an expert stack", (16, 2816, 2048), 10, 0.5, 0.1, large=True),
    ),
    tolerance={torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 8e-3},
    keep=("lr", "steps", "factor"),
)
