"""What a run reports: metrics.jsonl, TensorBoard, the terminal."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from plait.train import metrics
from plait.train.metrics import MetricsFile, TensorBoard, TrainProgress, Wandb, read_metrics

RECORD = {
    "step": 7, "lr": 1e-3, "tokens_per_second": 12_345.6, "loss": 5.43219, "ce": 5.4, "balance": 2.0104,
    "max_mamba": 0.00123, "max_experts": 130.4, "grad_norm": 0.618,
}  # fmt: skip


def write(path: Path, resumed_step: int, steps: range) -> None:
    with MetricsFile(path, resumed_step) as file:
        for step in steps:
            file.write({"step": step, "run": resumed_step})


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, range(1, 6))
    with path.open("a") as file:
        file.write('{"step": 6, "ru')  # killed in the middle of a line
    write(path, 3, range(4, 8))
    records = read_metrics(path)
    assert [(r["step"], r["run"]) for r in records] == [(1, 0), (2, 0), (3, 0), (4, 3), (5, 3), (6, 3), (7, 3)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("line", ["", "{", "[1]", "{}", '{"step": null}', "null"])
def test_lines_that_are_none_are_dropped(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    write(path, 2, range(3, 4))
    assert [r["step"] for r in read_metrics(path)] == [1, 3]


def test_starting_anew_drops_everything(tmp_path: Path) -> None:
    write(tmp_path / "m", 0, range(1, 6))
    write(tmp_path / "m", 0, range(1, 2))
    assert len(read_metrics(tmp_path / "m")) == 1


def test_a_line_is_on_the_disk_when_write_returns(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "m", 0) as file:
        file.write({"step": 1, "loss": 0.1})
        assert json.loads((tmp_path / "m").read_text()) == {"step": 1, "loss": 0.1}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, 0) as board:
        for step in range(1, 6):
            board.write(RECORD | {"step": step, "loss": 10.0 - step})
    with TensorBoard(tmp_path, 3) as board:  # what came after step 3 is purged
        board.write(RECORD | {"step": 4, "loss": 0.5})
    read = scalars(tmp_path)
    assert set(read) == set(RECORD) - {"step"}
    assert read["loss"] == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 0.5)]


def test_tensorboard_of_a_whole_run(finished: Path) -> None:
    read = scalars(finished / "tensorboard")
    records = read_metrics(finished / "metrics.jsonl")
    assert [step for step, _ in read["ce"]] == [r["step"] for r in records]
    assert [value for _, value in read["ce"]] == pytest.approx([r["ce"] for r in records], rel=1e-6)
    assert [step for step, _ in read["heldout_loss"]] == [4, 8]


def test_without_tensorboard_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with TensorBoard(tmp_path / "tb", 0) as board:
        board.write(RECORD)
    assert capsys.readouterr().err == "tensorboard is not installed: metrics go to metrics.jsonl only\n"
    assert not (tmp_path / "tb").exists()


def progress(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, **more: Any) -> str:
    """What a short run shows."""
    screen = io.StringIO()
    monkeypatch.setattr(
        metrics,
        "Console",
        lambda **options: Console(
            file=screen, force_terminal=terminal, width=100, _environ={"TERM": "xterm"}, **options
        ),
    )
    with TrainProgress("tiny_run", 80, 6) as shown:
        shown.step(7)
        shown.log(RECORD | more, 80, 125.9)
    return screen.getvalue()


def test_elsewhere_a_log_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "step  7/80  loss 5.4322  balance 2.010  |act| mamba 0.0012  experts 1.3e+02  grad 0.62  lr 1.0e-03"
        "  12,346 tok/s  left 2:05\n"
    )
    assert progress(monkeypatch, terminal=False) == line
    held_out = line.replace("balance", "held-out 5.5000  balance")
    assert progress(monkeypatch, terminal=False, heldout_loss=5.5) == held_out


def test_a_terminal_has_a_bar_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = progress(monkeypatch, terminal=True)
    assert "step  7/80  loss 5.4322" in shown
    assert "tiny_run" in shown
    assert "7/80" in shown.split("tok/s  left 2:05")[1]
    assert "loss 5.432  12,346 tok/s" in shown


def test_weights_and_biases_where_a_project_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append((values, step))

        def finish(self) -> None:
            calls.append("finished")

    def init(**given: Any) -> Run:
        calls.append(given)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for _ in range(2):
        with Wandb("project", "run", tmp_path) as board:
            board.write({"step": 3, "loss": 1.5, "load/layer_01": [0.5, 1.5]})
    assert calls[0]["project"] == "project"
    assert calls[0]["id"] == calls[3]["id"]  # a resumed run goes on in the same place
    expected = {"step": 3, "loss": 1.5, "load/layer_01/expert_00": 0.5, "load/layer_01/expert_01": 1.5}
    assert calls[1:3] == [(expected, 3), "finished"]
    calls.clear()
    with Wandb("", "run", tmp_path) as board:
        board.write({"step": 1})
    assert not calls
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        Wandb("project", "run", tmp_path)
