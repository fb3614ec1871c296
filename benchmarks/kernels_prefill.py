"""Where the time of a prefill goes: kernels a layer, their time, the host's time to launch them, compiling.

    python benchmarks/kernels_prefill.py [--tokens 1024,8192] [--layers 8]

One period of Jamba-1.5-Mini (8 layers: 7 Mamba, 1 attention, 4 of them with experts) with int8 experts and MLPs and
random weights, through the same fixed calls that serving makes: pages, slots, one sequence. For each token count: the
first call (compiling, plans), then medians of the wall time, of the time the GPU works (sum of the kernels in
torch.profiler), and of the time until the host has launched everything.
"""

from __future__ import annotations

import argparse
import collections
import cProfile
import json
import pstats
import statistics
import time
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from plait.bench.dummy import dummy_model
from plait.config import presets
from plait.model.layout import Layout, Segment
from plait.model.network import LanguageModel
from plait.model.state import State
from plait.model.warm_up import warm_up


def one_prefill(model: LanguageModel, state: State, tokens: int) -> None:
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), device="cuda")
    pages = tuple(range(-(-tokens // state.page_size)))
    layout = Layout.of([Segment(0, tokens, "fresh", 0, 0, pages)], 1, tokens, torch.device("cuda"))
    model(ids, layout, state, keep="none")


def wall_ms(model: LanguageModel, state: State, tokens: int) -> tuple[float, float]:
    """Until the host is done, and until the device is."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    one_prefill(model, state, tokens)
    launched = time.perf_counter()
    torch.cuda.synchronize()
    return (launched - started) * 1e3, (time.perf_counter() - started) * 1e3


def measured(model: LanguageModel, state: State, tokens: int) -> dict[str, object]:
    first = wall_ms(model, state, tokens)[1]
    second = wall_ms(model, state, tokens)[1]
    times = [wall_ms(model, state, tokens) for _ in range(7)]
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        one_prefill(model, state, tokens)
        torch.cuda.synchronize()
    by_name: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            by_name[event.name[:60]] += event.device_time
            counts[event.name[:60]] += 1
    n_layers = model.config.n_layers
    return {
        "tokens": tokens,
        "first_ms": round(first, 1),
        "second_ms": round(second, 2),
        "host_ms": round(statistics.median(host for host, _ in times), 3),
        "wall_ms": round(statistics.median(wall for _, wall in times), 3),
        "gpu_ms": round(sum(by_name.values()) / 1e3, 3),
        "kernels_a_layer": round(sum(counts.values()) / n_layers, 1),
        "top": [(name, counts[name], round(us / 1e3, 3)) for name, us in by_name.most_common(18)],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=lambda s: [int(n) for n in s.split(",")], default=[1024, 1000, 2000, 8192])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--warm-up", type=int, metavar="TOKENS", help="first what an engine runs at its start, timed")
    parser.add_argument("--host", action="store_true", help="also where the host's time goes at the first token count")
    args = parser.parse_args()
    config = replace(presets["jamba-1.5-mini"], n_layers=args.layers)
    with torch.inference_mode():
        model = dummy_model(config, "cuda", torch.bfloat16, quantize="experts_int8")
        n_pages = max([*args.tokens, args.warm_up or 0]) // 16 + 2
        state = State.empty(config, n_slots=2, n_pages=n_pages, dtype=model.dtype, device=torch.device("cuda"))
        if args.warm_up:
            started = time.perf_counter()
            warm_up(model, state, args.warm_up)
            torch.cuda.synchronize()
            print(json.dumps({"warm_up": args.warm_up, "s": round(time.perf_counter() - started, 2)}), flush=True)
        for tokens in args.tokens:
            print(json.dumps(measured(model, state, tokens)), flush=True)
        if args.host:
            with cProfile.Profile() as profiled:
                for _ in range(20):
                    wall_ms(model, state, args.tokens[0])
            pstats.Stats(profiled).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
