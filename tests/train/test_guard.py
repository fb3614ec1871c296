"""Steps that go wrong: left out, or the run goes back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plait.parallel import Plan
from plait.train import loop
from plait.train.config import GuardConfig, TrainConfig
from plait.train.guard import Guard
from plait.train.loop import train
from plait.train.metrics import read_metrics


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda *_: None)


def poison_step(monkeypatch: pytest.MonkeyPatch, wanted: int) -> list[Any]:
    """The loss of the `wanted`-th step taken from here is 1000 times what it is; returns what batches were read."""
    real, read = Plan.next_token_sums, loop.own_rows
    steps: list[Any] = []

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        total, squares = real(*args, **kwargs)
        return (total * 1000 if len(steps) == wanted and total.requires_grad else total), squares

    def reading(loader: Any, index: int, *rest: Any) -> Any:
        steps.append(index)
        return read(loader, index, *rest)

    monkeypatch.setattr(Plan, "next_token_sums", spoiled)
    monkeypatch.setattr(loop, "own_rows", reading)
    return steps


CONFIG = GuardConfig(action="skip", spike=3.0, window=3)


def test_a_spike_is_left_out(tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = poison_step(monkeypatch, 6)
    result = train(replace(tiny_run, guard=CONFIG), tmp_path)
    assert result.step == 8
    assert steps == list(range(8))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if "skipped" in r] == [6]
    assert records[5]["loss"] > 1000
    assert records[6]["loss"] < 6


def test_rewinding_reads_other_batches(tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = poison_step(monkeypatch, 5)  # the checkpoint is of step 3: batches 3 and 4 are given up
    result = train(replace(tiny_run, guard=replace(CONFIG, action="rewind")), tmp_path)
    assert result.step == 8
    assert steps == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 9))
    assert max(r["loss"] for r in records) < 7


def test_without_a_checkpoint_there_is_no_way_back(
    tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_step(monkeypatch, 4)
    config = replace(tiny_run, guard=replace(CONFIG, action="rewind"), checkpoint_every=100)
    with pytest.raises(FloatingPointError, match="no checkpoint"):
        train(config, tmp_path)


def test_too_many_in_a_row_stop_the_run() -> None:
    guard = Guard(GuardConfig(action="skip", most=2))
    bad = {"loss": math.nan, "grad_norm": 1.0, "skipped": 1.0}
    assert [guard.judge(1, bad), guard.judge(2, bad)] == ["skip", "skip"]
    with pytest.raises(FloatingPointError, match="2 in a row"):
        guard.judge(3, bad)


def test_a_spike_is_told_by_the_median() -> None:
    guard = Guard(GuardConfig(action="skip", spike=2.0, window=3))
    for loss in (1.0, 5.0):
        assert guard.most_loss == math.inf
        guard.judge(1, {"loss": loss})
    guard.judge(1, {"loss": 3.0})
    assert guard.most_loss == 6.0
    again = Guard(guard.config)
    again.load(guard.state())
    assert again.most_loss == 6.0
