"""Inputs of the causal convolution: odd sizes for tests, the shapes of real models for benchmarks."""

import torch
import torch.nn.functional as F

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.causal_conv1d import IMPLEMENTATIONS, causal_conv1d


def _case(
    name: str, lengths: list[int], channels: int, *, d_conv: int = 4, bias: bool = True, carry: bool = False,
    large: bool = False
) -> Case:  # fmt: skip
    def inputs(generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float32 if large else torch.float64)

        made: Inputs = {
            "x": normal(sum(lengths), channels),
            "weight": normal(channels, d_conv) / d_conv**0.5,
            "bias": normal(channels) if bias else None,
            "cu_seqlens": F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32),
        }
        if carry:
            made["initial_columns"] = normal(len(lengths), channels, d_conv - 1)
        return made

    def cost(inputs: Inputs) -> Cost:
        elements = inputs["x"].numel()
        return Cost(bytes=2 * elements * inputs["x"].element_size(), flops=2 * d_conv * elements, exps=elements)

    grads = () if large else ("x", "weight", *(("bias",) if bias else ()), *(("initial_columns",) if carry else ()))
    return Case(name, inputs, grads, large, cost)


CAUSAL_CONV1D = OpCases(
    op="causal_conv1d",
    call=causal_conv1d,
    implementations=IMPLEMENTATIONS,
    cases=(
        _case("one token", [1], 5),
        _case("one token, carried", [1], 5, carry=True),
        _case("no bias, two taps", [19], 3, d_conv=2, bias=False, carry=True),
        _case("odd", [63], 24),
        _case("packed", [1, 2, 33, 3, 64], 40),
        _case("packed, carried", [2, 1, 35, 3, 70], 40, carry=True),
        _case("empty sequences, carried", [0, 3, 0, 0, 1, 0], 5, carry=True),
        _case("wider than a program", [37, 20], 300, carry=True),
        _case("mini layer, 2K", [2048], 8192, carry=True, large=True),
        _case("mini layer, 16K", [16384], 8192, carry=True, large=True),
        _case("mini layer, 8 x 2K", [2048] * 8, 8192, carry=True, large=True),
        _case("large layer, 2K", [2048], 16384, carry=True, large=True),
    ),
    tolerance={torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    grad_tolerance={torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3},
)
