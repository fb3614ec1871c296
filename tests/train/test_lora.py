"""Adapters: exact where they begin, exact when merged, everything named or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plait.model import LanguageModel, init_weights
from plait.model.checkpoint import load_model, save_model
from plait.quant import quantize
from plait.train.config import LoraConfig, TrainConfig
from plait.train.loop import train
from plait.train.lora import Adapter, adapt, merge
from plait.train.metrics import read_metrics

LORA = LoraConfig(rank=2, alpha=4.0)


def model_of(config: TrainConfig) -> LanguageModel:
    return init_weights(LanguageModel(config.model), seed=3).eval()


IDS = torch.arange(24).view(2, 12)


def test_at_first_it_changes_nothing_and_then_it_merges_exactly(tiny_run: TrainConfig) -> None:
    model = model_of(tiny_run)
    before = model(IDS).logits
    names = {n for n, _ in model.named_parameters()}
    coverage = adapt(model, LORA)
    assert torch.equal(model(IDS).logits, before)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(n.endswith((".A", ".B")) for n in trained)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Adapter):
                module.B.normal_(generator=torch.Generator().manual_seed(module.B.numel()))
    changed = model(IDS).logits.detach()
    assert not torch.allclose(changed, before, atol=1e-3)
    merged = merge(model)
    assert {n for n, _ in merged.named_parameters()} == names
    torch.testing.assert_close(merged(IDS).logits, changed, rtol=0, atol=0)
    assert coverage.trainable == sum(
        2 * (_rows(merged, n) + _columns(merged, n)) * _stack(merged, n) for n in coverage.adapted
    )


def _rows(model: LanguageModel, name: str) -> int:
    return model.get_parameter(name).shape[-2]


def _columns(model: LanguageModel, name: str) -> int:
    return model.get_parameter(name).shape[-1]


def _stack(model: LanguageModel, name: str) -> int:
    return model.get_parameter(name).shape[:-2].numel()


def test_the_default_covers_every_projection_and_the_experts(tiny_run: TrainConfig) -> None:
    coverage = adapt(model_of(tiny_run), LORA)
    assert set(coverage.left) == {"head.weight", "layers.1.ffn.router.weight", "layers.3.ffn.router.weight"}
    for name in ("mixer.in_proj.weight", "mixer.x_proj.weight", "mixer.dt_proj.weight", "ffn.gate_up", "ffn.down"):
        assert f"layers.1.{name}" in coverage.adapted
    assert "router.weight" in str(coverage)


def test_a_target_that_names_nothing_is_refused(tiny_run: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"no matrix is called 'inproj' here; there are .*in_proj"):
        adapt(model_of(tiny_run), replace(LORA, targets=("q_proj", "inproj")))


def test_gradients_are_those_of_the_whole_matrix(tiny_run: TrainConfig) -> None:
    """dA = factor B^T dW and dB = factor dW A^T, for a stack of experts too."""
    whole, model = model_of(tiny_run), model_of(tiny_run)
    adapt(model, LORA)
    weights = dict(whole.named_parameters())
    for m in (whole, model):
        m.train()(IDS).logits.square().sum().backward()
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            dW = weights[name.replace("parametrizations.", "").removesuffix(".0")].grad
            assert dW is not None
            torch.testing.assert_close(module.B.grad, 2 * dW @ module.A.mT, rtol=1e-4, atol=1e-5)


def test_a_run_from_a_quantized_model_trains_adapters_alone(
    tiny_run: TrainConfig, tmp_path: Path, finished: Path
) -> None:
    start = tmp_path / "start"
    whole = load_model(finished / "model", dtype=torch.float32)
    quantize(whole, "experts_int8")
    save_model(whole, start, beside=finished / "model")
    config = replace(
        tiny_run,
        start=str(start),
        lora=LORA,
        steps=4,
        checkpoint_every=2,
        data=replace(tiny_run.data, tokenizer=str(finished / "model")),
    )
    out = tmp_path / "run"
    train(config, out)
    adapters = load_file(out / "adapters.safetensors")
    assert adapters["layers.1.ffn.gate_up.A"].shape == (4, 2, 16)
    assert any(t.abs().max() > 0 for n, t in adapters.items() if n.endswith("B"))
    saved = load_file(out / "checkpoints" / "step-00000004" / "model.safetensors")
    assert all(".parametrizations." in name for name in saved)
    began, ended = load_model(start, dtype=torch.float32), load_model(out / "model", dtype=torch.float32)
    assert ended.layers[1].ffn.gate_up.dtype == torch.float32
    losses = [r["ce"] for r in read_metrics(out / "metrics.jsonl")]
    assert len(losses) == 4
    a, b = began(IDS).logits, ended(IDS).logits
    assert (a - b).abs().max() > 1e-3

    again = tmp_path / "again"
    train(replace(config, steps=4), again)
    (again / "checkpoints" / "step-00000004").rename(tmp_path / "gone")
    train(config, again, resume=True)
    assert [r["ce"] for r in read_metrics(again / "metrics.jsonl")] == losses
