"""The loop: stopped and resumed = never stopped, passes add up, and what goes wrong leaves something to go on from."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait.config import ModelConfig
from plait.data.loader import IGNORE, Batch, Loader
from plait.data.shards import open_shards
from plait.model import LanguageModel, Layout, init_weights
from plait.parallel import Plan
from plait.train import loop
from plait.train.checkpoint import checkpoints
from plait.train.config import TrainConfig
from plait.train.evaluation import evaluate, heldout_rows
from plait.train.loop import train
from plait.train.metrics import read_metrics
from plait.train.optimizer import AdamW
from plait.train.step import tensors_of, train_step

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The summaries that reports were asked for; drawing takes longer than these runs, and test_report.py does it."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(loop, "write_report", lambda out, config, summary: asked.append(summary))
    return asked


def numbers(out: Path) -> list[dict[str, Any]]:
    """Every logged number but the times."""
    return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in read_metrics(out / "metrics.jsonl")]


def newest(out: Path) -> dict[str, torch.Tensor]:
    folder = checkpoints(out / "checkpoints")[-1]
    files = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer")}
    step = torch.tensor(json.loads((folder / "state.json").read_text())["step"])
    return {f"{file}/{n}": t for file, tensors in files.items() for n, t in tensors.items()} | {"step": step}


def assert_same_run(out: Path, finished: Path) -> None:
    """To the last bit: every metric of every step, once, the final checkpoint, and the exported model."""
    assert numbers(out) == numbers(finished)
    assert [r["step"] for r in numbers(out)] == list(range(1, 9))
    ours, theirs = newest(out), newest(finished)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    exported, expected = (load_file(folder / "model" / "model.safetensors") for folder in (out, finished))
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Run `action` when `step` (from 1) has been taken."""
    taken = iter(range(1, 1000))
    real = loop.train_step

    def wrapped(*args: Any) -> dict[str, float]:
        record = real(*args)
        if next(taken) == step:
            action()
        return record

    monkeypatch.setattr(loop, "train_step", wrapped)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 7])  # 3 has a checkpoint of its own
def test_stopped_and_resumed_is_never_stopped(
    step: int,
    number: signal.Signals,
    tiny_run: TrainConfig,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        result = train(tiny_run, tmp_path)
    assert (result.step, result.stopped) == (step, True)
    assert signal.getsignal(number) is before
    assert not (tmp_path / "model").exists()
    assert checkpoints(tmp_path / "checkpoints")[-1].name == f"step-{step:08}"
    result = train(tiny_run, tmp_path, resume=True)
    assert (result.step, result.stopped) == (8, False)
    assert_same_run(tmp_path, finished)


def test_stopped_before_its_first_step(
    tiny_run: TrainConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_signal", lambda: nullcontext(stopped))
        (stopped := Event()).set()
        result = train(tiny_run, tmp_path)
    assert (result.step, result.stopped) == (0, True)
    assert checkpoints(tmp_path / "checkpoints") == []
    train(tiny_run, tmp_path, resume=True)
    assert_same_run(tmp_path, finished)


def test_a_second_interrupt_ends_at_once(
    tiny_run: TrainConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        at_step(patch, 5, twice)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_run, tmp_path)
    assert [c.name for c in checkpoints(tmp_path / "checkpoints")] == ["step-00000003"]
    train(tiny_run, tmp_path, resume=True)
    assert_same_run(tmp_path, finished)


KILLED = """
import dataclasses, json, os, signal, sys, typing
from pathlib import Path
from plait.train import checkpoint, loop
from plait.train.config import TrainConfig

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

given = json.loads(sys.argv[1])
parts = {name: kind for name, kind in typing.get_type_hints(TrainConfig).items() if dataclasses.is_dataclass(kind)}
config = TrainConfig(**given | {name: kind(**given[name]) for name, kind in parts.items()})
if sys.argv[3] == "saving":  # the second checkpoint, with one file of three written
    save, saved = checkpoint.save_file, []
    checkpoint.save_file = lambda *args: kill() if len(saved) == 3 else saved.append(save(*args))
else:
    step, taken = loop.train_step, []
    loop.train_step = lambda *args: kill() if len(taken) == 4 else taken.append(1) or step(*args)
loop.train(config, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", ["stepping", "saving"])
def test_killed_and_resumed_is_never_stopped(
    moment: str, tiny_run: TrainConfig, finished: Path, tmp_path: Path
) -> None:
    argv = [sys.executable, "-c", KILLED, json.dumps(asdict(tiny_run)), str(tmp_path / "run"), moment]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(plait.__file__).parents[1], timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [c.name for c in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003"]
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.')  # half a line, as a crash may leave one
    train(tiny_run, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", finished)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_resuming_a_finished_run_changes_nothing(
    tiny_run: TrainConfig,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reports: list[dict[str, Any]],
) -> None:
    first = train(tiny_run, tmp_path)
    at_step(monkeypatch, 1, lambda: pytest.fail("a finished run took a step"))
    again = train(tiny_run, tmp_path, resume=True)
    assert again == first
    assert reports[0] == reports[1]
    assert_same_run(tmp_path, finished)


def test_resume_without_a_checkpoint_starts(tiny_run: TrainConfig, finished: Path, tmp_path: Path) -> None:
    train(tiny_run, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", finished)


def test_the_result_and_its_folder(tiny_run: TrainConfig, finished: Path) -> None:
    records = read_metrics(finished / "metrics.jsonl")
    assert records[0]["ce"] == pytest.approx(math.log(300), abs=0.1)  # a fresh model guesses
    assert records[-1]["ce"] < records[0]["ce"] - 0.3
    assert [r["step"] for r in records if "heldout_loss" in r] == [4, 8]
    assert [r["tokens"] for r in records] == [128 * step for step in range(1, 9)]
    assert all(r["tokens_per_second"] > 0 for r in records)
    assert [c.name for c in checkpoints(finished / "checkpoints")] == ["step-00000006", "step-00000008"]
    names = {"checkpoints", "config.json", "data", "loss.png", "metrics.jsonl", "model", "report.html", "tensorboard"}
    assert {path.name for path in finished.iterdir()} == names
    model = plait.load_model(finished / "model")
    heldout = open_shards(finished / "data" / "heldout")
    assert evaluate(model, heldout, tiny_run, CPU) == records[-1]["heldout_loss"]
    assert not model.training


def test_every_part_of_the_loss_is_in_the_loss(finished: Path) -> None:
    for r in read_metrics(finished / "metrics.jsonl"):
        expected = r["ce"] + 0.01 * r["balance"] + 1e-4 * r["router_z"] + 1e-3 * r["activation"]
        assert r["loss"] == pytest.approx(expected, rel=1e-5)
        assert r["max_mamba"] == max(r[f"max/layer_{i:02}/mixer"] for i in (0, 1, 3))
        assert r["max_experts"] == max(r[f"max/layer_{i:02}/experts"] for i in (1, 3))


ARCHITECTURES = {
    "dense": {"n_experts": 1, "top_k": 1},
    "attention only": {"attn_period": 1, "attn_offset": 0},
    "Mamba only": {"attn_period": 9, "attn_offset": 8},
    "Mamba-2": {"mamba_kind": "mamba2", "d_ssm_head": 8},
    "dense attention, tied": {
        "attn_period": 1, "attn_offset": 0, "n_experts": 1, "top_k": 1, "tie_embeddings": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains_and_resumes(
    name: str, tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: ModelConfig = replace(tiny_run.model, **ARCHITECTURES[name])
    config = replace(tiny_run, model=model, steps=6, name=name)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        train(config, tmp_path)
    result = train(config, tmp_path, resume=True)
    assert result.heldout_loss < result.first_loss - 0.05
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert (records[-1]["balance"] > 0, records[-1]["max_experts"] > 0) == (model.n_experts > 1,) * 2
    assert (records[-1]["max_mamba"] > 0) == (model.n_mamba_layers > 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_precisions_train(precision: Any, tiny_run: TrainConfig, finished: Path, tmp_path: Path) -> None:
    train(replace(tiny_run, precision=precision, steps=2), tmp_path)
    ours, expected = read_metrics(tmp_path / "metrics.jsonl")[0], read_metrics(finished / "metrics.jsonl")[0]
    difference = abs(ours["ce"] / expected["ce"] - 1)
    assert difference == 0 if precision == "float32" else 0 < difference < 0.01
    assert {t.dtype for n, t in newest(tmp_path).items() if n != "step"} == {torch.float32}


def one_step(config: TrainConfig, batch: Batch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """What a step reports, and the gradients it steps with."""
    model = init_weights(LanguageModel(config.model), seed=1).train()
    gradients: dict[str, torch.Tensor] = {}

    class Kept(AdamW):
        def step(self, factor: torch.Tensor | None = None) -> None:  # type: ignore[override]
            assert factor is not None
            gradients.update({n: p.grad * factor for n, p in model.named_parameters() if p.grad is not None})

    optimizer = Kept([{"params": list(model.parameters()), "weight_decay": 0.0}], config.optim)
    return train_step(model, optimizer, batch, config, CPU), gradients


@pytest.fixture(scope="module")
def uneven(tiny_run: TrainConfig, finished: Path) -> Batch:
    """Rows with 31, 10, no and 25 labels."""
    batch = Loader(open_shards(finished / "data" / "train"), seq=32, batch=4, seed=0).batch(0)
    for row, kept in enumerate((31, 10, 0, 25)):
        batch.labels[row, kept:] = IGNORE
    return batch


@pytest.mark.parametrize("accumulate", [2, 4])
def test_passes_add_up_to_the_batch(accumulate: int, uneven: Batch, tiny_run: TrainConfig) -> None:
    # The balance loss is a product of means over a pass, so it (alone) differs between passes and the batch.
    config = replace(
        tiny_run,
        losses=replace(tiny_run.losses, balance=0.0),
        optim=replace(tiny_run.optim, grad_clip=math.inf),
    )
    whole, expected = one_step(config, uneven)
    parts, gradients = one_step(replace(config, accumulate=accumulate), uneven)
    for name in ("loss", "ce", "router_z", "activation", "grad_norm", "max_mamba", "max/layer_03/experts"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4), name
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-7)
    assert parts["balance"] == pytest.approx(whole["balance"], rel=0.1)


def test_the_loss_is_a_mean_over_the_labels_of_the_batch(uneven: Batch, tiny_run: TrainConfig) -> None:
    model = init_weights(LanguageModel(tiny_run.model), seed=1)
    ((token_ids, labels, lengths),) = tensors_of(uneven, 1, CPU)
    logprobs = model(token_ids, Layout.packed(lengths, 32)).logits.log_softmax(-1)
    there = [(r, t) for r in range(4) for t in range(32) if labels[r, t] != IGNORE]
    expected = -sum(float(logprobs[r, t, labels[r, t]].detach()) for r, t in there) / len(there)
    for accumulate in (1, 4):
        record, _ = one_step(replace(tiny_run, accumulate=accumulate), uneven)
        assert record["ce"] == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_labels_is_harmless(uneven: Batch, tiny_run: TrainConfig) -> None:
    empty = replace(uneven, labels=uneven.labels * 0 + IGNORE)
    for accumulate in (1, 2):
        record, gradients = one_step(replace(tiny_run, accumulate=accumulate), empty)
        assert record["ce"] == 0
        assert math.isfinite(record["loss"])
        assert all(torch.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("batch", [1, 4, 5, 64])
def test_evaluation_does_not_depend_on_the_batch(batch: int, tiny_run: TrainConfig, finished: Path) -> None:
    model = plait.load_model(finished / "model")
    heldout = open_shards(finished / "data" / "heldout")
    expected = read_metrics(finished / "metrics.jsonl")[-1]["heldout_loss"]
    config = replace(tiny_run, batch=batch)
    assert sum(len(token_ids) for token_ids, _, _ in heldout_rows(heldout, config, CPU)) == 6
    assert evaluate(model, heldout, config, CPU) == pytest.approx(expected, rel=1e-6)
    everything = replace(config, eval_rows=10_000)
    n_labels = sum(int((labels != IGNORE).sum()) for _, labels, _ in heldout_rows(heldout, everything, CPU))
    assert n_labels == heldout.n_tokens - heldout.n_documents


def poison(real: Callable[..., Any], where: str) -> Callable[..., Any]:
    calls = iter(range(1000))

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        value = real(*args, **kwargs)
        if next(calls) < 4 or not torch.is_grad_enabled():
            return value
        return (value[0] * math.nan, value[1]) if where == "loss" else value * math.nan

    return spoiled


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_diverges_leaves_the_last_good_checkpoint(
    where: str, tiny_run: TrainConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_run, eval_every=100)
    with monkeypatch.context() as patch:
        if where == "loss":
            patch.setattr(Plan, "next_token_sums", poison(Plan.next_token_sums, where))
        else:
            patch.setattr(Plan, "gradient_norm", poison(Plan.gradient_norm, where))
        with pytest.raises(FloatingPointError, match=r"step 5: loss .*nan.*lower optim.lr"):
            train(config, tmp_path)
    assert [c.name for c in checkpoints(tmp_path / "checkpoints")] == ["step-00000003"]
    assert all(torch.isfinite(t).all() for t in newest(tmp_path).values())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["step"] for line in lines] == [1, 2, 3, 4]
    train(config, tmp_path, resume=True)
    ours, theirs = newest(tmp_path), newest(finished)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_step_that_spoils_the_weights_is_never_saved(tiny_run: TrainConfig, tmp_path: Path) -> None:
    config = replace(tiny_run, optim=replace(tiny_run.optim, lr=1e38, warmup_steps=0), checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"optim\.lr"):
        train(config, tmp_path)
    for saved in checkpoints(tmp_path / "checkpoints"):
        assert all(torch.isfinite(t).all() for t in load_file(saved / "model.safetensors").values())


def test_the_rate_counts_the_steps_since_the_last_line_and_no_evaluation(
    tiny_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def spend(seconds: float, real: Callable[..., Any]) -> Callable[..., Any]:
        def spending(*args: Any, **kwargs: Any) -> Any:
            clock[0] += seconds
            return real(*args, **kwargs)

        return spending

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(loop, "train_step", spend(2.0, loop.train_step))
    monkeypatch.setattr(loop, "evaluate", spend(100.0, loop.evaluate))
    monkeypatch.setattr(loop, "save_checkpoint", spend(1000.0, loop.save_checkpoint))
    config = replace(tiny_run, log_every=3)
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        train(config, tmp_path)
    result = train(config, tmp_path, resume=True)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 3, 4, 6, 8]
    assert [r["tokens_per_second"] for r in records] == [64.0] * 5  # 128 tokens in 2 s
    assert result.tokens_per_second == 64.0


def test_another_device_than_there_is(tiny_run: TrainConfig, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        tiny_run = replace(tiny_run, device="cuda:99")
    else:
        tiny_run = replace(tiny_run, device="cuda")
    with pytest.raises(ValueError, match="CUDA"):
        train(tiny_run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_with_other_special_ids_is_refused(tiny_run: TrainConfig, tmp_path: Path) -> None:
    model = replace(tiny_run.model, bos_id=5, eos_ids=(6, 7))
    with pytest.raises(ValueError, match=r"set model\.bos_id=1 and model\.eos_ids=2"):
        train(replace(tiny_run, model=model), tmp_path)


def test_logged_steps_are_the_ones_asked_for(tiny_run: TrainConfig, tmp_path: Path) -> None:
    train(replace(tiny_run, log_every=3, eval_every=5, steps=7), tmp_path)
    steps = [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [1, 3, 5, 6, 7]


def test_a_look_at_three_steps(tiny_run: TrainConfig, tmp_path: Path) -> None:
    train(replace(tiny_run, steps=5, profile_step=2), tmp_path)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert sum("Optimizer.step" in name for name in names) == 3


def test_some_checkpoints_are_kept_for_ever(tiny_run: TrainConfig, tmp_path: Path) -> None:
    train(replace(tiny_run, checkpoint_every=1, keep_every=3), tmp_path)
    names = [c.name for c in checkpoints(tmp_path / "checkpoints")]
    assert names == [f"step-{step:08}" for step in (3, 6, 7, 8)]
