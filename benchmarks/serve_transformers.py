"""The engine and transformers' generate on the same weights, CPU and threads, in turns in one process.

    OMP_NUM_THREADS=2 taskset -c 2,3 python benchmarks/serve_transformers.py --folder runs/serve_transformers

Makes random weights of a shape (nothing here is about quality), saves them once, and loads that folder twice. Eight
requests go to transformers as one batch: once all of one length, which it likes best, and once of lengths from an
eighth to fifteen eighths of that, as requests are; it then pads, and runs until the last is done. Prints tokens a
second, the median of the rounds (and the spread), and how many times transformers' each is. The floor is what equal
requests would take if products ran at the rate of one large product and each decode step read every weight it needs
once, at the rate of a copy: both are measured in every round, so that they have the machine's load of the moment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from plait.accounting import decode_step_bytes, prefill_flops
from plait.bench.serve import Machine
from plait.config import ModelConfig
from plait.model.checkpoint import save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.serve.llm import LLM
from plait.text import GenerationRequest, SamplingParams

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 512, "d_ff": 2048, "n_layers": 16, "n_heads": 8, "n_kv_heads": 2, "n_experts": 8, "top_k": 2,
             "vocab_size": 65_536},
    "toy": {"d_model": 64, "d_ff": 128, "n_layers": 8, "n_heads": 4, "n_kv_heads": 2, "n_experts": 4, "top_k": 2,
            "vocab_size": 512},
}  # fmt: skip
BARS = {
    "decode, 1 request": 3.0,
    "prefill": 2.0,
    "8 equal requests": 6.0,
    "8 uneven requests": 6.0,
}  # times transformers
AT_ONCE = 8

Prompts = list[list[int]]
Generate = Callable[[Prompts, list[int]], list[list[int]]]


def ours(folder: Path, dtype: str, most: int, max_batched_tokens: int) -> Generate:
    llm = LLM(
        folder, dtype=dtype, prefix_cache=False, max_running=AT_ONCE, max_context=most,
        cache_tokens=AT_ONCE * (most + 16), max_batched_tokens=max_batched_tokens,
    )  # fmt: skip

    def generate(prompts: Prompts, new: list[int]) -> list[list[int]]:
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in new]
        asked = [GenerationRequest(token_ids=p, sampling=s) for p, s in zip(prompts, params, strict=True)]
        return [list(done.token_ids) for done in llm.generate(asked)]

    return generate


def theirs(folder: Path, dtype: str) -> Generate:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def generate(prompts: Prompts, new: list[int]) -> list[list[int]]:
        longest, n = max(map(len, prompts)), max(new)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False,
                                 pad_token_id=0)  # fmt: skip
        return [answer[:m] for answer, m in zip(out[:, longest:].tolist(), new, strict=True)]

    return generate


def floor(config: ModelConfig, dtype: str, context: int, new: int) -> float:
    """Tokens a second of equal requests, if nothing but products and reading weights took time."""
    width = 4 if dtype == "float32" else 2
    machine = Machine.measured(torch.device("cpu"), getattr(torch, dtype))
    step_bytes = decode_step_bytes(config, context + new // 2, "bf16", AT_ONCE) * width / 2
    flops = AT_ONCE * context * prefill_flops(config, context)
    return AT_ONCE * new / (flops / machine.flops + (new - 1) * step_bytes / machine.bandwidth)


def timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def uneven(mean: int) -> list[int]:
    """A length for each of the requests, an eighth to fifteen eighths of the mean."""
    return [max(1, mean * (2 * i + 1) // AT_ONCE) for i in range(AT_ONCE)]


def one_round(generate: Generate, prompts: Prompts, context: int, new: int) -> dict[str, float]:
    """Tokens a second of each measure."""
    short, long = [prompts[0][:context]], [prompts[0]]
    whole, first = timed(lambda: generate(short, [new])), timed(lambda: generate(short, [1]))
    equal = [prompt[:context] for prompt in prompts]
    mixed = [prompt[:n] for prompt, n in zip(prompts, uneven(context), strict=True)]
    ends = uneven(new)[::-1]
    return {
        "decode, 1 request": (new - 1) / (whole - first),
        "prefill": len(prompts[0]) / timed(lambda: generate(long, [1])),
        "8 equal requests": AT_ONCE * new / timed(lambda: generate(equal, [new] * AT_ONCE)),
        "8 uneven requests": sum(ends) / timed(lambda: generate(mixed, ends)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--folder", type=Path, default=Path("runs/serve_transformers"), help="where the model is kept")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--prompt", type=int, default=512, help="tokens of the prompt that is only prefilled, at least 2 CONTEXT"
    )
    parser.add_argument("--context", type=int, default=128, help="tokens before the decoded ones")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--max-batched-tokens", type=int, default=2048)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.folder / options.shape
    if not folder.exists():
        save_model(init_weights(LanguageModel(ModelConfig(dtype="float32", **SHAPES[options.shape])), seed=0), folder)
    generator = torch.Generator().manual_seed(0)
    vocab_size = SHAPES[options.shape]["vocab_size"]
    prompts = torch.randint(16, vocab_size, (AT_ONCE, options.prompt), generator=generator).tolist()
    sides = {
        "plait": ours(folder, options.dtype, options.prompt + 2 * options.new, options.max_batched_tokens),
        "transformers": theirs(folder, options.dtype),
    }
    context = [prompt[: options.context] for prompt in prompts]
    answers = [generate(context, [options.new] * AT_ONCE) for generate in sides.values()]  # warms up too
    alike = sum(a == b for a, b in zip(*answers, strict=True))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    floors = []
    for _ in range(options.rounds):
        floors.append(floor(ModelConfig(**SHAPES[options.shape]), options.dtype, options.context, options.new))
        for name, generate in sides.items():
            found[name].append(one_round(generate, prompts, options.context, options.new))
            print(f"{name:13}", {key: round(value, 1) for key, value in found[name][-1].items()}, flush=True)
    print(f"\n{alike} of {AT_ONCE} greedy answers are the same\n")
    print("| tokens/s | plait | transformers | times | bar |\n|---|---|---|---|---|")
    for name, bar in BARS.items():
        columns = [[one[name] for one in rounds] for rounds in found.values()]
        mine, rival = (statistics.median(column) for column in columns)
        cells = [f"{statistics.median(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns]
        print(f"| {name} | {cells[0]} | {cells[1]} | {mine / rival:.2f} | {bar:g} |")
    least = statistics.median(floors)
    ours_of_it = statistics.median(one["8 equal requests"] for one in found["plait"]) / least
    print(f"\nfloor of 8 equal requests: {least:.1f} tokens/s ({min(floors):.1f} to {max(floors):.1f}); "
          f"plait reaches {ours_of_it:.0%}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({"alike": alike, "floor": floors, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
