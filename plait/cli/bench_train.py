"""`plait bench train`: tokens a second, MFU and peak memory of training steps."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from plait.cli.screen import UsageError, console, print_json, table
from plait.cli.torchrun import under_torchrun

if TYPE_CHECKING:
    from plait.bench.train import Timing


def add(subjects: Any) -> None:
    parser = subjects.add_parser("train", help="training steps: tokens per second, MFU, peak memory")
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", default=["tiny:2x256"],
        help="SHAPE:ROWSxTOKENS, then :recompute=light, :accumulate=2, :precision=bfloat16, :graph, :ep=2; SHAPE is "
        "tiny, jamba-1.8b, or fill, a Jamba as wide as the device takes (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--nproc", type=int, metavar="N", help="processes of this machine, which share ROWS")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="also print where a step's time goes")
    parser.add_argument("--json", action="store_true", help="one object a case, as it is measured")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    import torch

    from plait.bench.train import Case, as_row, time_case
    from plait.train.processes import pick_device

    try:
        cases = [Case.parse(text) for text in args.cases]
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here")
    if args.steps < 1 or args.warmup < 0:
        raise UsageError(f"--steps {args.steps} must be at least 1 and --warmup {args.warmup} at least 0")
    if args.nproc is not None:
        return under_torchrun(args.nproc, ["bench", "train", *args.cases, *_options(args)])
    device = pick_device(args.device)
    speaks = int(os.environ.get("RANK", "0")) == 0
    timings = []
    for case in cases:
        timings.append(time_case(case, device, warmup=args.warmup, steps=args.steps, profile=args.profile and speaks))
        if args.json and speaks:
            print_json(as_row(timings[-1]))
    if not args.json and speaks:
        console().print(_table(timings))
    return 1 if any(timing.failed for timing in timings) else 0


def _options(args: argparse.Namespace) -> list[str]:
    words = ["--device", args.device, "--warmup", str(args.warmup), "--steps", str(args.steps)]
    return [*words, *(f"--{name}" for name in ("profile", "json") if getattr(args, name))]


def _table(timings: list[Timing]) -> object:
    made = table("", "params", "active", "ms", "+-", "tokens/s", "MFU", "peak GiB")
    for timing in timings:
        case = timing.case
        label = f"{case.model} {case.batch}x{case.seq} {case.precision} recompute {case.recompute}"
        label += " graph" if case.graph else ""
        label += f" on {timing.processes}" if timing.processes > 1 else ""
        size = f"{timing.parameters / 1e9:.2f} B", f"{timing.active_parameters / 1e9:.2f} B"
        if timing.step_ms is None:
            made.add_row(label, *size, timing.failed)
            continue
        mfu = "" if timing.mfu is None else f"{timing.mfu:.1%}"
        peak = "" if timing.peak_gib is None else f"{timing.peak_gib:.1f}"
        made.add_row(
            label,
            *size,
            f"{timing.step_ms:.1f}",
            f"{timing.spread_ms:.1f}",
            f"{timing.tokens_per_second:,.0f}",
            mfu,
            peak,
        )
    return made
