"""A run of DPO: it learns the preference, goes on to the last bit, trains adapters, and refuses what it can't do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

import plait
from plait.data.preferences import Pair
from plait.recipes import load_recipe
from plait.train import preferences
from plait.train.config import DpoConfig, LoraConfig, ParallelConfig, TrainConfig
from plait.train.loop import train
from plait.train.metrics import read_metrics
from plait.train.preferences import order, train_preferences


@pytest.fixture
def config(tiny_run: TrainConfig, finished: Path, tmp_path: Path) -> TrainConfig:
    """Eight steps on ten pairs, from the model that the tiny run ended with."""
    lines = [{"prompt": f"{who} said that", "chosen": " it was so.", "rejected": " x"} for who in "ABCDEFGHIJ"]
    for name in ("pairs.jsonl", "heldout.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = replace(tiny_run.data, train=str(tmp_path / "pairs.jsonl"), heldout=str(tmp_path / "heldout.jsonl"))
    losses = replace(tiny_run.losses, activation=0.0)
    return replace(tiny_run, name="dpo", data=data, losses=losses, dpo=DpoConfig(0.5), start=str(finished / "model"))


def test_it_prefers_what_was_chosen(config: TrainConfig, tmp_path: Path) -> None:
    result = train_preferences(config, tmp_path / "run")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert result.first_loss == pytest.approx(0.6931, abs=1e-4)  # ln 2: nothing differs from p_0 yet
    assert records[-1]["heldout_accuracy"] == 1.0
    assert result.heldout_loss < 0.6
    assert plait.load_model(tmp_path / "run" / "model").config.d_model == config.model.d_model
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "dpo" in (tmp_path / "run" / "report.html").read_text()


def test_it_goes_on_to_the_last_bit(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_preferences(config, tmp_path / "whole")
    taken, step = [], preferences.preference_step

    def dies(*args: object) -> dict[str, float]:
        taken.append(1)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(preferences, "preference_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train_preferences(config, tmp_path / "parts")
    train_preferences(config, tmp_path / "parts", resume=True)
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("parts", "whole"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert read_metrics(tmp_path / "parts/metrics.jsonl") == read_metrics(tmp_path / "whole/metrics.jsonl")


def test_with_adapters(config: TrainConfig, tmp_path: Path) -> None:
    result = train_preferences(replace(config, lora=LoraConfig(rank=4), accumulate=2), tmp_path / "run")
    assert result.first_loss == pytest.approx(0.6931, abs=1e-4)
    assert (tmp_path / "run" / "adapters.safetensors").exists()
    before, after = (plait.load_model(path) for path in (config.start, tmp_path / "run" / "model"))
    assert not before.layers[0].mixer.in_proj.weight.equal(after.layers[0].mixer.in_proj.weight)
    assert before.embed.weight.equal(after.embed.weight)


def test_every_pass_has_every_pair_once(config: TrainConfig) -> None:
    seen = [i for step in range(5) for i in order(10, config, step)]  # steps of 4
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert order(3, config, 0) == order(3, config, 0)
    assert len(order(3, config, 0)) == 4


def test_what_it_refuses(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set start=FOLDER"):
        replace(config, start="")
    with pytest.raises(ValueError, match="on one process"):
        replace(config, parallel=ParallelConfig(dp_shard=2))
    with pytest.raises(ValueError, match="train_preferences"):
        train(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"dpo.beta=-1.0 must be"):
        load_recipe("dpo", ["dpo.beta=-1"])
    with pytest.raises(ValueError, match="chosen of a pair is empty"):
        Pair((1,), (), (2,))
