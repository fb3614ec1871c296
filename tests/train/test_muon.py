"""Muon: singular values near one, whatever the matrix; experts and gate and up each for themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.model import LanguageModel, init_weights
from plait.parallel import Plan
from plait.parallel.placement import placements
from plait.train import loop
from plait.train.config import TrainConfig
from plait.train.loop import train
from plait.train.muon import _orthogonal
from plait.train.optimizer import Optimizer, make_optimizer


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5), (3, 6, 4)])
def test_singular_values(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = _orthogonal(matrices) / (0.2 * max(shape[-2:]) ** 0.5)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_matrices_go_to_muon_and_the_rest_to_adamw(tiny_run: TrainConfig) -> None:
    model = init_weights(LanguageModel(tiny_run.model), seed=0)
    config = replace(tiny_run.optim, kind="muon", lr=0.1, weight_decay=0.0)
    optimizer = make_optimizer(model, config, Plan(table=placements(tiny_run.model)))
    assert isinstance(optimizer, Optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    assert torch.allclose(moved["embed.weight"].abs(), torch.tensor(0.1), atol=1e-4)  # AdamW's first step is its lr
    gate = moved["layers.1.ffn.gate_up"][2, :24] / (0.1 * 0.2 * 24**0.5)
    values = torch.linalg.svdvals(gate)
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_it_trains_and_resumes(tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_: None)
    config = replace(tiny_run, optim=replace(tiny_run.optim, kind="muon", ema=0.9))
    result = train(config, tmp_path / "whole")
    assert result.heldout_loss < result.first_loss - 0.1
    real, taken = loop.train_step, []

    def failing(*args: Any) -> dict[str, float]:
        taken.append(1)
        if len(taken) == 6:
            raise RuntimeError("power cut")
        return real(*args)

    monkeypatch.setattr(loop, "train_step", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped", resume=True)
    for name in ("model", "model-ema"):
        ours, theirs = ((tmp_path / out / name / "model.safetensors").read_bytes() for out in ("whole", "stopped"))
        assert ours == theirs
    averaged, last = ((tmp_path / "whole" / name / "model.safetensors").read_bytes() for name in ("model-ema", "model"))
    assert averaged != last
