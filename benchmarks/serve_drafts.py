"""What guessing costs and brings: tokens a second of answers that copy and of answers that never do.

    python benchmarks/serve_drafts.py [--device cuda] [--model mini|demo] [--drafts 0,3,7] [--batch 1,8]

mini: layers of Jamba-1.5-Mini, int8 experts and MLPs, random weights, and an embedding and a head that make each token
say the next: `copy`, 64 ids in a circle; `new`, a circle of 4,096 ids, of which an answer sees each once. Both are
written with a certainty that no rounding touches. demo: the shipped model, greedy behind a paragraph that stands there
three times (`copy`), and sampled (`new`). A JSON line each: tokens a second from the first token on, how many times
those without guesses in the same round (median, least, most), how many tokens were guessed and right.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import cast

import torch

from plait.bench.dummy import dummy_model
from plait.config import presets
from plait.model.network import LanguageModel
from plait.serve import LLM
from plait.serve.drafts import Worth
from plait.serve.engine import Engine
from plait.serve.pools import PoolSizes
from plait.serve.request import Request
from plait.serve.runner import Runner
from plait.serve.scheduler import Limits
from plait.text import SamplingParams

NEW_TOKENS, ROOM = 192, 1024
ROUNDS = 5
CIRCLES = {"copy": 64, "new": 4096}
PARAGRAPH = (
    "The old clock in the hall struck nine, and nobody came down. She waited by the window with the letter in her "
    "hand, and read the last line of it again, though she knew it by heart. "
)


def taught(model: LanguageModel, size: int) -> None:
    """Make id t be followed by t + 1, in a circle of `size` ids. Mutates embedding and head."""
    ids = torch.arange(size, device=model.embed.weight.device)
    with torch.inference_mode():
        model.embed.weight.normal_(0, 30)
        model.head.weight.normal_(0, 0.02)
        model.head.weight[(ids + 1) % size] = model.embed.weight[ids] / 30


def measure(engine: Engine, requests: list[Request]) -> float:
    """Tokens a second of the engine with these requests at once, from the first token on."""
    for request in requests:
        engine.add(request)
    n, began = 0, 0.0
    while not engine.is_idle:
        for out in engine.step():
            began = began or time.perf_counter()
            n += len(out.token_ids)
    return n / (time.perf_counter() - began)


def compare(model: str, text: str, engines: dict[int, Engine], requests: list[Request]) -> None:
    """A round of all engines, one after the other, ROUNDS times and one before: what slows the machine down for a while
    slows all of them. Prints a line each, with the median of the rates relative to those of the first engine.
    """
    rates: dict[int, list[float]] = {n_drafts: [] for n_drafts in engines}
    before = {n_drafts: engine.stats() for n_drafts, engine in engines.items()}
    for _ in range(ROUNDS + 1):
        for n_drafts, engine in engines.items():
            rates[n_drafts].append(measure(engine, requests))
    plain = next(iter(rates.values()))
    for n_drafts, engine in engines.items():
        times = sorted(rate / reference for rate, reference in zip(rates[n_drafts][1:], plain[1:], strict=True))
        line = {
            "model": model,
            "text": text,
            "batch": len(requests),
            "n_drafts": n_drafts,
            "tokens_per_s": round(statistics.median(rates[n_drafts][1:]), 1),
            "times": round(statistics.median(times), 3),
            "from_to": [round(times[0], 3), round(times[-1], 3)],
            "guessed": engine.stats().drafts_total - before[n_drafts].drafts_total,
            "right": engine.stats().drafts_accepted_total - before[n_drafts].drafts_accepted_total,
        }
        print(json.dumps(line), flush=True)


def mini(layers: int, device: str, drafts: list[int], batches: list[int]) -> None:
    config = replace(presets["jamba-1.5-mini"], n_layers=layers)
    if device == "cpu":  # to see that it runs
        config = replace(config, d_model=256, d_ff=512, n_heads=8, n_kv_heads=2, dt_rank=16, vocab_size=8192)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.inference_mode():
        model = dummy_model(config, device, dtype, quantize="experts_int8")
    most = max(batches)
    n_slots, n_pages = 2 * most + 2, -(-ROOM // 16) * most
    engines = {}
    for n_drafts in drafts:
        runner = Runner(model, n_slots=n_slots, n_pages=n_pages, max_context=ROOM, max_running=most, n_drafts=n_drafts)
        if device == "cuda":
            runner.warm_up(512)
        sizes, limits = PoolSizes(slots=n_slots, pages=n_pages), Limits(512, most, n_drafts)
        engines[n_drafts] = Engine(runner, sizes, page_size=16, overlap=device == "cuda", limits=limits, worth=Worth())
    for text, size in CIRCLES.items():
        taught(model, size)
        for batch in batches:
            params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
            prompts = [tuple((97 * i + j) % size for j in range(128)) for i in range(batch)]
            compare("mini", text, engines, [Request(prompt, params, is_private=True) for prompt in prompts])


def demo(device: str, drafts: list[int], batches: list[int]) -> None:
    llms = {
        n: LLM("demo", device=device, n_drafts=n, max_running=max(batches), prefix_cache=False, cache_tokens=16384)
        for n in drafts
    }
    engines = {n: cast(Engine, llm.engine) for n, llm in llms.items()}
    llm = next(iter(llms.values()))
    for text in CIRCLES:
        for batch in batches:
            params = SamplingParams(temperature=0 if text == "copy" else 1, max_tokens=NEW_TOKENS, ignore_eos=True)
            prompts = [f"{i}. {PARAGRAPH * 3}" if text == "copy" else f"{i}. It was" for i in range(batch)]
            asked = [
                Request((llm.config.bos_id, *llm.prompts.encode(prompt)), replace(params, seed=i), is_private=True)
                for i, prompt in enumerate(prompts)
            ]
            compare("demo", text, engines, asked)


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["mini", "demo"], default="mini")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--drafts", type=numbers, default=[0, 3, 7])
    parser.add_argument("--batch", type=numbers, default=[1, 8])
    args = parser.parse_args()
    if args.model == "mini":
        mini(args.layers, args.device, args.drafts, args.batch)
    else:
        demo(args.device, args.drafts, args.batch)


if __name__ == "__main__":
    main()
