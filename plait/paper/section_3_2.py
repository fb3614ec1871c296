"""Section 3.2: the activation loss, on a small model that was driven to activations beyond fp16.

The shipped model is trained with a reward for large outputs of its last Mamba layer and last experts, beside the
ordinary loss, until the largest passes DRIVEN. From there it trains on with the activation loss at several alpha, and
without it, on the same batches. Bars: below 3e3 within 200 steps, and then the same loss with fp16 activations as with
bf16 ones; a step less than 1 % dearer.

Whether the term harms a model is asked of a healthy one: driving had raised the loss, and what repairs it looks like a
gain. So the shipped model trains on as it is, too, with and without the term, and once more without it on other
batches, which says how much such a difference is worth. Bar: held-out loss within 0.2 % of the run without it.
"""

from __future__ import annotations

import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plait

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from plait.data.prepare import Prepared
    from plait.model.network import LanguageModel
    from plait.train.config import TrainConfig

DRIVEN, WANTED = 1.5e5, 3e3
REWARD = 0.03  # of the logarithm of a site's mean square, while driving
PAPER = {"alpha": 1e-5, "before": 4e6, "after": 3e3}
GENTLE_LR = 1e-4  # at which the healthy model stays healthy; what repairs the driven one is 2e-3
FIRST_BATCH = 10_000  # after those that drove the model
DEMO = Path(plait.__file__).parent / "demo"


@dataclass(frozen=True)
class Options:
    """scale `tiny`: 256 tokens a step, two values of alpha, some minutes on a CPU; `full`: 4096 tokens, three."""

    scale: str = "tiny"
    device: str = "cpu"
    drive: int = 400  # steps at most
    steps: int = 200

    def __post_init__(self) -> None:
        if self.scale not in ("tiny", "full"):
            raise ValueError(f"scale={self.scale!r} must be 'tiny' or 'full'")

    @property
    def alphas(self) -> tuple[float, ...]:
        return (0.0, 1e-5, 1e-3) if self.scale == "tiny" else (0.0, 1e-5, 1e-4, 1e-3)


def measure(options: Options, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The data: the drive, a curve for each alpha, the losses in three precisions, and what a step costs."""
    import torch

    from plait.data.prepare import prepare
    from plait.train.start import first_weights

    say = say or (lambda _text: None)
    config, device = _config(options), torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        text: dict[str, Any] = {"train": "default", "heldout": "default", "tokenizer": str(DEMO)}
        data = prepare(Path(folder) / "data", **text, vocab_size=config.model.vocab_size)
        model = first_weights(config).to(device).train()
        began = _heldout(model, data, config, device)
        first = copy.deepcopy(model)
        drive = list(_drive(model, data, config, device, options.drive))
        say(f"driven to {drive[-1]['max']:.3g} in {len(drive)} steps")
        driven = _evaluated(model, data, config, device)
        runs: list[dict[str, Any]] = []
        for alpha in options.alphas:
            own = copy.deepcopy(model)
            curve = list(_train(own, data, config, device, alpha, options.steps))
            runs.append({"alpha": alpha, "curve": curve, **_evaluated(own, data, config, device)})
            say(f"alpha {alpha:g}: largest {curve[-1]['max']:.4g}, held-out {runs[-1]['heldout_float32']:.4f}")
        healthy = _healthy(first, data, config, device, options, say)
        cost = _cost(first, data, config, device)
    plain = runs[0]["heldout_float32"]
    for run in runs:
        sizes = [point["max"] for point in run["curve"]]
        run["steps_to_3e3"] = next((i + 1 for i, size in enumerate(sizes) if size < WANTED), None)
        run["loss_change"] = run["heldout_float32"] / plain - 1
    return {
        "heldout_at_first": began, "healthy": healthy, "drive": drive, "driven": driven, "runs": runs,
        "step_cost": cost, "paper": PAPER,
        "conditions": {
            "model": "demo", "device": options.device, "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__, "threads": torch.get_num_threads(), "tokens_per_step": config.tokens_per_step,
            "steps": options.steps,
        },
    }  # fmt: skip


def _config(options: Options) -> TrainConfig:
    from plait.recipes.tiny import demo
    from plait.train.config import OptimConfig

    seq, batch = (64, 4) if options.scale == "tiny" else (512, 8)
    return replace(
        demo(), start=str(DEMO), seq=seq, batch=batch, steps=options.steps, eval_rows=64, device=options.device,
        optim=OptimConfig(lr=2e-3, warmup_steps=1, schedule="wsd", decay_share=0.5, final_share=0.02, weight_decay=0.0),
    )  # fmt: skip


def _drive(
    model: LanguageModel, data: Prepared, config: TrainConfig, device: torch.device, most: int
) -> Iterator[dict[str, float]]:
    """Train for large activations too; ends when the largest passes DRIVEN. Mutates the model."""
    from plait.parallel.plan import Plan
    from plait.train.config import LossConfig
    from plait.train.optimizer import adamw
    from plait.train.step import clip_factor, pass_loss

    optimizer, plan = adamw(model, config.optim), Plan()
    kinds = config.model.layer_kinds()
    last_mamba = max(i for i, kind in enumerate(kinds) if kind.mixer != "attention")
    last_experts = max(i for i, kind in enumerate(kinds) if kind.ffn == "moe")
    for step in range(most):
        token_ids, labels, layout = plan.cut(*_rows(data, config, device, step))
        n_labels = (labels >= 0).sum()
        found = pass_loss(model, plan, token_ids, labels, layout, LossConfig(activation=1e-30), n_labels=n_labels)
        experts = found.stats[last_experts].experts
        assert experts is not None
        sizes = found.stats[last_mamba].mixer, experts
        (found.loss - REWARD * sum(size.mean_square.log() for size in sizes)).backward()
        optimizer.step(clip_factor(plan.gradient_norm(model), config.optim.grad_clip))
        optimizer.zero_grad(set_to_none=True)
        largest = max(float(size.max_abs) for size in sizes)
        yield {"max": largest, "ce": float(found.parts["ce"])}
        if largest > DRIVEN:
            return
    raise ValueError(f"{most} steps did not drive the model to {DRIVEN:g}; give more")


def _healthy(
    model: LanguageModel,
    data: Prepared,
    config: TrainConfig,
    device: torch.device,
    options: Options,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """What the term does to a model that doesn't need it: for each alpha, and for none on other batches (`noise`), the
    held-out loss after as many steps, and its change against none.
    """
    config = replace(config, optim=replace(config.optim, lr=GENTLE_LR))
    runs: list[dict[str, Any]] = []
    for alpha, first in (*((alpha, FIRST_BATCH) for alpha in options.alphas), (0.0, 2 * FIRST_BATCH)):
        own = copy.deepcopy(model)
        largest = [point["max"] for point in _train(own, data, config, device, alpha, options.steps, first)]
        loss = _heldout(own, data, config, device)
        change = loss / (runs[0]["heldout"] if runs else loss) - 1
        runs.append(
            {"alpha": alpha, "noise": first != FIRST_BATCH, "heldout": loss, "change": change, "max": largest[-1]}
        )
        say(f"healthy, alpha {alpha:g}: held-out {loss:.4f} ({change:+.3%})")
    return runs


def _train(
    model: LanguageModel,
    data: Prepared,
    config: TrainConfig,
    device: torch.device,
    alpha: float,
    steps: int,
    first: int = FIRST_BATCH,
) -> Iterator[dict[str, float]]:
    """The loop's own steps, with the activation loss at alpha, on batches from `first` on. Mutates the model."""
    from plait.train.optimizer import adamw, set_learning_rate
    from plait.train.step import train_step

    config = replace(config, losses=replace(config.losses, activation=alpha))
    optimizer = adamw(model, config.optim)
    for step in range(steps):
        set_learning_rate(optimizer, config.optim, step, steps)
        record = train_step(model, optimizer, _batch(data, config, first + step), config, device)
        yield {"max": max(record["max_mamba"], record["max_experts"]), "ce": record["ce"]}


def _cost(model: LanguageModel, data: Prepared, config: TrainConfig, device: torch.device) -> dict[str, float]:
    """What the term adds to a step: steps with and without it by turns; the median ratio, and its spread."""
    from plait.train.optimizer import adamw
    from plait.train.step import train_step

    own = copy.deepcopy(model)
    optimizer = adamw(own, replace(config.optim, lr=1e-12))
    both = [replace(config, losses=replace(config.losses, activation=alpha)) for alpha in (0.0, 1e-5)]
    ratios = []
    for pair in range(12):
        seconds = []
        for each in both if pair % 2 else both[::-1]:
            began = time.perf_counter()
            train_step(own, optimizer, _batch(data, config, pair), each, device)
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[1] / seconds[0] if pair % 2 else seconds[0] / seconds[1])
    low, median, high = statistics.quantiles(ratios[2:], n=4)
    return {"share": median - 1, "spread": high - low}


def _batch(data: Prepared, config: TrainConfig, index: int) -> Any:
    from plait.data.loader import Loader

    return Loader(data.train, seq=config.seq, batch=config.batch, seed=config.seed).batch(index)


def _rows(data: Prepared, config: TrainConfig, device: torch.device, index: int) -> Any:
    from plait.train.step import tensors_of

    return tensors_of(_batch(data, config, index), 1, device)[0]


def _heldout(model: LanguageModel, data: Prepared, config: TrainConfig, device: torch.device) -> float:
    from plait.train.evaluation import evaluate

    return evaluate(model, data.heldout, config, device)


def _evaluated(model: LanguageModel, data: Prepared, config: TrainConfig, device: torch.device) -> dict[str, float]:
    """The held-out loss as the model is, and with weights and activations in bf16 and in fp16."""
    import torch

    found = {}
    for name in ("float32", "bfloat16", "float16"):
        copied = copy.deepcopy(model).to_dtype(getattr(torch, name))
        found[f"heldout_{name}"] = _heldout(copied, data, config, device)
    return found


def show(console: Console, data: dict[str, Any]) -> None:
    from plait.cli.screen import table

    driven = data["driven"]
    made = table("section 3.2", "largest", "below 3e3 after", "held-out", "change", "bf16", "fp16")
    made.add_row("driven", f"{data['drive'][-1]['max']:.3g}", "", *_losses(driven, ""))
    for run in data["runs"]:
        steps = run["steps_to_3e3"]
        made.add_row(
            f"alpha {run['alpha']:g}", f"{run['curve'][-1]['max']:.4g}", "never" if steps is None else f"{steps} steps",
            *_losses(run, f"{run['loss_change']:+.2%}"),
        )  # fmt: skip
    for run in data["healthy"]:
        label = "other batches" if run["noise"] else f"alpha {run['alpha']:g}"
        made.add_row(
            f"healthy, {label}", f"{run['max']:.4g}", "", f"{run['heldout']:.4f}", f"{run['change']:+.3%}", "", ""
        )
    console.print(made)
    cost, paper = data["step_cost"], data["paper"]
    console.print(f"a step costs {cost['share']:+.1%} (quartiles {cost['spread']:.1%} apart)")
    console.print(
        f"paper: from {paper['before']:g} to {paper['after']:g} at alpha {paper['alpha']:g}, at its own scale"
    )
    console.print(", ".join(f"{name} {value}" for name, value in data["conditions"].items()))


def _losses(run: dict[str, Any], change: str) -> tuple[str, ...]:
    wide, narrow, half = (run[f"heldout_{name}"] for name in ("float32", "bfloat16", "float16"))
    return f"{wide:.4f}", change, f"{narrow:.4f}", f"{half:.4f}"


def draw(data: dict[str, Any], path: Path) -> None:
    """Largest activation and loss by step, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    n = len(data["drive"])
    for axes, key in ((above, "max"), (below, "ce")):
        axes.plot(range(1 - n, 1), [p[key] for p in data["drive"]], color="#888", label="driven")
        for run, color in zip(data["runs"], ("#e45756", "#4c78a8", "#54a24b", "#b279a2"), strict=False):
            axes.plot(range(1, len(run["curve"]) + 1), [p[key] for p in run["curve"]], color=color, linewidth=1.3,
                      label=f"alpha {run['alpha']:g}")  # fmt: skip
        axes.grid(alpha=0.25)
    above.set_yscale("log")
    above.axhline(65504, color="black", linestyle=":", linewidth=1)
    above.axhline(WANTED, color="black", linestyle="--", linewidth=1)
    above.set_ylabel("largest activation (dotted: fp16's limit)")
    above.legend(frameon=False)
    below.set_ylabel("cross entropy, nats")
    below.set_xlabel("step")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=130)
    partial.replace(path)
