"""One small model for all: every kind of layer, widths that groups of 16 divide."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from plait.config import ModelConfig
from plait.model.checkpoint import save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel

CONFIG = ModelConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=4, n_heads=4, n_kv_heads=2, attn_period=4, attn_offset=2, n_experts=4,
    dtype="float32", init_std=0.2,
)  # fmt: skip


@pytest.fixture
def model() -> LanguageModel:
    return init_weights(LanguageModel(CONFIG), seed=0).eval()


@pytest.fixture
def folder(model: LanguageModel, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "full")
    return tmp_path / "full"


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(1, 64, (3, 40), generator=torch.Generator().manual_seed(1))
