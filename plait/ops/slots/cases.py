"""Cases of `take` and `put`: both together, as a mixer uses them around its scan. Nothing is computed, so
results are equal."""

import torch
from torch import Tensor

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.slots import TAKE_IMPLEMENTATIONS, put, take


def _case(name: str, n_slots: int, inner: tuple[int, ...], slots: list[int], large: bool = False) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        return {
            "pool": torch.randn(n_slots, *inner, generator=generator, dtype=torch.float64),
            "slots": torch.tensor(slots),
            "fresh": torch.arange(len(slots)) % 2 == 1,
        }

    def cost(inputs: Inputs) -> Cost:
        pool = inputs["pool"]
        return Cost(bytes=4 * len(slots) * pool[0].nbytes + 2 * pool.nbytes)  # both ways, and the copy of the pool

    return Case(name, inputs, (), large, cost)


def _there_and_back(pool: Tensor, slots: Tensor, fresh: Tensor) -> tuple[Tensor, ...]:
    pool = pool.clone()
    rows = take(pool, slots, fresh)
    put(pool, slots.flip(0), rows)
    return rows, pool


SLOTS = OpCases(
    op="slots",
    call=_there_and_back,
    implementations=TAKE_IMPLEMENTATIONS,
    cases=(
        _case("columns", 5, (70, 3), [3, 0, 4]),
        _case("states", 4, (33, 16), [2, 1]),
        _case("states of heads", 4, (3, 20, 16), [2, 1, 3]),
        _case("mini states, 4 of 64", 64, (8192, 16), [3, 17, 40, 63], large=True),
    ),
    tolerance={torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 0.0},
)
