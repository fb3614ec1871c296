"""Whole runs of several processes: as one process computes, killed and resumed, and over other grids half way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import plait
from plait.data.loader import Loader
from plait.parallel import ParallelConfig
from plait.train.checkpoint import checkpoints
from plait.train.config import TrainConfig
from plait.train.loop import train
from plait.train.metrics import read_metrics
from plait.train.processes import joined, pick_device

SCRIPT = Path(__file__).with_name("several.py")
MIXED = ParallelConfig(dp_shard=0, tp=2, ep=2)
TIMES = {"tokens_per_second", "slowest_step_ms"}


def start(config: TrainConfig, out: Path, world: int, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command += [str(SCRIPT), json.dumps(asdict(config)), str(out), *options]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(plait.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)


def numbers(out: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def config(tiny_run: TrainConfig) -> TrainConfig:
    return replace(tiny_run, batch=8, accumulate=2, parallel=MIXED, recompute="selective", hang_seconds=60)


@pytest.fixture(scope="module")
def finished_by_four(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("four") / "run"
    done = start(config, out, 4)
    assert done.returncode == 0, done.stderr[:4000]
    return out


def test_four_processes_train_as_one(config: TrainConfig, finished_by_four: Path, tmp_path: Path) -> None:
    train(replace(config, parallel=ParallelConfig(dp_shard=0), recompute="none"), tmp_path / "run")
    ours, expected = numbers(finished_by_four), numbers(tmp_path / "run")
    assert [r["step"] for r in ours] == list(range(1, 9))
    for mine, one in zip(ours, expected, strict=True):
        for name in ("loss", "ce", "balance", "grad_norm"):
            assert mine[name] == pytest.approx(one[name], rel=2e-6), (one["step"], name)
    assert ours[-1]["heldout_loss"] == pytest.approx(expected[-1]["heldout_loss"], rel=2e-6)
    exported, whole = (plait.load_model(out / "model") for out in (finished_by_four, tmp_path / "run"))
    for (name, a), b in zip(exported.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_killed_and_resumed_is_never_stopped(config: TrainConfig, finished_by_four: Path, tmp_path: Path) -> None:
    """To the last bit, and without what was half written."""
    killed = start(config, tmp_path / "run", 4, "--kill", "5")
    assert killed.returncode != 0
    assert [c.name for c in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003"]
    resumed = start(config, tmp_path / "run", 4, "--resume")
    assert resumed.returncode == 0, resumed.stderr[:4000]
    assert numbers(tmp_path / "run") == numbers(finished_by_four)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_sigterm_saves_and_other_grids_go_on(config: TrainConfig, finished_by_four: Path, tmp_path: Path) -> None:
    """Four processes, then two, then four otherwise: the same batches in the same order, so the same losses."""
    out = tmp_path / "run"
    first = start(config, out, 4, "--stop", "2")
    assert first.returncode == 0, first.stderr[:4000]
    assert checkpoints(out / "checkpoints")[-1].name == "step-00000002"
    second = start(replace(config, parallel=ParallelConfig(dp_shard=2)), out, 2, "--resume", "--stop", "3")
    assert second.returncode == 0, second.stderr[:4000]
    assert checkpoints(out / "checkpoints")[-1].name == "step-00000005"
    third = start(replace(config, parallel=ParallelConfig(cp=2, dp_shard=2, ep=4)), out, 4, "--resume")
    assert third.returncode == 0, third.stderr[:4000]
    for mine, expected in zip(numbers(out), numbers(finished_by_four), strict=True):
        assert mine["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert train(replace(config, parallel=ParallelConfig(dp_shard=0)), out, resume=True).step == 8  # one reads it too


def test_the_rows_of_a_pass_are_the_same_on_any_grid(finished_by_four: Path) -> None:
    from plait.data.shards import open_shards

    loader = Loader(open_shards(finished_by_four / "data" / "train"), seq=32, batch=4, seed=0)
    whole = loader.batch(3).token_ids
    shares = [loader.batch(3, rank, 2).token_ids for rank in range(2)]
    assert (whole[:2] == shares[0]).all()
    assert (whole[2:] == shares[1]).all()


def test_a_grid_without_processes_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="--nproc"), joined(config, pick_device("cpu")):
        pass


HANGS = """
import sys, time
from pathlib import Path
from plait.train.processes import Watch
with Watch(1, Path(sys.argv[1]), 1):
    def stuck(): time.sleep(60)
    stuck()
"""


def test_a_process_that_hangs_shows_where_and_ends(tmp_path: Path) -> None:
    began = time.perf_counter()
    command = [sys.executable, "-c", HANGS, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(plait.__file__).parents[1], timeout=50, capture_output=True, text=True)
    assert done.returncode != 0
    assert time.perf_counter() - began < 45
    assert "in stuck" in (tmp_path / "stacks-1.txt").read_text()
