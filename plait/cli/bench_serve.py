"""`plait bench serve`: how fast a model answers, in this process or behind a URL."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.cli.screen import UsageError, console, print_json, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from plait.bench.load import Load
    from plait.bench.serve import Point
    from plait.serve.build import Built
    from plait.serve.options import EngineOptions


def add(subjects: Any) -> None:
    parser = subjects.add_parser("serve", help="batch sizes, contexts and request rates: latency, throughput, memory")
    parser.add_argument("model", metavar="MODEL", help="a model's folder or `demo`; with --url the served name")
    parser.add_argument("--dummy", action="store_true", help="MODEL is a preset's name: random weights of its shapes")
    parser.add_argument("--layers", type=int, help="with --dummy: of so many layers only")
    parser.add_argument("--url", help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key")
    parser.add_argument("--vocab-size", type=int, help="with --url: prompts are random token ids below it")
    parser.add_argument("--batch", default="1,8", help="requests at once, comma-separated (%(default)s)")
    parser.add_argument("--rate", help="with --url, instead of --batch: requests per second, comma-separated")
    parser.add_argument("--context", default="128,512", help="prompt tokens, comma-separated (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--requests", type=int, help="for each point (default: twice the batch, at least 4)")
    parser.add_argument("--shared", type=int, default=0, help="with --url: prompt tokens that all requests share")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's own")
    parser.add_argument("--quantize", metavar="METHOD[:LEVEL]", help="quantize while loading")
    parser.add_argument("--max-batched-tokens", type=int, default=2048, help="of one step (%(default)s)")
    parser.add_argument("--drafts", type=int, default=0, help="tokens guessed and verified at once (%(default)s)")
    parser.add_argument("--plot", metavar="PNG", help="draw throughput and latencies into this file")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    from plait.bench.serve import as_json, plot

    loads = _loads(args)
    points, conditions = [], _conditions(args)
    for point in _server(args, loads) if args.url else _engine(args, loads, conditions):
        points.append(point)
        print(f"{_what(point.load)}: done", file=sys.stderr)
    if args.plot:
        plot(points, args.plot, ", ".join(f"{name} {value}" for name, value in conditions.items()))
    if args.json:
        print_json({**conditions, "points": as_json(points)})
    else:
        console().print(_table(points))
        console().print(
            "TTFT: to the first token; ITL: between tokens; in/s, out/s: tokens a second; prefill, decode: shares of\n"
            "what this machine's measured speed allows; plan: the engine's share; medians and 99th percentiles."
        )
        console().print(", ".join(f"{name} {value}" for name, value in conditions.items()), soft_wrap=True)
        if args.plot:
            console().print(f"plot: {args.plot}")
    return 1 if any(point.figures.n_failed for point in points) else 0


def _loads(args: argparse.Namespace) -> list[Load]:
    from plait.bench.load import Load

    if args.rate and not args.url:
        raise UsageError("--rate needs a server: give its --url")
    loads = []
    for context in _numbers("--context", args.context, int):
        for value in _numbers("--rate", args.rate, float) if args.rate else _numbers("--batch", args.batch, int):
            batch = None if args.rate else int(value)
            n_requests = args.requests or max(4, 2 * (8 if batch is None else batch))
            try:
                load = Load(
                    context, args.new_tokens, n_requests, concurrency=batch,
                    rate=float(value) if args.rate else None, shared_tokens=args.shared,
                )  # fmt: skip
            except ValueError as error:
                raise UsageError(str(error)) from None
            loads.append(load)
    return loads


def _numbers(flag: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text!r} must be numbers with commas between, such as 1,8,32") from None


def _conditions(args: argparse.Namespace) -> dict[str, str]:
    import torch

    import plait

    where = {"url": args.url} if args.url else {"device": args.device, "threads": str(torch.get_num_threads())}
    return {"model": Path(args.model).name, **where, "plait": plait.__version__, "torch": torch.__version__}


def _server(args: argparse.Namespace, loads: Sequence[Load]) -> Iterator[Point]:
    from plait.bench.serve import bench_server

    if args.vocab_size is None:
        raise UsageError("--url needs --vocab-size: prompts are random token ids below it")
    return bench_server(args.url, args.model, loads, vocab_size=args.vocab_size, api_key=args.api_key)


def _engine(args: argparse.Namespace, loads: Sequence[Load], conditions: dict[str, str]) -> Iterator[Point]:
    from plait.bench.serve import Machine, bench_points, level_of
    from plait.serve.options import EngineOptions

    most = max(load.prompt_tokens for load in loads) + args.new_tokens
    batch = max(load.concurrency or 1 for load in loads)
    options = EngineOptions(
        args.model, device=args.device, dtype=args.dtype, quantize=args.quantize, max_context=most,
        max_batched_tokens=args.max_batched_tokens, max_running=batch, prefix_cache=False, n_drafts=args.drafts,
        cache_tokens=batch * (most + 16),
    )  # fmt: skip
    built = _dummy(args, options) if args.dummy else _built(options)
    device = built.model.final_norm.weight.device
    machine = Machine.measured(device, built.model.dtype)
    conditions |= {
        "dtype": str(built.model.dtype).removeprefix("torch."), "weights": level_of(built.model),
        "GB/s": f"{machine.bandwidth / 1e9:.4g}", "TFLOP/s": f"{machine.flops / 1e12:.4g}",
    }  # fmt: skip
    return bench_points(
        built.engine, built.model.config, loads, machine=machine, level=level_of(built.model), device=device
    )


def _built(options: EngineOptions) -> Built:
    from plait.serve.build import build

    return build(options)


def _dummy(args: argparse.Namespace, options: EngineOptions) -> Built:
    from dataclasses import replace

    import torch

    from plait.bench.dummy import dummy_model
    from plait.config import presets
    from plait.serve.build import engine_of, with_pools
    from plait.serve.prompts import Prompts

    if args.model not in presets:
        raise UsageError(f"--dummy takes a preset, not {args.model!r}; there are {', '.join(presets)}")
    config = presets[args.model]
    if args.layers is not None:
        config = replace(config, n_layers=args.layers)
    dtype = getattr(torch, args.dtype or config.dtype)
    model = dummy_model(config, args.device, dtype, quantize=args.quantize)
    loaded = with_pools(model, Prompts(config, None, None), options)
    return engine_of(loaded, loaded.runner, options)


def _what(load: Load) -> str:
    at = f"{load.concurrency} at once" if load.concurrency else f"{load.rate:g} a second"
    return f"{load.prompt_tokens:,} in, {at}"


def _table(points: Sequence[Point]) -> object:
    made = table("", "TTFT ms", "p99", "ITL ms", "p99", "in/s", "out/s", "prefill", "decode", "plan", "GiB")
    for point in points:
        result = point.figures
        made.add_row(
            _what(point.load),
            f"{result.ttft_ms['p50']:,.4g}",
            f"{result.ttft_ms['p99']:,.4g}",
            f"{result.itl_ms['p50']:,.4g}" if result.itl_ms else "",
            f"{result.itl_ms['p99']:,.4g}" if result.itl_ms else "",
            f"{result.prompt_tokens_per_s:,.0f}",
            f"{result.decode_tokens_per_s or result.new_tokens_per_s:,.1f}",
            _percent(point.prefill_share),
            _percent(point.decode_share),
            _percent(point.planning_share),
            "" if point.peak_bytes is None else f"{point.peak_bytes / 2**30:.2f}",
        )
        if result.n_failed:
            made.add_row(f"  {result.n_failed} of {result.n_requests} failed: {result.first_error}")
    return made


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
