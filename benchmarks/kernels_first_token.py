"""How long one step with a prompt takes through the Runner, launched kernel by kernel and as a graph; and the start-up.

    python benchmarks/kernels_first_token.py [--tokens 1024,1000,300] [--layers 8] [--decoding 0,8]

Layers of Jamba-1.5-Mini (one period is 8: 7 Mamba, 1 attention, 4 with experts), int8 experts and MLPs, random weights.
A step is a new prompt, with a state exported near its end as the prefix cache asks for it, beside rows that decode;
medians of 9 of the time from its launch to its drawn token on the host, a JSON line each. `first_ms`: the first such
step after warm_up, which must not compile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch

from plait.bench.dummy import dummy_model
from plait.config import presets
from plait.model.network import LanguageModel
from plait.serve.plan import Row, Start, StepPlan
from plait.serve.runner import Runner
from plait.text import SamplingParams

PAGES = 160  # of a sequence: room for 2,560 tokens
GREEDY = SamplingParams(temperature=0)


def start(sequence: int, prompt: tuple[int, ...]) -> Start:
    return Start(sequence, prompt, GREEDY, frozenset(), 0, None)


class Steps:
    """Rows that decode in slots 1 and up, and one new prompt after another in slot 0; exports go to the last slot."""

    def __init__(self, runner: Runner, n_decoding: int) -> None:
        self.runner, self.n_decoding, self.number = runner, n_decoding, 0
        self.pages = [list(range(PAGES * i, PAGES * (i + 1))) for i in range(n_decoding + 1)]
        prompts = {i: tuple(range(1, 20)) for i in range(1, n_decoding + 1)}
        if prompts:
            rows = [Row(i, "fresh", 19, 0, i, self.pages[i], p, True) for i, p in prompts.items()]
            runner.launch(StepPlan(0, rows, started=[start(i, p) for i, p in prompts.items()]))
            runner.collect()

    def ms(self, n_tokens: int) -> float:
        self.number += 1
        sequence, prompt = 100 + self.number, tuple((7 * j + self.number) % 60_000 for j in range(n_tokens))
        decode = [
            Row(i, "decode", 1, 18 + self.number, i, self.pages[i], None, True) for i in range(1, self.n_decoding + 1)
        ]
        kept = (n_tokens - 1) // 16 * 16
        export = (kept, self.n_decoding + 1) if kept else None
        row = Row(sequence, "fresh", n_tokens, 0, 0, self.pages[0], prompt, True, export=export)
        plan = StepPlan(self.number, [*decode, row], started=[start(sequence, prompt)], released=[sequence - 1])
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.runner.launch(plan)
        self.runner.collect()
        return (time.perf_counter() - started) * 1e3


def measure(model: LanguageModel, tokens: list[int], decoding: list[int], static: bool | None) -> None:
    runner = Runner(
        model, n_slots=max(decoding) + 2, n_pages=PAGES * (max(decoding) + 1), max_context=PAGES * 16, max_running=16,
        static=static,
    )  # fmt: skip
    started = time.perf_counter()
    before = torch.cuda.memory_reserved()
    runner.warm_up(2048)
    torch.cuda.synchronize()
    gib = (torch.cuda.memory_reserved() - before) / 2**30
    line = {"kept": static is None, "warm_up_s": round(time.perf_counter() - started, 2), "gib": round(gib, 2)}
    print(json.dumps(line | {"why_not": [graphs.why_not for graphs in runner.prefills]}), flush=True)
    for n_decoding in decoding:
        steps = Steps(runner, n_decoding)
        for n in tokens:
            first, *times = (steps.ms(n) for _ in range(10))
            line = {"kept": static is None, "decoding": n_decoding, "tokens": n, "first_ms": round(first, 2)}
            line |= {"ms": round(statistics.median(times), 2), "most_ms": round(max(times), 2)}
            print(json.dumps(line), flush=True)
        runner.reset()


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=numbers, default=[1024, 1000, 300, 40, 2048])
    parser.add_argument("--decoding", type=numbers, default=[0, 8])
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    config = replace(presets["jamba-1.5-mini"], n_layers=args.layers)
    with torch.inference_mode():
        model = dummy_model(config, "cuda", torch.bfloat16, quantize="experts_int8")
    for static in (None, False):
        measure(model, args.tokens, args.decoding, static)


if __name__ == "__main__":
    main()
