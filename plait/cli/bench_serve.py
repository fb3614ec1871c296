"""`plait bench serve`: how fast a model answers, in this process or behind a URL."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.cli.screen import UsageError, check_picture, console, print_json, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from plait.bench.load import Load
    from plait.bench.rival_engines import RivalPoint
    from plait.bench.serve import Point
    from plait.serve.build import Built
    from plait.serve.options import EngineOptions


def add(subjects: Any) -> None:
    parser = subjects.add_parser("serve", help="batch sizes, contexts and request rates: latency, throughput, memory")
    parser.add_argument("model", metavar="MODEL", help="a model's folder or `demo`; with --url the served name")
    parser.add_argument("--dummy", action="store_true", help="MODEL is a preset's name: random weights of its shapes")
    parser.add_argument("--layers", type=int, metavar="N", help="with --dummy: of so many layers only")
    parser.add_argument("--url", help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", metavar="KEY", help="with --url: what the server asks for")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="with --url: prompts are random token ids below it")
    parser.add_argument("--batch", default="1,8", metavar="N,N", help="requests at once (%(default)s)")
    parser.add_argument("--rate", metavar="R,R", help="instead of --batch: requests that come in a second")
    parser.add_argument("--context", default="128,512", metavar="N,N", help="prompt tokens (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="of each answer (%(default)s)")
    parser.add_argument(
        "--requests", type=int, metavar="N", help="for each point (default: twice the batch, at least 4)"
    )
    parser.add_argument(
        "--shared", type=int, default=0, metavar="N", help="with --url: prompt tokens that all requests share"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's own")
    parser.add_argument("--quantize", metavar="METHOD[:LEVEL]", help="quantize while loading")
    parser.add_argument("--max-batched-tokens", type=int, default=2048, metavar="N", help="of one step (%(default)s)")
    parser.add_argument(
        "--drafts", type=int, default=0, metavar="N", help="tokens guessed and verified at once (%(default)s)"
    )
    parser.add_argument(
        "--tensor-parallel", type=int, default=1, metavar="N", help="processes that share the model: times only"
    )
    parser.add_argument(
        "--rivals", action="store_true", help="on a CPU: a row of transformers too, where it is installed"
    )
    parser.add_argument("--gguf", metavar="FILE", help="with --rivals: the same model for llama.cpp, rows of that too")
    parser.add_argument("--plot", metavar="PNG", help="draw throughput and latencies into this file")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    from plait.bench.serve import as_json, plot

    _check_flags(args)
    _check_rivals(args)
    check_picture("--plot", args.plot)
    loads = _loads(args)
    points, conditions = [], _conditions(args)
    for point in _server(args, loads) if args.url else _engine(args, loads, conditions):
        points.append(point)
        print(f"{_what(point.load)}: done", file=sys.stderr)
    rivals = _rivals(args, loads)
    if args.plot:
        plot(points, Path(args.plot), ", ".join(f"{name} {value}" for name, value in conditions.items()))
    if args.json:
        print_json({**conditions, "points": as_json(points), "rivals": [asdict(rival) for rival in rivals]})
    else:
        console().print(_table(points))
        if any(point.peak_bytes is not None for point in points):
            console().print(_shares(points))
            console().print("prefill, decode: shares of what the measured speed allows; plan: of the time.")
        if rivals:
            console().print(_rival_table(rivals))
        console().print(
            "TTFT: to the first token; ITL: between tokens; in, out: tokens a second.\nMedians, and 99th percentiles."
        )
        console().print(", ".join(f"{name} {value}" for name, value in conditions.items()), soft_wrap=True)
        if args.plot:
            console().print(f"plot: {args.plot}")
    return 1 if any(point.figures.n_failed for point in points) else 0


def _loads(args: argparse.Namespace) -> list[Load]:
    from plait.bench.load import Load

    loads = []
    for context in _numbers("--context", args.context, int):
        for value in _numbers("--rate", args.rate, float) if args.rate else _numbers("--batch", args.batch, int):
            batch = None if args.rate else int(value)
            few = max(4, 2 * (8 if batch is None else batch))
            n_requests = few if args.requests is None else args.requests
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
    from plait.bench.serve import AT_ONCE, Machine, bench_points, weights_of
    from plait.serve.options import EngineOptions

    most = max(load.prompt_tokens for load in loads) + args.new_tokens
    batch = max(load.concurrency or AT_ONCE for load in loads)
    options = EngineOptions(
        args.model, device=args.device, dtype=args.dtype, quantize=args.quantize, max_context=most,
        max_batched_tokens=args.max_batched_tokens, max_running=batch, prefix_cache=False, n_drafts=args.drafts,
        cache_tokens=batch * (most + 16), tensor_parallel=args.tensor_parallel,
    )  # fmt: skip
    if args.tensor_parallel > 1:
        return _shared(args, options, loads, conditions)
    built = _dummy(args, options) if args.dummy else _built(options)
    device = built.model.final_norm.weight.device
    machine = Machine.measured(device, built.model.dtype)
    conditions |= {
        "dtype": str(built.model.dtype).removeprefix("torch."), "weights": weights_of(built.model),
        "GB/s": f"{machine.bandwidth / 1e9:.4g}", "TFLOP/s": f"{machine.flops / 1e12:.4g}",
    }  # fmt: skip
    return bench_points(built.engine, built.model, loads, machine=machine, device=device)


def _shared(
    args: argparse.Namespace, options: EngineOptions, loads: Sequence[Load], conditions: dict[str, str]
) -> Iterator[Point]:
    from plait.bench.serve import bench_shared
    from plait.model.checkpoint import read_config
    from plait.serve.build import check_split, find_model
    from plait.serve.remote import RemoteEngine

    if args.dummy:
        raise UsageError("--dummy weights are of one process: with --tensor-parallel give a folder")
    check_split(options)
    conditions |= {"tensor_parallel": str(options.tensor_parallel), "dtype": args.dtype or "as stored"}
    return bench_shared(RemoteEngine(options), loads, read_config(find_model(args.model)).vocab_size)


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


def _check_flags(args: argparse.Namespace) -> None:
    """No flag is passed over: those of a server without --url, those of an engine with it."""
    needs_url = {"--vocab-size": args.vocab_size, "--api-key": args.api_key, "--shared": args.shared}
    of_engine = {"--dummy": args.dummy, "--dtype": args.dtype, "--quantize": args.quantize, "--drafts": args.drafts,
                 "--tensor-parallel": args.tensor_parallel > 1}  # fmt: skip
    for flag, given in (of_engine if args.url else needs_url).items():
        if given:
            reason = "is not told to a server: leave it out, or --url" if args.url else "is for servers: give --url"
            raise UsageError(f"{flag} {reason}")
    if args.layers is not None and not args.dummy:
        raise UsageError("--layers is of --dummy weights: a checkpoint has the layers it has")


def _check_rivals(args: argparse.Namespace) -> None:
    if args.gguf and not args.rivals:
        raise UsageError("--gguf is for --rivals")
    if args.rivals and (args.url or args.dummy or args.device != "cpu" or not Path(args.model).is_dir()):
        raise UsageError("--rivals compares a model's folder on this CPU: without --url, --dummy or another --device")


def _rivals(args: argparse.Namespace, loads: Sequence[Load]) -> list[RivalPoint]:
    """What other programs do with the same folder, one answer at once."""
    import torch

    from plait.bench.rival_engines import rival_points

    if not args.rivals:
        return []
    contexts = sorted({load.prompt_tokens for load in loads})
    gguf = None if args.gguf is None else Path(args.gguf)
    found = []
    try:
        for point in rival_points(Path(args.model), gguf, contexts, args.new_tokens, torch.get_num_threads()):
            found.append(point)  # noqa: PERF402  (what came before an error is kept)
    except RuntimeError as error:
        print(f"rivals: {error}", file=sys.stderr)
    return found


def _rival_table(rivals: Sequence[RivalPoint]) -> object:
    made = table("1 at once", "prompt", "in/s", "out/s", "GiB")
    for rival in rivals:
        speeds = (f"{rival.prompt_tokens_per_s:,.0f}", f"{rival.decode_tokens_per_s:,.1f}")
        made.add_row(rival.program, f"{rival.prompt_tokens:,}", *speeds, f"{rival.peak_bytes / 2**30:.2f}")
    return made


def _what(load: Load) -> str:
    at = f"{load.concurrency} at once" if load.concurrency else f"{load.rate:g} a second"
    return f"{load.prompt_tokens:,} in, {at}"


def _table(points: Sequence[Point]) -> object:
    made = table("", "TTFT ms", "p99", "ITL ms", "p99", "in/s", "out/s")
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
        )
        if result.n_failed:
            made.add_row(f"  {result.n_failed} of {result.n_requests} failed: {result.first_error}")
    return made


def _shares(points: Sequence[Point]) -> object:
    made = table("", "prefill", "decode", "plan", "GiB")
    for point in points:
        gib = "" if point.peak_bytes is None else f"{point.peak_bytes / 2**30:.2f}"
        shares = (point.prefill_share, point.decode_share, point.planning_share)
        made.add_row(_what(point.load), *map(_percent, shares), gib)
    return made


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
