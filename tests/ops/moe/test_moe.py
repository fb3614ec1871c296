import pytest
import torch

from plait.ops.moe import combine, expert_outputs, moe, packed, route, swiglu


@pytest.fixture
def layer() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def int8(*shape: int) -> torch.Tensor:
        return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)

    def scale(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) / 1000

    return {
        "gate_up": int8(3, 256, 128),
        "down": int8(3, 128, 128),
        "gate_up_scale": scale(3, 256),
        "down_scale": scale(3, 128),
        "x": torch.randn(9, 128, generator=generator),
        "logits": torch.randn(9, 3, generator=generator),
    }


def test_moe_is_the_weighted_sum_of_the_experts_outputs(layer: dict[str, torch.Tensor]) -> None:
    x, weights, ids = layer["x"], *route(layer.pop("logits"), 2)
    experts = {name: layer[name] for name in ("gate_up", "down", "gate_up_scale", "down_scale")}
    whole = moe(x, weights, ids, **experts)
    torch.testing.assert_close(whole, combine(expert_outputs(x, ids, **experts), weights))
    stored = {"gate_up": packed.pack(layer["gate_up"], gated=True), "down": packed.pack(layer["down"], gated=False)}
    torch.testing.assert_close(moe(x, weights, ids, **(experts | stored)), whole)


def test_moe_gives_gradients_where_they_are_wanted(layer: dict[str, torch.Tensor]) -> None:
    weights, ids = route(layer["logits"], 2)
    gate_up, down = (layer[name].float() / 100 for name in ("gate_up", "down"))
    gate_up.requires_grad_()
    moe(layer["x"], weights, ids, gate_up, down).sum().backward()
    assert gate_up.grad is not None
    assert gate_up.grad.abs().sum() > 0


def test_packed_weights_refuse_a_gradient(layer: dict[str, torch.Tensor]) -> None:
    weights, ids = route(layer["logits"], 2)
    x = layer["x"].requires_grad_()
    stored = packed.pack(layer["gate_up"], gated=True), packed.pack(layer["down"], gated=False)
    scales = {"gate_up_scale": layer["gate_up_scale"], "down_scale": layer["down_scale"]}
    with pytest.raises(ValueError, match="no gradient"):
        moe(x, weights, ids, *stored, **scales)
    with pytest.raises(ValueError, match="no gradient"):
        swiglu(
            x, stored[0][0], stored[1][0], gate_up_scale=scales["gate_up_scale"][0], down_scale=scales["down_scale"][0]
        )


def test_the_dense_mlp_takes_packed_weights(layer: dict[str, torch.Tensor]) -> None:
    scales = {"gate_up_scale": layer["gate_up_scale"][1], "down_scale": layer["down_scale"][1]}
    rows = layer["gate_up"][1], layer["down"][1]
    stored = packed.pack(rows[0], gated=True), packed.pack(rows[1], gated=False)
    torch.testing.assert_close(swiglu(layer["x"], *stored, **scales), swiglu(layer["x"], *rows, **scales))


def test_int8_experts_in_fp16_do_not_overflow_before_they_are_scaled() -> None:
    """512 values of 127 times 1 are 65,024 of the 65,504 that fp16 has; results here are about 1."""
    x = torch.ones(3, 1024, dtype=torch.float16)
    gate_up, down = torch.full((1, 32, 1024), 127, dtype=torch.int8), torch.full((1, 1024, 16), 127, dtype=torch.int8)
    scales = {"gate_up_scale": torch.full((1, 32), 1 / (127 * 1024)), "down_scale": torch.full((1, 1024), 1 / 127)}
    ids, weights = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    expected = torch.full((3, 1024), 16 * torch.nn.functional.silu(torch.tensor(1.0)).item())
    for out in (
        moe(x, weights, ids, gate_up, down, **scales),
        swiglu(x, gate_up[0], down[0], gate_up_scale=scales["gate_up_scale"][0], down_scale=scales["down_scale"][0]),
    ):
        torch.testing.assert_close(out.float(), expected, atol=0, rtol=2e-3)


def test_no_tokens_are_no_outputs() -> None:
    x, ids = torch.empty(0, 8), torch.empty(0, 2, dtype=torch.int64)
    gate_up, down = torch.randn(4, 32, 8), torch.randn(4, 8, 16)
    assert moe(x, torch.empty(0, 2), ids, gate_up, down).shape == (0, 8)
    assert expert_outputs(x, ids, gate_up, down).shape == (0, 2, 8)
    assert swiglu(x, gate_up[0], down[0]).shape == (0, 8)
