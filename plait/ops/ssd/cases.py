"""Inputs of the Mamba-2 scan: odd sizes for tests, the shapes of real models for benchmarks."""

import torch
import torch.nn.functional as F

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.ssd import IMPLEMENTATIONS, ssd

GRADS = ("x", "dt", "A", "B", "C", "D", "dt_bias")


def _case(
    name: str, lengths: list[int], n_heads: int, d_head: int, d_state: int, *, n_groups: int = 1, carry: bool = False,
    large: bool = False,
) -> Case:  # fmt: skip
    def inputs(generator: torch.Generator) -> Inputs:
        tokens = sum(lengths)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float32 if large else torch.float64)

        made: Inputs = {
            "x": normal(tokens, n_heads, d_head),
            "dt": normal(tokens, n_heads) * 0.5,
            "A": -(1 + 15 * torch.rand(n_heads, generator=generator, dtype=torch.float64)),
            "B": normal(tokens, n_groups, d_state),
            "C": normal(tokens, n_groups, d_state),
            "D": normal(n_heads),
            "dt_bias": normal(n_heads) - 4.0,  # steps from about 1e-3 to 1e-1, as Mamba-2 initialises them
            "cu_seqlens": F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32),
        }
        if carry:
            made["initial_state"] = normal(len(lengths), n_heads, d_head, d_state)
        return made

    def cost(inputs: Inputs) -> Cost:
        tokens, element = inputs["x"].shape[0], inputs["x"].element_size()
        per_token = (2 * n_heads * d_head + n_heads + 2 * n_groups * d_state) * element  # x, dt, B, C in, y out
        state_bytes = (2 if carry else 1) * len(lengths) * n_heads * d_head * d_state * 4
        return Cost(
            bytes=tokens * per_token + state_bytes,
            flops=6 * tokens * n_heads * d_head * d_state,  # the recurrence; matrix products over chunks do more
            exps=tokens * n_heads,
        )

    grads = () if large else GRADS + (("initial_state",) if carry else ())
    return Case(name, inputs, grads, large, cost)


SSD = OpCases(
    op="ssd",
    call=ssd,
    implementations=IMPLEMENTATIONS,
    cases=(
        _case("one token and a state", [1], 2, 3, 5, carry=True),
        _case("odd", [63], 3, 8, 16),
        _case("groups and a state", [63], 4, 8, 16, n_groups=2, carry=True),
        _case("packed", [1, 2, 65, 1, 64], 3, 8, 16),
        _case("packed with states", [31, 1, 130, 5], 4, 8, 16, n_groups=2, carry=True),
        _case("empty sequences with states", [0, 3, 0, 65, 0], 2, 5, 7, carry=True),
        _case("1.3B layer, 2K", [2048], 64, 64, 128, carry=True, large=True),
        _case("1.3B layer, 16K", [16384], 64, 64, 128, carry=True, large=True),
    ),
    tolerance={torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    # In fp32 the chunked form takes decays from differences of cumulative sums over 64 tokens: that costs a digit.
    grad_tolerance={torch.float64: 1e-11, torch.float32: 5e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3},
    keep=("A", "D", "dt_bias", "initial_state"),
)
