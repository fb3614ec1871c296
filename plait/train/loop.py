"""The one training loop: every stage is this, with another recipe (paper section 5.2), on any grid of processes."""

from __future__ import annotations

import math
import statistics
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from plait.accounting import account
from plait.data.loader import Loader
from plait.data.mixture import Mixture
from plait.data.prepare import Prepared, prepare
from plait.data.shards import TokenShards
from plait.model.checkpoint import save_model
from plait.model.linear import route_fp32_products
from plait.model.network import LanguageModel
from plait.parallel.mesh import Mesh
from plait.parallel.placement import placements
from plait.parallel.plan import Plan, parallelize
from plait.train.balance import ChoiceBias
from plait.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from plait.train.config import TrainConfig
from plait.train.ema import Ema
from plait.train.evaluation import evaluate
from plait.train.export import exported
from plait.train.graphed import Graphs
from plait.train.guard import Guard
from plait.train.lora import adapt, merge, save_adapters
from plait.train.metrics import Reporter, read_metrics
from plait.train.optimizer import AnyOptimizer, make_optimizer, set_learning_rate
from plait.train.probes import Probe, check_probe, run_probe
from plait.train.processes import Watch, joined, pick_device, stop_signal
from plait.train.profile import profiled
from plait.train.recompute import recompute
from plait.train.report import write_report
from plait.train.run_folder import check_folder, claim_folder
from plait.train.sharded_checkpoint import METADATA, ShardedCheckpoints, load_sharded
from plait.train.start import first_weights, own_weights
from plait.train.step import own_rows, train_step, whole_step
from plait.train.utilization import Clock


@dataclass(frozen=True)
class Result:
    """What a run ended with. `stopped`: a signal ended it early, after a checkpoint; resume to go on."""

    out: Path
    step: int
    stopped: bool
    first_loss: float
    heldout_loss: float
    tokens_per_second: float  # in training steps; the median of what was logged


@dataclass
class Trainee:
    """What a run changes."""

    model: LanguageModel
    plan: Plan
    optimizer: AnyOptimizer
    ema: Ema
    guard: Guard
    balance: ChoiceBias
    about: str = ""  # what a run says of it at its start

    def load(self, path: Path, guard: Guard | None = None) -> int:
        """Put a checkpoint's state in place; returns its step."""
        guard = guard or self.guard
        if (path / METADATA).exists():
            return load_sharded(path, self.model, self.optimizer, self.ema, guard, self.plan, self.balance)
        if self.plan.mesh is not None:
            raise ValueError(f"{path} was written by a run without --nproc; go on as it was started")
        return load_checkpoint(path, self.model, self.optimizer, self.ema, guard, self.balance)


def train(config: TrainConfig, out: Path, *, resume: bool = False, probe: Probe | None = None) -> Result:
    """Run `config`, writing config.json, metrics.jsonl, checkpoints/, tensorboard/, model/ (the public layout),
    loss.png and report.html. Started by torchrun, it is one of the processes of `config.parallel`.

    `resume` goes on from the newest checkpoint (or starts, if there is none) and gives the same numbers as a run never
    stopped. `probe` measures what `config.probes` asks for, before and after, on the first process. Raises ValueError
    if `out` holds another run, FloatingPointError when the loss is no longer finite.
    """
    if config.dpo.beta:
        raise ValueError("dpo.beta is set: preferences are trained on by plait.train.preferences.train_preferences")
    check_probe(config, probe)
    device = pick_device(config.device)
    if device.type == "cpu":
        route_fp32_products()
    with joined(config, device) as mesh:
        data = _claim(config, out, mesh, resume=resume)
        if mesh is None or dist.get_rank() == 0:
            run_probe(config, probe, "before", 0, out)
        if mesh is not None:
            dist.barrier()
        trainee = _trainee(config, device, mesh)
        found = checkpoints(out / "checkpoints") if resume else []
        first = trainee.load(found[-1]) if found else 0
        step = _steps(config, out, device, data, trainee, first)
        if step == config.steps:
            _export(out, config, trainee, data)
        plan = trainee.plan
        del trainee  # so that there is room for the model that probes load
        return _finish(out, config, plan, step, probe)


def _claim(config: TrainConfig, out: Path, mesh: Mesh | None, *, resume: bool) -> Prepared:
    """The run's data. The first process makes the folder and tokenizes; the others wait for it."""
    if mesh is not None and dist.get_rank() > 0:
        dist.barrier()
    else:
        check_folder(out, config, resume=resume)
    data = prepare(out / "data", **asdict(config.data), vocab_size=config.model.vocab_size)
    if mesh is None or dist.get_rank() == 0:
        _check_special_ids(config, data.train)
        claim_folder(out, config)
        if mesh is not None:
            dist.barrier()
    return data


def _trainee(config: TrainConfig, device: torch.device, mesh: Mesh | None) -> Trainee:
    is_split = mesh is not None and mesh.config.tp * mesh.config.ep > 1
    model = own_weights(config, mesh, device) if mesh is not None and is_split else first_weights(config).to(device)
    model = model.train()
    if config.precision == "bfloat16_weights":
        model.to_dtype(torch.bfloat16)
    about = str(adapt(model, config.lora, seed=config.seed)) if config.lora.rank else ""
    model = recompute(model, config.recompute, rescan=config.rescan)
    if config.compile:
        for layer in model.layers:
            layer.compile()
    if mesh is None:
        plan = Plan(table=placements(config.model))
    else:
        products = torch.bfloat16 if config.precision == "bfloat16" else None
        plan = parallelize(model, mesh, dtype=products, is_split=is_split)
    optimizer = make_optimizer(model, config.optim, plan)
    balance = ChoiceBias(model, config.losses.choice_bias, device)
    return Trainee(model, plan, optimizer, Ema(model, config.optim.ema), Guard(config.guard), balance, about)


def _steps(config: TrainConfig, out: Path, device: torch.device, data: Prepared, trainee: Trainee, first: int) -> int:
    """Train from step `first` on; returns the step it ended with."""
    plan, folder, step, saved = trainee.plan, out / "checkpoints", first, first
    loader = Loader(data.train, seq=config.seq, batch=config.batch // config.accumulate, seed=config.seed)
    clock = Clock(config, device, plan)
    graphs = None
    if config.cuda_graph and plan.mesh is None:
        model, optimizer = trainee.model, trainee.optimizer
        graphs = Graphs(lambda cuts, most: whole_step(cuts, most, model, optimizer, config, device, plan))
    sharded = None
    if plan.mesh is not None:
        sharded = ShardedCheckpoints(folder, plan, keep=config.keep_checkpoints, keep_every=config.keep_every)
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(config.hang_seconds, out, dist.get_rank() if plan.mesh else 0))
        report = stack.enter_context(
            Reporter(out, config.name, config.steps, step, speaks=plan.is_first, project=config.wandb)
        )
        stop = stack.enter_context(stop_signal())
        profiler = stack.enter_context(profiled(out / "profile", config.profile_step, step, plan.is_first))
        report.say(trainee.model.kernels())
        if trainee.about:
            report.say(trainee.about)

        def save(wait: bool) -> None:
            state = trainee.model, trainee.optimizer, trainee.ema, trainee.guard, trainee.balance
            if sharded is not None:
                sharded.save(step, *state, wait=wait)
            else:
                save_checkpoint(folder, step, *state, keep=config.keep_checkpoints, keep_every=config.keep_every)

        while step < config.steps and not _any(stop, plan, device):
            watch.alive()
            clock.start()
            lr = set_learning_rate(trainee.optimizer, config.optim, step, config.steps)
            batch = own_rows(loader, step + trainee.guard.shift, config, plan)
            most_loss = trainee.guard.most_loss
            record = train_step(trainee.model, trainee.optimizer, batch, config, device, plan, most_loss, graphs)
            clock.stop()
            profiler.step()
            step += 1
            verdict = trainee.guard.judge(step, record)
            if verdict == "rewind":
                step = saved = _rewind(folder, trainee, sharded, step)
                report.rewind(step)
                continue
            if verdict == "taken":
                trainee.ema.update(trainee.model)
                trainee.balance.after(record, step - 1, config.steps)
            report.step(step)
            last = step == config.steps
            if step % config.eval_every == 0 or last:
                record["heldout_loss"] = evaluate(trainee.model, data.heldout, config, device, plan)
            if step % config.log_every == 0 or step == 1 or "heldout_loss" in record or verdict != "taken":
                report.log({"step": step, "tokens": step * config.tokens_per_step, "lr": lr, **clock.rates(), **record})
            if step % config.checkpoint_every == 0 or last:
                save(wait=last)
                saved = step
            elif sharded is not None:
                sharded.poll()
        if saved < step:
            save(wait=True)
        if sharded is not None:
            sharded.finish()
    return step


def _rewind(folder: Path, trainee: Trainee, sharded: ShardedCheckpoints | None, step: int) -> int:
    """Back to the newest checkpoint, with the batches since then left out; returns its step."""
    if sharded is not None:
        sharded.finish()
    found = checkpoints(folder)
    if not found:
        raise FloatingPointError(
            f"step {step} went wrong and there is no checkpoint to rewind to; lower checkpoint_every"
        )
    there = Guard(trainee.guard.config)
    to = trainee.load(found[-1], there)
    trainee.guard.load(there.state(), keep_count=True)
    trainee.guard.rewound(step, to)
    return to


def _any(stop: threading.Event, plan: Plan, device: torch.device) -> bool:
    """Whether any process was told to stop: all must end after the same step."""
    return bool(plan.largest(torch.tensor(float(stop.is_set()), device=device))) if plan.mesh else stop.is_set()


def _check_special_ids(config: TrainConfig, tokens: TokenShards | Mixture) -> None:
    """What begins and ends the documents must be what the model's config.json will say begins and ends them."""
    bos_id, eos_id = tokens.metadata.bos_id, tokens.metadata.eos_id
    if bos_id != config.model.bos_id or eos_id not in config.model.eos_ids:
        raise ValueError(
            f"the tokenizer has bos {bos_id} and eos {eos_id}, the model bos_id={config.model.bos_id} and "
            f"eos_ids={config.model.eos_ids}; set model.bos_id={bos_id} and model.eos_ids={eos_id}"
        )


def _finish(out: Path, config: TrainConfig, plan: Plan, step: int, probe: Probe | None) -> Result:
    stopped = step < config.steps
    if plan.mesh is not None:
        dist.barrier()
    if not stopped and plan.is_first:
        run_probe(config, probe, "after", step, out)
    records = read_metrics(out / "metrics.jsonl")
    heldout = [r["heldout_loss"] for r in records if "heldout_loss" in r]
    rates = [r["tokens_per_second"] for r in records[1:] or records]  # the first step warms up
    result = Result(
        out,
        step,
        stopped=stopped,
        first_loss=records[0]["ce"] if records else math.nan,
        heldout_loss=heldout[-1] if heldout else math.nan,
        tokens_per_second=statistics.median(rates) if rates else math.nan,
    )
    if not stopped and plan.is_first:
        shape = account(config.model, config.name, context=config.seq)
        summary: dict[str, Any] = {
            "parameters": shape.total_params,
            "active parameters": shape.active_params,
            "tokens": step * config.tokens_per_step,
            "held-out loss": result.heldout_loss,
            "tokens per second": result.tokens_per_second,
            "FLOP per second": result.tokens_per_second * shape.flops.training,
        }
        write_report(out, asdict(config), summary)
    return result


def _export(out: Path, config: TrainConfig, trainee: Trainee, data: Prepared) -> None:
    """model/, model-ema/ if there is an average, and adapters. Every process takes part, the first one writes."""
    if config.lora.rank:
        save_adapters(trainee.model, out / "adapters.safetensors")
        merge(trainee.model)

    def write(folder: Path) -> None:
        whole = exported(trainee.model, trainee.plan)
        if whole is not None:
            save_model(whole, folder, beside=data.tokenizer)

    write(out / "model")
    if trainee.ema.weights:
        with trainee.ema.swapped_in(trainee.model):
            write(out / "model-ema")
