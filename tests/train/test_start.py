"""A run begins with the weights of a model that is there, int8 ones as the numbers they stand for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plait.config import ModelConfig
from plait.model.checkpoint import save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.quant import quantize
from plait.quant.rows import dequantize_rows, quantize_rows
from plait.train.config import TrainConfig
from plait.train.start import first_weights

MODEL = ModelConfig(
    vocab_size=64, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=4, attn_offset=2,
    n_experts=4, d_state=4, dtype="float32",
)  # fmt: skip
RUN = TrainConfig("r", MODEL, seed=3)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[LanguageModel, Path]:
    model = init_weights(LanguageModel(MODEL), seed=9)
    save_model(model, tmp_path / "m")
    return model, tmp_path / "m"


def test_without_a_start_weights_are_drawn_from_the_seed() -> None:
    drawn = init_weights(LanguageModel(MODEL), seed=3).state_dict()
    assert all(torch.equal(value, drawn[name]) for name, value in first_weights(RUN).state_dict().items())


def test_the_weights_of_a_folder(saved: tuple[LanguageModel, Path]) -> None:
    model, folder = saved
    found = first_weights(replace(RUN, start=str(folder), model=replace(MODEL, max_context=64)))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_int8_experts_become_what_they_stand_for(saved: tuple[LanguageModel, Path], tmp_path: Path) -> None:
    model, _ = saved
    expected = dequantize_rows(*quantize_rows(model.layers[1].ffn.gate_up))
    save_model(quantize(model), tmp_path / "int8")
    found = first_weights(replace(RUN, start=str(tmp_path / "int8")))
    assert found.layers[1].ffn.gate_up.dtype == torch.float32
    assert torch.equal(found.layers[1].ffn.gate_up, expected)


def test_another_model_or_none_is_refused(saved: tuple[LanguageModel, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_experts=4 there, 2 here"):
        first_weights(replace(RUN, start=str(saved[1]), model=replace(MODEL, n_experts=2)))
    with pytest.raises(ValueError, match=r"nowhere: it must be a model's folder"):
        first_weights(replace(RUN, start=str(tmp_path / "nowhere")))
