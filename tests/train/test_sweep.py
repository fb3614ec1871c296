"""Sweeps: all combinations, the same numbers as single runs, nothing run twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from plait.data import open_shards
from plait.train.config import TrainConfig
from plait.train.loop import train
from plait.train.sweep import combinations, sweep


def test_combinations() -> None:
    assert combinations(["a=1|2", "b.c=x:0.5,y:0.5|z"]) == [
        {"a": "1", "b.c": "x:0.5,y:0.5"},
        {"a": "1", "b.c": "z"},
        {"a": "2", "b.c": "x:0.5,y:0.5"},
        {"a": "2", "b.c": "z"},
    ]
    for wrong in ("a", "=1|2", "a=1||2", "a=1|1"):
        with pytest.raises(ValueError, match="--sweep"):
            combinations([wrong])
    with pytest.raises(ValueError, match="given once"):
        combinations(["a=1|2", "a=3"])


def test_a_sweep_is_its_runs_and_goes_on(tiny_run: TrainConfig, tmp_path: Path) -> None:
    config = replace(tiny_run, steps=4, checkpoint_every=4)
    done = sweep(config, ["optim.lr=1e-4|1e-2"], tmp_path / "sweep")
    single = train(replace(config, optim=replace(config.optim, lr=1e-2)), tmp_path / "single")
    assert [trial.settings for trial in done.trials] == [{"optim.lr": "1e-4"}, {"optim.lr": "1e-2"}]
    assert done.trials[1].heldout_loss == single.heldout_loss
    assert done.best is done.trials[1]
    written = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [each["heldout_loss"] for each in written] == [trial.heldout_loss for trial in done.trials]
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 5000
    weights = tmp_path / "sweep" / done.trials[0].folder / "metrics.jsonl"
    before = weights.read_text()
    again = sweep(config, ["optim.lr=1e-4|1e-2"], tmp_path / "sweep")
    assert [trial.heldout_loss for trial in again.trials] == [trial.heldout_loss for trial in done.trials]
    assert weights.read_text() == before


def test_mixtures_are_swept_like_any_setting(tiny_run: TrainConfig, finished: Path, tmp_path: Path) -> None:
    data = finished / "data"
    a, b = data / "train", data / "heldout"
    assert open_shards(a).n_tokens > 0
    settings = replace(
        tiny_run.data, train=str(a), heldout=str(b), tokenizer=str(data / "tokenizer"), packing="planned"
    )
    config = replace(tiny_run, data=settings, steps=3, checkpoint_every=3)
    done = sweep(config, [f"data.train={a}:0.9,{b}:0.1|{a}:0.1,{b}:0.9"], tmp_path / "sweep")
    assert done.trials[0].heldout_loss != done.trials[1].heldout_loss


def test_settings_are_checked_before_the_first_run(tiny_run: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        sweep(tiny_run, ["optim.lr=1e-3", "step=3|4"], tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
