"""Weights that stay in the pages of their file: the same numbers, no copy, and a file that never changes."""

from pathlib import Path

import pytest
import torch

from plait.config import ModelConfig
from plait.model.checkpoint import load_model, save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel

CONFIG = ModelConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=4, attn_offset=1, n_experts=2
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(init_weights(LanguageModel(CONFIG), seed=0).to_dtype(torch.bfloat16), tmp_path / "model")
    return tmp_path / "model"


def test_a_mapped_model_is_the_copied_one(folder: Path) -> None:
    mapped, copied = load_model(folder), load_model(folder, mapped=False)
    others = dict(copied.named_parameters())
    for name, parameter in mapped.named_parameters():
        assert torch.equal(parameter, others[name]), name
    storages = {
        p.untyped_storage().data_ptr() for n, p in mapped.named_parameters() if "proj.weight" in n or ".ffn" in n
    }
    assert len(storages) == 1  # one file: gate and up of an MLP lie side by side in it, experts evenly apart
    ids = torch.randint(0, 64, (1, 9))
    assert torch.equal(mapped(ids).logits, copied(ids).logits)


def test_writing_to_a_mapped_weight_leaves_the_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before
    assert not torch.equal(load_model(folder).embed.weight, model.embed.weight)


def test_saving_over_the_file_that_is_mapped(folder: Path) -> None:
    model = load_model(folder)
    expected = {name: parameter.clone() for name, parameter in model.named_parameters()}
    save_model(model, folder)
    again = dict(load_model(folder).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name])
        assert torch.equal(again[name], expected[name])


def test_another_dtype_is_a_copy(folder: Path) -> None:
    model = load_model(folder, dtype=torch.float32)
    assert model.embed.weight.dtype == torch.float32
    assert torch.equal(model.embed.weight, load_model(folder).embed.weight.float())
