"""Rows of logits: odd sizes for tests, a chunk of the head's for benchmarks."""

import torch
from torch import Tensor

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.cross_entropy import IMPLEMENTATIONS, loss_and_gradient


def _call(logits: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, ...]:
    gradient = logits.clone()
    return (*loss_and_gradient(gradient, labels, z_weight=z_weight), gradient)


def _case(name: str, rows: int, vocab_size: int, z_weight: float, *, ignored: int = 0, large: bool = False) -> Case:
    """The first `ignored` rows have no label."""

    def inputs(generator: torch.Generator) -> Inputs:
        labels = torch.randint(0, vocab_size, (rows,), generator=generator)
        labels[:ignored] = -100
        logits = 4 * torch.randn(rows, vocab_size, generator=generator, dtype=torch.float64)
        return {"logits": logits, "labels": labels, "z_weight": z_weight}

    def cost(inputs: Inputs) -> Cost:
        logits = inputs["logits"]
        return Cost(bytes=2 * logits.numel() * logits.element_size(), exps=2 * logits.numel())

    return Case(name, inputs, (), large, cost)


CROSS_ENTROPY = OpCases(
    op="cross_entropy",
    call=_call,
    implementations=IMPLEMENTATIONS,
    cases=(
        _case("one row", 1, 7, 0.0),
        _case("rows without a label", 5, 63, 0.1, ignored=2),
        _case("wider than a block", 3, 5000, 0.01, ignored=1),
        _case("2048 tokens, 64K words", 2048, 65_536, 1e-4, large=True),
    ),
    tolerance={torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3},
)
