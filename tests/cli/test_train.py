"""`plait train`."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.cli import main
from plait.recipes import RECIPES


def test_a_run_of_ones_own_recipe(trained: subprocess.CompletedProcess[str], workplace: Path) -> None:
    assert (trained.returncode, trained.stderr) == (0, "")
    kernels, *lines = trained.stdout.splitlines()
    assert kernels.startswith("kernels: selective_scan ")
    assert [line.split("  loss")[0] for line in lines[:3]] == ["step 1/8", "step 4/8", "step 8/8"]
    assert "held-out 5." in lines[1]
    labels = [line.split("  ")[0] for line in lines[5:]]
    assert labels == ["steps", "first loss", "held-out loss", "tokens per second", "model", "report"]
    run = workplace / "run"
    assert {"config.json", "metrics.jsonl", "checkpoints", "model", "report.html"} <= {p.name for p in run.iterdir()}
    assert json.loads((run / "config.json").read_text())["note"] == "a field of one's own"


def test_an_interrupted_run_leaves_a_checkpoint(
    workplace: Path, start_plait: Callable[..., subprocess.Popen[str]]
) -> None:
    args = ["train", "runs.py:small", "--set", "steps=400", "--set", "checkpoint_every=1000", "--out", "stopped"]
    process = start_plait(*args)
    assert process.stdout is not None
    assert any("held-out" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    last = out.splitlines()[-1]
    assert last.startswith("stopped after step ")
    assert last.endswith(" of 400; --resume goes on from there")
    (saved,) = (workplace / "stopped" / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) == int(last.split()[3])


def test_resuming_in_this_process(
    workplace: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    assert main(["train", "runs.py:small", "--out", "run"]) == 1
    assert capsys.readouterr().err == (
        "plait train: run already holds a run; add --resume to go on with it, or choose another --out\n"
    )
    assert main(["train", "runs.py:small", "--out", "run", "--resume", "--set", "optim.lr=1"]) == 1
    assert "optim.lr (0.01, now 1.0)" in capsys.readouterr().err
    metrics = (workplace / "run" / "metrics.jsonl").read_bytes()
    assert main(["train", "runs.py:small", "--out", "run", "--resume"]) == 0
    assert (workplace / "run" / "metrics.jsonl").read_bytes() == metrics


def test_without_a_recipe_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["tiny_cup"], 2, "no recipe 'tiny_cup': did you mean tiny_cpu"),
        (["tiny_cpu", "--set", "step=3"], 2, "did you mean steps"),
        (["tiny_cpu", "--set", "steps"], 2, "it must be key=value"),
        (["tiny_cpu", "--threads", "0"], 2, "--threads 0 must be at least 1"),
        (["missing.py"], 2, "missing.py does not exist"),
        (["runs.py"], 2, "runs.py holds 3 functions (small, not_a_recipe, with_an_argument); say which: runs.py:NAME"),
        (["runs.py:tall"], 2, "runs.py has no function 'tall'; it has small, not_a_recipe"),
        (["runs.py:not_a_recipe"], 2, "not_a_recipe gave int"),
        (["runs.py:with_an_argument"], 2, "a recipe takes no arguments; with_an_argument does"),
        (["runs.py:small", "--out", "new", "--set", "data.train=nothing.txt"], 1, "data.train='nothing.txt' must be"),
        (["runs.py:small", "--out", "train.txt"], 1, "Not a directory"),
        (["runs.py:small", "--out", "new", "--set", "optim.lr=1e38", "--set", "optim.warmup_steps=0"], 1, "optim.lr"),
    ],
)
def test_errors_are_one_line(
    argv: list[str],
    code: int,
    says: str,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(workplace)
    argv = [str(tmp_path / a) if a == "new" else a for a in argv]
    assert main(["train", *argv]) == code
    err = capsys.readouterr().err
    assert err.startswith("plait train: ")
    assert says in err
    assert err.count("\n") == 1


def test_probes_before_and_after_stand_in_the_summary(tmp_path: Path) -> None:
    from plait.cli.train import _probe_rows

    lines = [
        {"when": when, "step": step, "seconds": 1.0, "scores": {"ruler/4K": score, "ruler/4K/vt": 1.0, "recall": 2.0}}
        for when, step, score in (("before", 0, 31.25), ("after", 40, 33.0))
    ]
    (tmp_path / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _probe_rows(tmp_path) == [("ruler/4K", "31.2 → 33.0"), ("recall", "2.0 → 2.0")]
    assert _probe_rows(tmp_path / "none") == []
