"""`make demo`: the whole path on one screen. Train a tiny hybrid mixture of experts, quantize it, generate from both
precisions.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from plait.data.shards import TokenShards, open_shards
from plait.model import init_weights
from plait.model.checkpoint import load_model, save_model
from plait.model.losses import IGNORE, next_token_loss
from plait.model.network import LanguageModel
from plait.quant import quantize
from plait.quant.experts_int8 import weight_bytes
from plait.recipes.tiny import tiny_cpu
from plait.serve import LLM
from plait.text import SamplingParams
from plait.train.config import TrainConfig, with_settings
from plait.train.evaluation import evaluate, heldout_rows
from plait.train.loop import train
from plait.train.metrics import read_metrics

PROMPT = "Emma was very glad to see"


@dataclass(frozen=True)
class Agreement:
    """Two models on the same held-out tokens: their losses, how often they prefer the same token, and their
    divergence.
    """

    full_loss: float
    int8_loss: float
    same_choice: float
    divergence: float  # KL(full || int8), nats per token


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe, e.g. steps=20"
    )
    args = parser.parse_args(arguments)
    try:
        return _run(with_settings(tiny_cpu(), args.set), args.out)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(config: TrainConfig, out: Path) -> int:
    screen = Console(markup=False, highlight=False)  # generated text may hold [brackets]
    started = time.perf_counter()

    screen.rule("1. train")
    result = train(config, out, resume=True)
    if result.stopped:
        screen.print("stopped; `make demo` goes on from here")
        return 130
    screen.rule("2. quantize (ExpertsInt8: experts and MLPs)")
    full, int8_folder = load_model(out / "model"), out / "model-int8"
    before = weight_bytes(full)
    int8 = quantize(load_model(out / "model"))
    save_model(int8, int8_folder, beside=out / "model")
    after = weight_bytes(int8)
    screen.print(f"{before.total:,} bytes of weights became {after.total:,}; saved in {int8_folder}")
    heldout = open_shards(out / "data" / "heldout")
    untrained = init_weights(LanguageModel(config.model), seed=config.seed)
    untrained_loss = evaluate(untrained, heldout, config, torch.device("cpu"))
    agreement = compare(full, int8, heldout, config)

    screen.rule("3. generate")
    rates = {}
    for name, folder in (("float32", out / "model"), ("int8 experts", int8_folder)):
        text, rates[name] = sample(folder)
        screen.print(Panel(text, title=name, title_align="left", box=box.ROUNDED))

    screen.rule("4. what happened")
    records = read_metrics(out / "metrics.jsonl")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    first = records[0]["ce"]
    table.add_row("loss on training text, nats per token", f"{first:.3f}", f"{records[-1]['ce']:.3f}")
    table.add_row("loss on held-out text", f"{untrained_loss:.3f}", f"{agreement.full_loss:.3f}")
    table.add_row("loss on held-out text, int8", "", f"{agreement.int8_loss:.3f}")
    table.add_row("bytes of all weights, float32 to int8 experts", f"{before.total:,}", f"{after.total:,}")
    table.add_row("bytes of experts and MLPs", f"{before.feed_forward:,}", f"{after.feed_forward:,}")
    table.add_row("int8 prefers the same next token", "", f"{agreement.same_choice:.1%}")
    table.add_row("divergence of int8, nats per token", "", f"{agreement.divergence:.5f}")
    table.add_row("tokens per second, training", "", f"{result.tokens_per_second:,.0f}")
    table.add_row("tokens per second, generating", f"{rates['float32']:,.0f}", f"{rates['int8 experts']:,.0f}")
    screen.print(table)
    screen.print(f"loss curve: {out / 'loss.png'}    report: {out / 'report.html'}")
    screen.print(f"all of it took {time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads")
    return 0


@torch.inference_mode()
def compare(full: LanguageModel, int8: LanguageModel, heldout: TokenShards, config: TrainConfig) -> Agreement:
    """Both models over the first eval_rows rows of the held-out tokens."""
    sums = torch.zeros(4, dtype=torch.float64)
    count = 0
    for token_ids, labels, layout in heldout_rows(heldout, config, torch.device("cpu")):
        real = labels != IGNORE
        a, b = (model(token_ids, layout).logits[real].double().log_softmax(-1) for model in (full, int8))
        n = int(real.sum())
        same = (a.argmax(-1) == b.argmax(-1)).double().mean()
        divergence = (a.exp() * (a - b)).sum(-1).mean()
        losses = [next_token_loss(x, labels[real]) for x in (a, b)]
        sums += torch.stack([*losses, same, divergence]) * n
        count += n
    return Agreement(*(sums / count).tolist())


def sample(folder: Path, max_tokens: int = 80) -> tuple[str, float]:
    """A continuation of PROMPT, and its tokens per second."""
    llm = LLM(folder)
    params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=max_tokens, seed=1, ignore_eos=True)
    started = time.perf_counter()
    completion = llm.generate(PROMPT, params)[0]
    return PROMPT + completion.text, completion.completion_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    raise SystemExit(main())
