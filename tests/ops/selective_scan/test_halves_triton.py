"""Sequences cut in two for the backward: the gradient of the state between the halves, and on a Hopper GPU all
gradients.
"""

import os

import pytest
import torch
import torch.nn.functional as F

from plait.ops.dispatch import force
from plait.ops.selective_scan import IMPLEMENTATIONS, selective_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="test_interpreted.py runs this file"
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


@pytest.mark.parametrize("lengths", [[40], [33, 16, 1], [600], [64, 95]])
def test_the_gradient_of_the_state_between_halves(lengths: list[int]) -> None:
    from plait.ops.selective_scan.halves import halved

    tokens, d_inner = sum(lengths), 20
    dt, z, C = normal(tokens, d_inner), normal(tokens, d_inner, seed=1), normal(tokens, 16)
    dy, dfinal = normal(tokens, d_inner, seed=2), normal(len(lengths), d_inner, 16)
    A, bias = -normal(d_inner, 16).abs(), normal(d_inner) - 4
    bounds = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
    cut, ends = halved(dy, dfinal, dt, A, C, z, bias, bounds)
    assert cut[::2].tolist() == bounds.tolist()
    for i, length in enumerate(lengths):
        start, middle, end = cut[2 * i : 2 * i + 3].tolist()
        assert middle - start == min(length, -(-length // 32) * 16)
        state = torch.zeros(d_inner, 16, device=DEVICE, dtype=torch.float64, requires_grad=True)
        h, total = state, 0.0
        for t in range(middle, end):
            h = h * torch.exp(F.softplus(dt[t].double() + bias.double())[:, None] * A.double())
            total = total + ((h * C[t].double()).sum(1) * dy[t].double() * F.silu(z[t].double())).sum()
        (total + (h * dfinal[i].double()).sum()).backward()
        torch.testing.assert_close(ends[2 * i].double(), state.grad, rtol=1e-4, atol=1e-4)
        assert torch.equal(ends[2 * i + 1], dfinal[i])


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[1024], [4096 + 9], [1500, 1501]])
def test_halves_have_the_gradients_of_the_whole(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    probe = torch.empty(0, device=DEVICE, dtype=torch.bfloat16)
    if (why := IMPLEMENTATIONS["gluon"].why_not(probe)) is not None:
        pytest.skip(f"the kernel that cuts {why}")
    from plait.ops.selective_scan import halves

    tokens, d_inner = sum(lengths), 192
    given = {
        "u": normal(tokens, d_inner), "dt": normal(tokens, d_inner, seed=1), "A": -normal(d_inner, 16).abs(),
        "B": normal(tokens, 16), "C": normal(tokens, 16, seed=1), "D": normal(d_inner),
        "z": normal(tokens, d_inner, seed=2), "dt_bias": normal(d_inner) - 4,
        "initial_state": normal(len(lengths), d_inner, 16),
    }  # fmt: skip
    bounds = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
    cotangents = normal(tokens, d_inner, seed=3), normal(len(lengths), d_inner, 16, seed=4)

    def gradients() -> list[torch.Tensor]:
        leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
        with force(selective_scan="gluon"):
            outputs = selective_scan(**leaves, cu_seqlens=bounds)
        return list(torch.autograd.grad(outputs, list(leaves.values()), cotangents))

    calls = []
    halved = halves.halved
    monkeypatch.setattr(halves, "halved", lambda *args: calls.append(1) or halved(*args))
    cut = gradients()
    assert calls
    monkeypatch.setattr(halves, "pay", lambda *_: False)
    for name, ours, theirs in zip(given, cut, gradients(), strict=True):
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        assert error < 2e-5, name
