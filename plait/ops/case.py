"""What a test case of an op is. Tests, benchmarks and the table in the docs are generated from the lists in
`ops/<op>/cases.py`.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from plait.ops.dispatch import Implementation, anything, force

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What the hardware must do at the least: bytes moved once, floating-point operations, exponentials."""

    bytes: float = 0.0
    flops: float = 0.0
    exps: float = 0.0


@dataclass(frozen=True)
class Case:
    """One input of an op. Small cases (odd sizes) run in CI, large ones (real sizes) on a GPU and in benchmarks."""

    name: str
    inputs: Callable[[torch.Generator], Inputs]  # float64 CPU tensors; the caller casts them
    grads: tuple[str, ...] = ()  # the inputs to differentiate with respect to
    large: bool = False
    cost: Callable[[Inputs], Cost] | None = None  # of the cast inputs


@dataclass(frozen=True)
class OpCases:
    """An op's implementations, its cases, and how far a result may be from the fp64 reference.

    The error is max |result - reference| / max |reference| of each output (or gradient), by compute dtype; for a result
    that is zero but for the reference's own rounding (the query's gradient where there is one key), max |reference| is
    max |inputs| instead.
    `keep` names inputs that are never cast to the compute dtype: fp32 parameters stay fp32, as they do in the model.
    """

    op: str
    call: Callable[..., tuple[Tensor, ...]]
    implementations: Mapping[str, Implementation]
    cases: tuple[Case, ...]
    tolerance: Mapping[torch.dtype, float]
    grad_tolerance: Mapping[torch.dtype, float] = field(default_factory=dict)
    keep: tuple[str, ...] = ()

    def takes(self, implementation: str, case: Case, dtype: torch.dtype) -> bool:
        """Whether the implementation takes inputs of this case's types and sizes, which are not made for that."""
        why_not_these = self.implementations[implementation].why_not_these
        if why_not_these is anything:
            return True
        with FakeTensorMode():
            return why_not_these(self.cast(case.inputs(torch.Generator()), "cpu", dtype)) is None

    def cast(self, inputs: Inputs, device: torch.device | str, dtype: torch.dtype) -> Inputs:
        def one(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if not value.is_floating_point():
                return value.to(device)
            wanted = torch.promote_types(dtype, torch.float32) if name in self.keep else dtype
            return value.to(device, wanted)

        return {name: one(name, value) for name, value in inputs.items()}

    def run(self, implementation: str, inputs: Inputs, grads: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Outputs and, for a fixed random cotangent of every output, the gradients of the named inputs."""
        inputs = {
            k: v.detach().clone().requires_grad_(k in grads) if isinstance(v, Tensor) else v for k, v in inputs.items()
        }
        with force(**{self.op: implementation}), torch.set_grad_enabled(bool(grads)):
            outputs = self.call(**inputs)
        results = {f"out{i}": out.detach() for i, out in enumerate(outputs)}
        if grads:
            generator = torch.Generator().manual_seed(7)
            cotangents = [
                torch.randn(o.shape, generator=generator).bfloat16().to(o) for o in outputs
            ]  # exact in every dtype
            computed = torch.autograd.grad(outputs, [inputs[name] for name in grads], cotangents)
            results.update({f"grad_{name}": g for name, g in zip(grads, computed, strict=True)})
        return results

    def errors(
        self, implementation: str, case: Case, device: torch.device | str, dtype: torch.dtype
    ) -> dict[str, float]:
        """Error of each output and gradient against the reference in fp64 on the same (rounded) inputs; NaN counts as
        infinite.
        """
        inputs = self.cast(case.inputs(torch.Generator().manual_seed(0)), device, dtype)
        expected = self.run("reference", self.cast(self.cast(inputs, "cpu", dtype), "cpu", torch.float64), case.grads)
        got = self.run(implementation, inputs, case.grads)
        floats = [t for t in inputs.values() if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
        size = max(t.abs().max().item() for t in floats)
        return {name: error_of(got[name], expected[name], size) for name in expected}


def error_of(got: Tensor, expected: Tensor, inputs_size: float = 0.0) -> float:
    """max |got - expected| / max |expected|, expected in fp64 on the CPU; NaN counts as infinite.

    An expected result below 1e-12 of inputs_size, what it was computed from, is zero in exact arithmetic: then the
    difference is measured by inputs_size.
    """
    difference = (got.detach().double().cpu() - expected).abs().max().item()
    size = expected.abs().max().item()
    size = inputs_size if size < 1e-12 * inputs_size else size
    return math.inf if math.isnan(difference) else difference / max(size, 1e-30)


def all_op_cases() -> list[OpCases]:
    """Every list of cases there is, from every `plait/ops/<op>/cases.py`."""
    found: list[OpCases] = []
    for package in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if package.ispkg:
            module = importlib.import_module(f"plait.ops.{package.name}.cases")
            found += [value for value in vars(module).values() if isinstance(value, OpCases)]
    return found
