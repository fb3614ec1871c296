"""Inputs of RMSNorm and its fused forms: odd sizes for tests, the shapes of real models for benchmarks."""

from collections.abc import Callable

import torch
from torch import Tensor

from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.rms_norm import (
    ADD_IMPLEMENTATIONS,
    IMPLEMENTATIONS,
    SECTIONS_IMPLEMENTATIONS,
    add_rms_norm,
    rms_norm,
    rms_norm_sections,
)

EPS = 1e-6
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3}
GRAD_TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def _one(x: Tensor, weight: Tensor) -> tuple[Tensor]:
    return (rms_norm(x, weight, EPS),)


def _after_add(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return add_rms_norm(x, residual, weight, EPS)


def _three(x: Tensor, weight0: Tensor, weight1: Tensor, weight2: Tensor) -> tuple[Tensor, ...]:
    return rms_norm_sections(x, (weight0, weight1, weight2), EPS)


def _case(name: str, shape: tuple[int, ...], make: Callable[..., Inputs], passes: int, *, large: bool = False) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        dtype = torch.float32 if large else torch.float64
        return make(lambda *size: torch.randn(*size, generator=generator, dtype=dtype), shape)

    def cost(inputs: Inputs) -> Cost:
        return Cost(bytes=passes * inputs["x"].numel() * inputs["x"].element_size(), flops=4 * inputs["x"].numel())

    names = tuple(make(torch.zeros, shape))
    return Case(name, inputs, () if large else names, large, cost)


def _plain(normal: Callable[..., Tensor], shape: tuple[int, ...]) -> Inputs:
    return {"x": 3 * normal(*shape), "weight": 1 + 0.3 * normal(shape[-1])}


def _added(normal: Callable[..., Tensor], shape: tuple[int, ...]) -> Inputs:
    return {"x": normal(*shape), "residual": 3 * normal(*shape), "weight": 1 + 0.3 * normal(shape[-1])}


def _sections(normal: Callable[..., Tensor], shape: tuple[int, ...]) -> Inputs:
    rows, *widths = shape
    weights = {f"weight{i}": 1 + 0.3 * normal(width) for i, width in enumerate(widths)}
    return {"x": 0.2 * normal(rows, sum(widths)), **weights}


RMS_NORM = OpCases(
    op="rms_norm",
    call=_one,
    implementations=IMPLEMENTATIONS,
    cases=(
        _case("one row", (1, 7), _plain, 2),
        _case("two dims before", (3, 5, 63), _plain, 2),
        _case("wider than a program of rows", (5, 1100), _plain, 2),
        _case("mini residual, 2K", (2048, 4096), _plain, 2, large=True),
        _case("large residual, 2K", (2048, 8192), _plain, 2, large=True),
    ),
    tolerance=TOLERANCE,
    grad_tolerance=GRAD_TOLERANCE,
)
ADD_RMS_NORM = OpCases(
    op="rms_norm",
    call=_after_add,
    implementations=ADD_IMPLEMENTATIONS,
    cases=(
        _case("added, odd", (21, 63), _added, 4),
        _case("added, wide", (3, 1100), _added, 4),
        _case("added, mini residual, 2K", (2048, 4096), _added, 4, large=True),
    ),
    tolerance=TOLERANCE,
    grad_tolerance=GRAD_TOLERANCE,
)
ADD_RMS_NORM_WIDE = OpCases(  # under autocast: the residual stream in fp32, and with it the sum
    op="rms_norm",
    call=_after_add,
    implementations=ADD_IMPLEMENTATIONS,
    cases=(_case("added to fp32, odd", (21, 63), _added, 4), _case("added to fp32, wide", (3, 1100), _added, 4)),
    tolerance=TOLERANCE | {torch.bfloat16: 5e-6, torch.float16: 5e-6},
    grad_tolerance=GRAD_TOLERANCE,
    keep=("residual", "weight"),
)
RMS_NORM_SECTIONS = OpCases(
    op="rms_norm",
    call=_three,
    implementations=SECTIONS_IMPLEMENTATIONS,
    cases=(
        _case("sections, odd", (19, 21, 3, 5), _sections, 2),
        _case("sections, more rows than a program takes", (131, 40, 16, 16), _sections, 2),
        _case("sections, mini, 2K", (2048, 256, 16, 16), _sections, 2, large=True),
    ),
    tolerance=TOLERANCE,
    grad_tolerance=GRAD_TOLERANCE,
)
