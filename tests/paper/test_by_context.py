"""Figures 3 and 4 at the scale of a test: contexts a model has, layers that are missing, files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plait.cli import main
from plait.paper import by_context, figure_3, figure_4
from plait.paper.figure_3 import MODELS, Options


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A millisecond a layer and token of the prompt, 10 ms a layer between tokens. Notes depths."""
    depths: list[int] = []

    def timing(model: Any, contexts: list[int], options: Options) -> dict[int, tuple[float, float]]:
        n = model.config.n_layers
        depths.append(n)
        return {context: (0.001 * context * n, 0.01 * n) for context in contexts}

    monkeypatch.setattr(by_context, "_timed", timing)
    return depths


def test_missing_layers_are_extrapolated_from_two_depths(timed: list[int]) -> None:
    (row,) = figure_3.measure(Options(models=("Mixtral 8x7B",), contexts=(100,), layers=5))["rows"]
    assert timed == [4, 2]
    assert (row["layers"], row["layers_of_the_model"], row["extrapolated"]) == (4, 16, True)
    assert row["ttft_seconds"] == pytest.approx(1.6)
    assert row["tokens_per_s"] == pytest.approx(1 / 0.16)
    assert row["seconds"] == pytest.approx(1.6 + 15 * 0.16)
    whole = figure_3.measure(Options(models=("Jamba-1.5-Mini",), contexts=(100,)))["rows"][0]
    assert timed == [4, 2, 16]
    assert not whole["extrapolated"]


def test_contexts_beyond_a_model_and_failures_are_rows_with_a_reason(
    timed: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = figure_3.measure(Options(models=("Mixtral 8x7B",), contexts=(100, 40_000)))["rows"]
    assert [(row["context"], "failed" in row) for row in rows] == [(40_000, True), (100, False)]
    (row,) = figure_3.measure(Options(models=("Mixtral 8x7B",), contexts=(32_769,)))["rows"]
    assert row["failed"] == "the model was made for 32768 tokens"

    def broken(*given: object) -> object:
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(by_context, "_model", broken)
    data = figure_4.measure(figure_4.Options(models=("LLaMA-3.1 70B",)))
    assert data["rows"] == [{"model": "LLaMA-3.1 70B", "method": "bf16", "failed": "RuntimeError: out of memory"}]


def test_the_command_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["paper", "figure_3", "--models", "mini", "--contexts", "40,80", "--layers", "16", "--out", str(tmp_path)]
    assert main(command) == 0
    data = json.loads((tmp_path / "figure_3.json").read_text())
    assert [row["context"] for row in data["rows"]] == [40, 80]
    assert all(row["seconds"] > row["ttft_seconds"] > 0 for row in data["rows"])
    assert (tmp_path / "figure_3.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "Jamba-1.5-Mini" in out
    assert "16/16" in out
    assert main(["paper", "figure_3", "--batches", "4"]) == 2


def test_a_prompt_may_fill_what_a_model_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(MODELS["Jamba-1.5-Mini"], max_context=48)
    monkeypatch.setitem(MODELS, "Jamba-1.5-Mini", small)
    options = Options(models=("Jamba-1.5-Mini",), contexts=(48, 49), layers=16)
    beyond, run = figure_3.measure(options)["rows"]
    assert (beyond["context"], "failed" in beyond) == (49, True)
    assert run["seconds"] > run["ttft_seconds"] > 0


def test_what_can_be_asked_for() -> None:
    assert next(iter(MODELS)) == "Jamba-1.5-Mini"
    with pytest.raises(ValueError, match="'gptq' must be among bf16, experts_int8"):
        Options(methods=("gptq",))
    with pytest.raises(ValueError, match="contexts"):
        Options(contexts=(0,))
    with pytest.raises(ValueError, match="'x' must be among"):
        figure_4.Options(models=("x",))
