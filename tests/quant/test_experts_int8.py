"""ExpertsInt8: bounds of the rounding, safe rows, and a checkpoint that needs no full-precision weights."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from plait.config import ModelConfig
from plait.model.checkpoint import load_model, save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.quant import quantize
from plait.quant.experts_int8 import weight_bytes
from plait.quant.rows import dequantize_rows, quantize_rows

CONFIG = ModelConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=4, n_heads=4, n_kv_heads=2, attn_period=4, attn_offset=2, n_experts=4,
    dtype="float32",
)  # fmt: skip


def _model() -> LanguageModel:
    return init_weights(LanguageModel(CONFIG), seed=0).eval()


@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]), st.booleans())
def test_every_weight_is_within_half_a_step(seed: int, size: float, heavy_tail: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 33, generator=generator)
    weight = (weight**3 if heavy_tail else weight) * size
    quantized, scale = quantize_rows(weight)
    assert quantized.abs().max() <= 127
    assert torch.equal(
        quantized.abs().amax(-1), torch.full((5,), 127, dtype=torch.int8)
    )  # every row uses the whole range
    error = (dequantize_rows(quantized, scale) - weight).abs()
    assert (error <= scale[:, None] * 0.5001).all()


@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-40, 1e-38])
def test_rows_of_zeros_and_denormals_are_safe(tiny: float) -> None:
    weight = torch.randn(3, 8)
    weight[1] = tiny
    quantized, scale = quantize_rows(weight)
    restored = dequantize_rows(quantized, scale)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert (restored[1] - weight[1]).abs().max() <= 1.2e-38
    assert (restored[[0, 2]] - weight[[0, 2]]).abs().max() < 0.02


def test_bf16_weights_are_scaled_in_fp32() -> None:
    weight = torch.randn(4, 64).bfloat16()
    quantized, scale = quantize_rows(weight)
    assert torch.equal(scale, weight.float().abs().amax(-1) / 127)
    assert (dequantize_rows(quantized, scale) - weight.float()).abs().max() <= scale.max() * 0.5001


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    model = _model()
    model.layers[1].ffn.down.data[2, 0, 0] = bad
    with pytest.raises(ValueError, match=r"layers.1.ffn.down: .*inf or nan"):
        quantize(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", ["experts", "experts+mlp"])
def test_quantized_checkpoint_loads_without_the_original(tmp_path: Path, level: str, dtype: torch.dtype) -> None:
    model = quantize(_model().to_dtype(dtype), level=level)
    save_model(model, tmp_path / "int8")
    again = load_model(tmp_path / "int8")
    before, after = dict(model.state_dict()), dict(again.state_dict())
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    token_ids = torch.arange(20)[None] % 64
    assert torch.equal(model(token_ids).logits, again(token_ids).logits)
    with safe_open(tmp_path / "int8" / "model.safetensors", framework="pt") as handle:
        stored = {name: handle.get_tensor(name).dtype for name in handle.keys()}  # noqa: SIM118
    assert stored["model.layers.1.feed_forward.experts.3.up_proj.weight"] == torch.int8
    assert stored["model.layers.1.feed_forward.experts.3.up_proj.weight_scale"] == torch.float32
    dense = torch.int8 if level == "experts+mlp" else dtype
    assert stored["model.layers.0.feed_forward.down_proj.weight"] == dense


def test_logits_stay_close_and_bytes_fall_to_a_quarter_of_fp32() -> None:
    model = _model()
    token_ids = torch.arange(60)[None] % 64
    before, full = weight_bytes(model), model(token_ids).logits
    quantize(model)
    after, int8 = weight_bytes(model), model(token_ids).logits
    ratio = after.feed_forward / before.feed_forward
    assert 0.25 < ratio < 0.29  # plus scales and routers
    relative = (int8 - full).norm() / full.norm()
    assert 0 < relative < 0.02


def test_the_same_arithmetic_in_every_implementation() -> None:
    from plait.ops.dispatch import force

    model = quantize(_model())
    token_ids = torch.arange(30)[None] % 64
    with force(moe="reference"):
        slow = model(token_ids).logits
    torch.testing.assert_close(model(token_ids).logits, slow, atol=1e-5, rtol=1e-4)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="method='int4' must be one of experts_int8"):
        quantize(_model(), "int4")
    with pytest.raises(ValueError, match="level='all' must be one of"):
        quantize(_model(), level="all")  # type: ignore[arg-type]
