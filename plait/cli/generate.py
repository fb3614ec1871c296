"""`plait generate`: continue prompts."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from plait.cli.screen import Commands, UsageError, print_json

if TYPE_CHECKING:
    from plait.serve import LLM
    from plait.text import SamplingParams

_SAMPLING = (  # flag, type, help
    ("--max-tokens", int, "new tokens at most"),
    ("--temperature", float, "0 takes the most likely token every time"),
    ("--top-k", int, "keep this many tokens (0: all)"),
    ("--top-p", float, "keep the likeliest tokens that together have this probability"),
    ("--min-p", float, "keep tokens with at least this share of the likeliest one's probability"),
    ("--repetition-penalty", float, "above 1: tokens already there become less likely"),
    ("--seed", int, "the same seed gives the same text"),
)


def add(commands: Commands) -> None:
    parser = commands.add_parser("generate", help="continue a prompt")
    add_model_arguments(parser)
    parser.add_argument(
        "--prompt", action="append", required=True, metavar="TEXT", help="repeat for several; - reads stdin"
    )
    add_sampling_arguments(parser)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    parser.add_argument("--n", type=int, default=1, help="answers per prompt (%(default)s)")
    parser.add_argument(
        "--logprobs", type=int, metavar="K", help="with --json: log-probabilities, and of the K likeliest"
    )
    parser.add_argument("--json", action="store_true", help="print completions as JSON")
    parser.set_defaults(handler=run)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model's folder, or `demo`")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's own")
    parser.add_argument("--quantize", metavar="METHOD[:LEVEL]", help="quantize while loading, as in experts_int8")


def add_sampling_arguments(parser: argparse.ArgumentParser, **defaults: object) -> None:
    """The flags of `_SAMPLING`; `defaults` stand in for SamplingParams' own."""
    from plait.text.sampling_params import SamplingParams

    for flag, kind, text in _SAMPLING:
        name = flag[2:].replace("-", "_")
        default = defaults.get(name, getattr(SamplingParams, name))
        shown = "" if default is None else f" ({default})"
        parser.add_argument(flag, type=kind, default=default, metavar="N" if kind is int else "X", help=text + shown)


def load_llm(args: argparse.Namespace) -> LLM:
    with _collector_at_rest():
        import torch

        from plait.serve import LLM

        dtype = None if args.dtype is None else getattr(torch, args.dtype)
        return LLM(args.model, device=args.device, dtype=dtype, quantize=args.quantize)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Within the block Python does not look for cyclic garbage, nor later among what is there when it first ends:
    torch's import makes a quarter of a million objects that stay, and looking through them takes a seventh of a start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        if was_enabled:
            gc.enable()


def sampling_params(args: argparse.Namespace, **more: object) -> SamplingParams:
    from plait.text import SamplingParams

    values = {flag[2:].replace("-", "_"): getattr(args, flag[2:].replace("-", "_")) for flag, _, _ in _SAMPLING}
    try:
        return SamplingParams(**values, **more)  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs are shown with --json only; add it")
    if args.prompt.count("-") > 1:
        raise UsageError("--prompt - reads all of stdin, so it can be given once")
    params = sampling_params(args, stop=args.stop, n=args.n, logprobs=args.logprobs)
    prompts = [sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt for prompt in args.prompt]
    llm = load_llm(args)
    if args.json:
        from dataclasses import asdict

        completions = llm.generate(prompts, params)
        repeated = [prompt for prompt in prompts for _ in range(params.n)]
        rows = [{"prompt": p, **asdict(c)} for p, c in zip(repeated, completions, strict=True)]
        print_json({"model": str(Path(args.model)), "completions": rows})
    elif len(prompts) == 1 and params.n == 1:
        pieces = llm.stream(prompts[0], params)
        print(prompts[0], end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    else:
        completions = llm.generate(prompts, params)
        for i, completion in enumerate(completions):
            print(f"--- {i // params.n + 1}.{i % params.n + 1}\n{prompts[i // params.n]}{completion.text}")
    return 0
