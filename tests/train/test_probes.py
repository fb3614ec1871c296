"""Probes: once before the first step and once after the last, on the model of that moment; numbers in file and page."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import plait
from plait.train import loop
from plait.train.config import ProbeConfig, TrainConfig
from plait.train.loop import train
from plait.train.probes import PROBES, averages, probes_section, read_probes


class Counting:
    """A probe that says the model's largest weight, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, Path]] = []

    def __call__(self, config: TrainConfig, folder: Path, out: Path) -> Mapping[str, float]:
        self.asked.append((folder, out))
        model = plait.load_model(folder)
        largest = max(float(p.detach().abs().max()) for p in model.parameters())
        return {"ruler/4K": 10 * largest, "ruler/4K/vt": largest, "recall": 50.0}


@pytest.fixture
def probed(tiny_run: TrainConfig) -> TrainConfig:
    return replace(tiny_run, probes=ProbeConfig(recall_samples=3))


def test_a_run_that_starts_from_a_model_is_measured_before_and_after(
    probed: TrainConfig, finished: Path, tmp_path: Path
) -> None:
    config, probe = replace(probed, start=str(finished / "model"), steps=2), Counting()
    out = tmp_path / "run"
    train(config, out, probe=probe)
    assert probe.asked == [
        (finished / "model", out / "probes" / "before"),
        (out / "model", out / "probes" / "after"),
    ]
    before, after = read_probes(out)
    assert [(r["when"], r["step"]) for r in (before, after)] == [("before", 0), ("after", 2)]
    assert before["scores"]["ruler/4K/vt"] != after["scores"]["ruler/4K/vt"]
    page = (out / "report.html").read_text()
    assert "before (step 0)" in page
    assert "after (step 2)" in page
    for record in (before, after):
        assert f" {record['scores']['ruler/4K/vt']:.1f}</td>" in page
    assert "<td>+0.0</td>" in page  # recall did not change


def test_without_a_model_to_start_from_there_is_only_after(probed: TrainConfig, tmp_path: Path) -> None:
    probe = Counting()
    train(replace(probed, steps=1), tmp_path / "run", probe=probe)
    assert [r["when"] for r in read_probes(tmp_path / "run")] == ["after"]
    assert "change" not in probes_section(tmp_path / "run")


def test_a_run_that_goes_on_measures_nothing_twice(
    probed: TrainConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = replace(probed, start=str(finished / "model"), steps=2, checkpoint_every=1), tmp_path / "run"

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(loop, "write_report", dies)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, out, probe=Counting())
    first = (out / PROBES).read_text()
    monkeypatch.undo()
    again = Counting()
    train(config, out, resume=True, probe=again)
    assert again.asked == []
    assert (out / PROBES).read_text() == first
    assert len(first.splitlines()) == 2


def test_probes_that_nobody_measures_are_an_error(probed: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"probe=plait\.recipes\.probes\.measure"):
        train(probed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_probes_no_section(tmp_path: Path, tiny_run: TrainConfig) -> None:
    assert not tiny_run.probes.any
    assert read_probes(tmp_path) == []
    assert probes_section(tmp_path) == ""


def test_single_tasks_are_no_averages() -> None:
    assert averages({"ruler/4K": 1.0, "ruler/4K/vt": 1.0, "recall": 1.0, "recall/4": 1.0}) == [
        "ruler/4K", "recall", "recall/4",
    ]  # fmt: skip


def test_a_number_that_only_one_side_has_is_left_empty(tmp_path: Path) -> None:
    lines = [
        {"when": "before", "step": 0, "seconds": 1, "scores": {"recall": 4.0}},
        {"when": "after", "step": 9, "seconds": 1, "scores": {"recall": 6.5, "copying": 2.0}},
    ]
    (tmp_path / PROBES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    section = probes_section(tmp_path)
    assert "<td>+2.5</td>" in section
    assert section.count("<tr>") == 3
    assert "<b>copying</b></td><td></td>" in section


@pytest.mark.parametrize(
    "wrong", [{"ruler_samples": -1}, {"recall_samples": -1}, {"ruler_lengths": ()}, {"ruler_lengths": (100,)}]
)
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="probes"):
        ProbeConfig(**wrong)  # type: ignore[arg-type]
