"""Floors of decode steps: what accounting says of a config is what the tensors of such a model weigh."""

from dataclasses import replace

import pytest
import torch

from plait.accounting import FURTHER_LEVELS, LEVELS, Level, decode_step_bytes, scale_bytes, weight_bytes
from plait.bench.dummy import dummy_model
from plait.bench.serve import weights_of
from plait.bench.step_bytes import step_bytes
from plait.config import ModelConfig, presets

CONFIG = ModelConfig(
    vocab_size=256, d_model=64, d_ff=96, n_layers=8, n_heads=4, n_kv_heads=2, n_experts=4, top_k=2, dt_rank=8,
    attn_period=4, attn_offset=1,
)  # fmt: skip
SCHEMES: dict[Level, str | None] = {
    "bf16": None,
    "int8_experts": "experts_int8:experts",
    "int8_experts_mlp": "experts_int8",
    "int8_experts_mlp_mixers": "experts_int8:experts+mlp+mixers",
    "int8_experts_mlp_mixers_head": "experts_int8:experts+mlp+mixers+head",
}
KINDS = {
    "mamba": CONFIG,
    "mamba2": replace(CONFIG, mamba_kind="mamba2"),
    "dense": replace(CONFIG, n_experts=1, top_k=1, tie_embeddings=True),
}


def size(config: ModelConfig, level: Level) -> int:
    model = dummy_model(config, "cpu", torch.bfloat16, quantize=SCHEMES[level])
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [*LEVELS, *FURTHER_LEVELS])
def test_accounting_weighs_each_level_as_a_model_does(kind: str, level: Level) -> None:
    """Beside what the dtype of a few fp32 parameters adds, the same at every level."""
    config = KINDS[kind]
    counted = {l: weight_bytes(config, l) + scale_bytes(config, l) for l in ("bf16", level)}
    assert size(config, "bf16") - size(config, level) == counted["bf16"] - counted[level]
    if level != "bf16" and not (kind == "dense" and level == "int8_experts"):
        assert counted["bf16"] > counted[level]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", SCHEMES)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_models_step_reads_what_accounting_says(kind: str, level: Level, batch: int) -> None:
    config = KINDS[kind]
    full, model = (dummy_model(config, "cpu", torch.bfloat16, quantize=SCHEMES[l]) for l in ("bf16", level))
    saved = decode_step_bytes(config, 100, "bf16", batch) - decode_step_bytes(config, 100, level, batch)
    rows = batch * config.d_model if level.endswith("head") and config.tie_embeddings else 0  # looked up, in int8
    scales = 4 * batch if rows else 0
    assert step_bytes(full, 100, batch) - step_bytes(model, 100, batch) == pytest.approx(saved + rows - scales)
    wide = sum(2 * p.numel() for p in full.parameters() if p.dtype == torch.float32)  # A_log, D, dt_bias
    assert step_bytes(full, 100, batch) == pytest.approx(decode_step_bytes(config, 100, "bf16", batch) + wide)


def test_floors_follow_the_weights_in_memory() -> None:
    """fp32 doubles all but fp32 states, fp8 weighs as int8, and both are said by name."""
    wide = dummy_model(CONFIG, "cpu", torch.float32)
    half = dummy_model(CONFIG, "cpu", torch.bfloat16)
    fp8 = dummy_model(CONFIG, "cpu", torch.bfloat16, quantize="fp8")
    int8 = dummy_model(CONFIG, "cpu", torch.bfloat16, quantize="experts_int8:experts+mlp+mixers+head")
    assert 1.5 < step_bytes(wide, 10, 1) / step_bytes(half, 10, 1) < 2
    assert step_bytes(half, 10, 1) > step_bytes(fp8, 10, 1) > step_bytes(int8, 10, 1)
    names = [weights_of(m) for m in (wide, half, fp8, int8)]
    assert names == ["float32", "bfloat16", "fp8_experts_mlp", "int8_experts_mlp_mixers_head"]
    with pytest.raises(ValueError, match="batch=0"):
        step_bytes(half, 10, 0)


@pytest.mark.parametrize(("name", "most"), [("jamba-1.5-mini", 55.5e9), ("jamba-1.5-large", 428e9)])
def test_int8_weights_stay_under_their_bars(name: str, most: float) -> None:
    """And the next start reads at most 55 % of what bf16 would."""
    config = presets[name]
    stored = weight_bytes(config, "int8_experts_mlp") + scale_bytes(config, "int8_experts_mlp")
    assert stored <= most
    assert stored <= 0.55 * weight_bytes(config, "bf16")
