"""Figure 2 at the scale of a test: every method runs, missing layers are extrapolated as said, failures are rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from plait.cli import main
from plait.paper import figure_2, latency, quantized_dummies
from plait.paper.figure_2 import METHODS, MODELS, Options, depth, measure, shape_of
from plait.paper.latency import Latency
from plait.paper.quantized_dummies import build


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Timings by arithmetic instead of clocks: 0.1 s and 10 ms a layer, of which a tenth is prefill. Notes depths."""
    depths: list[int] = []

    def timing(model: Any, **sizes: int) -> Latency:
        n = model.config.n_layers
        depths.append(n)
        seconds = 0.1 + 0.01 * n
        return Latency(seconds, seconds, seconds, seconds / 10, False)

    monkeypatch.setattr(latency, "measure", timing)
    return depths


def test_missing_layers_are_extrapolated_from_two_depths(timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shape_of("Mixtral 8x7B", Options())
    monkeypatch.setattr(figure_2, "shape_of", lambda name, options: whole)
    data = measure(Options(models=("Mixtral 8x7B",), methods=("experts_int8",), batches=(1,), layers=2))
    row = data["rows"][0]
    assert timed == [2, 1]
    assert (row["layers"], row["layers_of_the_model"], row["extrapolated"]) == (2, 4, True)
    assert row["seconds_of_all_layers"] == pytest.approx(0.1 + 0.01 * 4)
    assert row["decode_step_ms"] == pytest.approx(1e3 * 0.9 * row["seconds"] / 7)


def test_a_method_that_fails_is_a_row_with_the_reason(timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel\nand a long trace")

    monkeypatch.setattr(latency, "measure", broken)
    data = measure(Options(models=("Mixtral 8x7B",), methods=("fp8",)))
    assert data["rows"] == [{"model": "Mixtral 8x7B", "method": "fp8", "failed": "RuntimeError: no such kernel"}]


def test_depth_is_whole_periods_and_at_least_two() -> None:
    mini = MODELS["Jamba-1.5-Mini"]
    assert [depth(mini, Options(layers=n)) for n in (32, 31, 16, 8, 1)] == [32, 16, 16, 16, 16]
    assert depth(MODELS["Mixtral 8x22B"], Options()) == 56


OPT_IN = ("layers.0.mixer.q_proj", "head")


def test_decoding_is_extrapolated_and_told_beside_the_bytes(
    timed: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """bf16 reads 1.55 times what int8 does of Mini at its own size; int4 has no count."""
    methods = ("bf16", "experts_int8", "gptq_int4")
    data = measure(Options(models=("Jamba-1.5-Mini",), methods=methods, batches=(1,)))
    row = data["rows"][1]
    assert row["half_depth_decode_step_ms"] == pytest.approx(1e3 * 0.9 * (0.1 + 0.01 * row["layers"] / 2) / 7)
    assert row["decode_step_ms_of_all_layers"] == row["decode_step_ms"]
    full = Options(scale="full")
    mini = shape_of("Jamba-1.5-Mini", full)
    read = [figure_2._step_bytes(mini, method, 1, full) for method in methods]
    assert read[0] / read[1] == pytest.approx(1.553, abs=1e-3)
    assert read[2] is None
    figure_2.show_decoding(Console(width=100), data)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-2:] for line in lines if "gptq_int4" in line] == [["1.00", "-"]]
    assert [line[-2] for line in lines if "experts_int8" in line] == ["1.00"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_weighs_what_it_should(method: str) -> None:
    config = shape_of("Mixtral 8x7B", Options())
    model, seconds, _ = build(config, method, "cpu")
    assert seconds >= 0
    sizes = {n: t.numel() * t.element_size() for n, t in model.state_dict().items()}
    ffn = sum(size for n, size in sizes.items() if ".ffn." in n and "router" not in n)
    full = 2 * 3 * config.d_model * config.d_ff * config.n_experts * config.n_layers
    expected = {"bf16": 1.0, "gptq_int4": 0.25}.get(method, 0.5)
    assert expected <= ffn / full < expected + 0.04
    width = {name: sizes[f"{name}.weight"] / model.get_parameter(f"{name}.weight").numel() for name in OPT_IN}
    assert width == {
        "layers.0.mixer.q_proj": 1 if method in ("int8:+mixers", "int8:+head") else 2,
        "head": 1 if method == "int8:+head" else 2,
    }
    found = latency.measure(model, batch=2, prompt_tokens=5, answer_tokens=3, repeats=1, warmups=0)
    assert 0 < found.prefill_seconds < found.seconds


@torch.inference_mode()
def test_the_timed_answer_is_the_models_own() -> None:
    """Decode steps through static buffers draw what feeding everything at once would."""
    config = shape_of("Jamba-1.5-Mini", Options())
    model, _, _ = build(config, "bf16", "cpu")
    model.to_dtype(torch.float32)
    run = latency._Run(model, batch=2, prompt_tokens=6, answer_tokens=4)
    drawn = []
    real = run._draw
    run._draw = lambda logits: (real(logits), drawn.append(run.token_ids[0].clone()))[0]  # type: ignore[method-assign]
    run()
    ids = run.prompts
    for token in drawn:
        assert torch.equal(model(ids).logits[:, -1].argmax(-1), token)
        ids = torch.cat([ids, token[:, None]], dim=1)
    assert len(drawn) == 4


def test_the_command_writes_data_and_picture(
    timed: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="pictures come with plait[train]")
    out = tmp_path / "out"
    argv = ["paper", "figure_2", "--models", "8x7b", "--methods", "bf16,experts_int8", "--batches", "1,4"]
    assert main([*argv, "--out", str(out)]) == 0
    data = json.loads((out / "figure_2.json").read_text())
    assert [(r["method"], r["batch"]) for r in data["rows"]] == [
        ("bf16", 1), ("bf16", 4), ("experts_int8", 1), ("experts_int8", 4),
    ]  # fmt: skip
    assert (out / "figure_2.png").stat().st_size > 5000
    assert "dummy weights, medians" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["figure_2", "--models", "mixtral"], "is several of"),
        (["figure_2", "--models", "llama"], "is none of"),
        (["figure_2", "--batches", "1,x"], "must be numbers"),
        (["table_1", "--scale", "tiny"], "table_1 is not measured; --scale goes with figure_2"),
        (["figure_2", "--methods", "awq"], "'awq' must be among bf16"),
    ],
)
def test_wrong_usage(argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", *argv]) != 0
    assert complaint in capsys.readouterr().err


def test_the_seconds_of_gptq_hold_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of one layer of each kind, for every layer of the kind, beside the rounding."""
    config = shape_of("Jamba-1.5-Mini", Options())
    asked: list[tuple[str, tuple[int, int]]] = []

    def passes(name: str, *others: Any) -> float:
        asked.append((name, others[-1]))
        return 10.0

    monkeypatch.setattr(quantized_dummies, "_calibration_seconds", passes)
    monkeypatch.setattr(quantized_dummies, "_gptq_seconds", lambda *_: 3.0)
    _, seconds, _ = build(config, "gptq_int8", "cpu", calibration=(3, 5))
    assert seconds == 3.0 + 10.0 * config.n_layers
    assert len(asked) == len(set(config.layer_kinds())) == 3
    assert {sizes for _, sizes in asked} == {(3, 5)}
    asked.clear()
    build(config, "experts_int8", "cpu")
    assert asked == []
