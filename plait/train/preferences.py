"""A run of DPO (train/dpo.py): a model that is there, a file of pairs, and the optimizer, schedule, checkpoints and
metrics of every run. One process; all weights, or adapters (`lora`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data.preferences import Pair, read_pairs
from plait.model.checkpoint import save_model
from plait.model.linear import route_fp32_products
from plait.model.network import LanguageModel
from plait.parallel.placement import placements
from plait.parallel.plan import Plan
from plait.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from plait.train.config import TrainConfig
from plait.train.dpo import answer_log_probs, dpo_loss, reference
from plait.train.guard import Guard
from plait.train.loop import Result
from plait.train.lora import adapt, merge, save_adapters
from plait.train.metrics import Reporter, read_metrics
from plait.train.optimizer import AnyOptimizer, make_optimizer, set_learning_rate
from plait.train.processes import pick_device, stop_signal
from plait.train.recompute import recompute
from plait.train.report import write_report
from plait.train.run_folder import check_folder, claim_folder
from plait.train.start import first_weights
from plait.train.step import autocast, clip_factor


def train_preferences(config: TrainConfig, out: Path, *, resume: bool = False) -> Result:
    """Run `config`, whose data.train (and data.heldout, unless it is "default") are files of pairs: writes what every
    run writes. `first_loss` is the first step's, `heldout_loss` that of the held-out pairs, or nan.

    Raises ValueError if `out` holds another run, and for pairs that can't be read.
    """
    check_folder(out, config, resume=resume)
    device = pick_device(config.device)
    if device.type == "cpu":
        route_fp32_products()
    words = Path(config.start if config.data.tokenizer == "train" else config.data.tokenizer)
    pairs, heldout = (
        [] if name == "default" else read_pairs(Path(name), words, most_tokens=config.seq)
        for name in (config.data.train, config.data.heldout)
    )
    if not pairs:
        raise ValueError("data.train=default: give a file of pairs, one JSON object a line: prompt, chosen, rejected")
    model = first_weights(config).to(device).train()
    if config.precision == "bfloat16_weights":
        model.to_dtype(torch.bfloat16)
    about = str(adapt(model, config.lora, seed=config.seed)) if config.lora.rank else ""
    claim_folder(out, config)
    compared = {"train": reference(model, pairs), "heldout": reference(model, heldout) if heldout else None}
    model = recompute(model, config.recompute, rescan=config.rescan)
    optimizer = make_optimizer(model, config.optim, Plan(table=placements(config.model)))
    found = checkpoints(out / "checkpoints") if resume else []
    guard = Guard(config.guard)
    first = load_checkpoint(found[-1], model, optimizer, None, guard) if found else 0
    step = _steps(config, out, device, model, optimizer, guard, (pairs, heldout), compared, first, about)
    return _finish(config, out, model, step, words)


def _steps(
    config: TrainConfig,
    out: Path,
    device: torch.device,
    model: LanguageModel,
    optimizer: AnyOptimizer,
    guard: Guard,
    pairs: tuple[list[Pair], list[Pair]],
    compared: dict[str, Tensor | None],
    step: int,
    about: str,
) -> int:
    of_train, of_heldout = compared["train"], compared["heldout"]
    assert of_train is not None
    with ExitStack() as stack:
        report = stack.enter_context(Reporter(out, config.name, config.steps, step, speaks=True, project=config.wandb))
        stop = stack.enter_context(stop_signal())
        report.say(about or model.kernels())
        saved = step

        def save() -> None:
            keep, every = config.keep_checkpoints, config.keep_every
            save_checkpoint(out / "checkpoints", step, model, optimizer, keep=keep, keep_every=every, guard=guard)

        while step < config.steps and not stop.is_set():
            lr = set_learning_rate(optimizer, config.optim, step, config.steps)
            chosen = order(len(pairs[0]), config, step)
            record = preference_step(model, optimizer, [pairs[0][i] for i in chosen], of_train[chosen], config, device)
            step += 1
            verdict = guard.judge(step, record)
            if verdict == "rewind":
                raise FloatingPointError(f"step {step}: DPO does not rewind; set guard.action=skip or stop")
            report.step(step)
            last = step == config.steps
            if of_heldout is not None and (step % config.eval_every == 0 or last):
                with torch.no_grad(), autocast(config, device, Plan()):
                    seen = dpo_loss(reference(model, pairs[1]), of_heldout, beta=config.dpo.beta)
                record |= {"heldout_loss": float(seen.loss), "heldout_accuracy": float(seen.accuracy)}
            if step % config.log_every == 0 or step == 1 or last or "heldout_loss" in record or verdict != "taken":
                report.log({"step": step, "pairs": step * config.batch, "lr": lr, **record})
            if step % config.checkpoint_every == 0 or last:
                save()
                saved = step
        if saved < step:
            save()
    return step


def order(n_pairs: int, config: TrainConfig, step: int) -> list[int]:
    """The pairs of a step: all of them in an order of their own for every pass over them."""
    places = range(step * config.batch, (step + 1) * config.batch)
    orders = {epoch: np.random.default_rng([config.seed, epoch]).permutation(n_pairs) for epoch in
              {place // n_pairs for place in places}}  # fmt: skip
    return [int(orders[place // n_pairs][place % n_pairs]) for place in places]


def preference_step(
    model: LanguageModel,
    optimizer: AnyOptimizer,
    pairs: Sequence[Pair],
    compared: Tensor,
    config: TrainConfig,
    device: torch.device,
) -> dict[str, Any]:
    """One optimizer step, in config.accumulate passes; `compared` [pairs, 2] is what p_0 gives. Not taken, and then
    `skipped`, when loss or gradient is not finite.
    """
    own = len(pairs) // config.accumulate
    sums: dict[str, Tensor] = {}
    for start in range(0, len(pairs), own):
        rows = slice(start, start + own)
        with autocast(config, device, Plan()):
            found = dpo_loss(answer_log_probs(model, pairs[rows]), compared[rows], beta=config.dpo.beta)
        (found.loss / config.accumulate).backward()
        for name in ("loss", "accuracy", "margin"):
            sums[name] = sums.get(name, 0.0) + getattr(found, name).detach() / config.accumulate
    norm = Plan().gradient_norm(model)
    taken = torch.isfinite(sums["loss"] + norm)
    optimizer.step(torch.where(taken, clip_factor(norm, config.optim.grad_clip), -1.0))
    optimizer.zero_grad(set_to_none=True)
    record = {name: float(value) for name, value in sums.items()} | {"grad_norm": float(norm)}
    return record if bool(taken) else {**record, "skipped": 1.0}


def _finish(config: TrainConfig, out: Path, model: LanguageModel, step: int, words: Path) -> Result:
    stopped = step < config.steps
    records = read_metrics(out / "metrics.jsonl")
    heldout = [record["heldout_loss"] for record in records if "heldout_loss" in record]
    result = Result(
        out, step, stopped=stopped, first_loss=records[0]["loss"] if records else math.nan,
        heldout_loss=heldout[-1] if heldout else math.nan, tokens_per_second=math.nan,
    )  # fmt: skip
    if not stopped:
        if config.lora.rank:
            save_adapters(model, out / "adapters.safetensors")
            merge(model)
        save_model(model, out / "model", beside=words)
        last = [record["accuracy"] for record in records[-5:]]
        write_report(out, asdict(config), {"pairs": step * config.batch, "accuracy": statistics.mean(last)})
    return result
