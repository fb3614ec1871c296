"""An operator is seen by those who look, and is its body to everybody else; values and gradients are the same."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from plait.ops.operator import operator

CALLS: list[str] = []


@operator("plait::test_scaled_square")
def scaled_square(x: Tensor, scale: Tensor, times: float) -> Tensor:
    CALLS.append("body")
    return x.square() * scale * times


@scaled_square.register_fake
def _(x: Tensor, scale: Tensor, times: float) -> Tensor:
    return torch.empty_like(x)


def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, ctx.times = inputs
    ctx.save_for_backward(x, scale)


def differentiate(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    x, scale = ctx.saved_tensors
    assert dy is not None
    return 2 * x * scale * ctx.times * dy, x.square() * ctx.times * dy, None


scaled_square.register_autograd(differentiate, setup_context=remember)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, scale = (torch.randn(7, generator=generator) for _ in range(2))
    return x.requires_grad_(), scale.requires_grad_()


def test_gradients_are_the_formulas_whoever_calls() -> None:
    x, scale = drawn()
    found = []
    for run in (scaled_square, torch.compile(scaled_square.__call__, fullgraph=True, backend="aot_eager")):
        y = run(x, scale, 3.0)
        found.append((y, *torch.autograd.grad(y.sum(), (x, scale))))
    expected = (3 * x**2 * scale, 6 * x * scale, 3 * x**2)
    for results in found:
        for got, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_a_dispatch_mode_sees_one_operator_and_without_one_there_is_none() -> None:
    x, scale = drawn()
    with Seen() as seen:
        scaled_square(x, scale, 2.0)
    assert "plait.test_scaled_square.default" in seen.names
    assert type(scaled_square(x, scale, 2.0).grad_fn).__name__ == "DirectBackward"
    with torch.no_grad():
        assert scaled_square(x, scale, 2.0).grad_fn is None


def test_fake_tensors_run_no_body() -> None:
    CALLS.clear()
    with FakeTensorMode():
        assert scaled_square(torch.empty(3), torch.empty(3), 1.0).shape == (3,)
    assert not CALLS


def test_a_second_derivative_is_refused() -> None:
    x, scale = drawn()
    dy = torch.ones(7, requires_grad=True)
    (dx,) = torch.autograd.grad(scaled_square(x, scale, 1.0), x, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
