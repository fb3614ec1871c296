"""Inputs of the selective scan: odd sizes for tests, the shapes of real models for benchmarks."""

import torch
import torch.nn.functional as F

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.selective_scan import IMPLEMENTATIONS, selective_scan

GRADS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")


def _case(
    name: str, lengths: list[int], d_inner: int, d_state: int, *, carry: bool = False, large: bool = False
) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        tokens = sum(lengths)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float32 if large else torch.float64)

        made: Inputs = {
            "u": normal(tokens, d_inner),
            "dt": normal(tokens, d_inner) * 0.5,
            "A": -torch.arange(1, d_state + 1, dtype=torch.float64).repeat(d_inner, 1)
            * (1 + 0.1 * normal(d_inner, d_state)).abs(),
            "B": normal(tokens, d_state),
            "C": normal(tokens, d_state),
            "D": normal(d_inner),
            "z": normal(tokens, d_inner),
            "dt_bias": normal(d_inner) - 4.0,  # steps from about 1e-3 to 1e-1, as Mamba initialises them
            "cu_seqlens": F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32),
        }
        if carry:
            made["initial_state"] = normal(len(lengths), d_inner, d_state)
        return made

    def cost(inputs: Inputs) -> Cost:
        tokens = inputs["u"].shape[0]
        per_token = (4 * d_inner + 2 * d_state) * inputs["u"].element_size()  # u, dt, z in, y out; B, C in
        state_bytes = (2 if carry else 1) * len(lengths) * d_inner * d_state * 4
        return Cost(
            bytes=tokens * per_token + state_bytes,
            flops=6 * tokens * d_inner * d_state,
            exps=tokens * d_inner * d_state,
        )

    grads = () if large else GRADS + (("initial_state",) if carry else ())
    return Case(name, inputs, grads, large, cost)


SELECTIVE_SCAN = OpCases(
    op="selective_scan",
    call=selective_scan,
    implementations=IMPLEMENTATIONS,
    cases=(
        _case("one token", [1], 5, 3),
        _case("one channel", [17], 1, 1),
        _case("odd", [63], 24, 16),
        _case("odd with a state", [63], 24, 16, carry=True),
        _case("packed", [1, 2, 33, 1, 40], 12, 16),
        _case("packed with states", [31, 1, 32, 5, 49], 12, 16, carry=True),
        _case("empty sequences", [0, 3, 0, 0, 33, 0], 12, 5),
        _case("empty sequences with states", [0, 3, 0, 0, 33, 0], 12, 5, carry=True),
        _case("several blocks wide", [17, 3], 70, 16, carry=True),
        _case("mini layer, 2K", [2048], 8192, 16, carry=True, large=True),
        _case("mini layer, 16K", [16384], 8192, 16, carry=True, large=True),
        _case("mini layer, 128K", [131072], 8192, 16, carry=True, large=True),
        _case("mini layer, 8 x 2K", [2048] * 8, 8192, 16, carry=True, large=True),
        _case("large layer, 2K", [2048], 16384, 16, carry=True, large=True),
        _case("tensor-parallel shard, 16K", [16384], 1024, 16, carry=True, large=True),
    ),
    tolerance={torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    grad_tolerance={torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3},
    keep=("A", "D", "dt_bias", "initial_state"),
)
