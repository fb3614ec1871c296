"""Products of many tokens, cut into blocks of rows."""

import pytest
import torch

from plait import native
from plait.ops.dispatch import force
from plait.ops.linear import blocked, linear
from plait.ops.moe import moe, swiglu

if native.why_not(torch.empty(0)) is not None:
    pytest.skip("needs a C compiler", allow_module_level=True)


def rows_of_int8(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(-127, 128, shape, dtype=torch.int8), (torch.rand(shape[:-1]) + 0.5) * shape[-1] ** -0.5 / 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 100_000, 1 << 24])  # bytes: blocks of the least rows, of some, and all at once
def test_the_cut_into_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int) -> None:
    monkeypatch.setattr(blocked, "BLOCK_BYTES", block)
    torch.manual_seed(0)
    x = torch.randn(33, 257).to(dtype)
    weight, scale = rows_of_int8(83, 257)
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T
    error = (blocked.linear(x, weight, scale).double() - exact).abs().max() / exact.abs().max()
    assert error < (2e-6 if dtype == torch.float32 else 8e-3)
    rough = (blocked.linear(x, weight, scale, round_activations=True).double() - exact).abs().max() / exact.abs().max()
    assert rough < 3e-2


@pytest.mark.parametrize("tokens", [3, 40])
def test_int8_activations_reach_experts_and_mlps(tokens: int) -> None:
    torch.manual_seed(1)
    x, (up, up_scale), (down, down_scale) = (
        torch.randn(tokens, 128),
        rows_of_int8(4, 192, 128),
        rows_of_int8(4, 128, 96),
    )
    ids, weights = torch.randint(0, 4, (tokens, 2)), torch.rand(tokens, 2)
    scales = {"gate_up_scale": up_scale, "down_scale": down_scale}
    one = {name: scale[0] for name, scale in scales.items()}
    for run in (
        lambda: moe(x, weights, ids, up, down, **scales),
        lambda: swiglu(x, up[0], down[0], **one),
    ):
        exact = run()
        with force(moe="int8_activations"):
            rough = run()
        assert 1e-4 < (rough - exact).abs().max() / exact.abs().max() < 5e-2
        with force(moe="reference"):
            torch.testing.assert_close(exact, run(), rtol=2e-5, atol=2e-5 * float(exact.abs().max()))


def test_a_broken_activation_is_not_hidden() -> None:
    x = torch.randn(20, 64)
    x[3, 5] = float("inf")
    weight, scale = rows_of_int8(32, 64)
    with force(linear="int8_activations"):
        y = linear(x, weight, scale=scale)
    assert y[3].isnan().all()
    assert y[[0, 1, 2, 4]].isfinite().all()
