"""`plait bench`: times, beside the floor that the hardware sets."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from plait.cli import bench_serve, bench_train
from plait.cli.screen import Commands, UsageError, check_picture, console, print_json, table

if TYPE_CHECKING:
    from plait.bench.ops import Row


def add(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="time the ops, or a model as it answers")
    subjects = parser.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    ops = subjects.add_parser("ops", help="each implementation of each op, on shapes of real models")
    ops.add_argument("ops", nargs="*", metavar="OP", help="such as selective_scan (default: all)")
    ops.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    ops.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    ops.add_argument("--reference", action="store_true", help="the slow twins too")
    ops.add_argument("--tune", action="store_true", help="instead: time the tiles worth trying, write the best (CUDA)")
    ops.add_argument("--tuned", metavar="FILE", help="the table that --tune adds to (default: what kernels read)")
    ops.add_argument("--plot", metavar="FILE", help="also draw a roofline, such as roofline.png (needs matplotlib)")
    ops.add_argument("--rows", metavar="FILE", help="also write each row as a line of JSON as soon as it is there")
    ops.add_argument("--json", action="store_true")
    ops.set_defaults(handler=run)
    bench_serve.add(subjects)
    bench_train.add(subjects)


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    import torch

    from plait.bench.ops import bench_ops, left_out
    from plait.ops.case import all_op_cases

    known = sorted({ops.op for ops in all_op_cases()})
    if unknown := [op for op in args.ops if op not in known]:
        raise UsageError(f"no op {unknown[0]!r}; there are {', '.join(known)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here")
    if args.tune:
        return _tune(args)
    if args.tuned:
        raise UsageError("--tuned names the table that --tune adds to: give --tune too")
    check_picture("--plot", args.plot)
    rows = []
    with open(args.rows or os.devnull, "w") as lines:
        for row in bench_ops(
            torch.device(args.device), getattr(torch, args.dtype), only=args.ops, with_reference=args.reference
        ):
            rows.append(row)
            print(json.dumps(asdict(row)), file=lines, flush=True)
            print(f"{row.op} {row.implementation}: {row.case}", file=sys.stderr)
    if args.plot:
        from pathlib import Path

        from plait.bench.ops import copy_bandwidth, product_rate
        from plait.bench.roofline import plot

        where = torch.device(args.device), getattr(torch, args.dtype)
        plot(rows, copy_bandwidth(where[0]), product_rate(*where), Path(args.plot))
    conditions = {"device": _device_name(args.device), "dtype": args.dtype, "threads": torch.get_num_threads(),
                  "torch": torch.__version__}  # fmt: skip
    if args.json:
        skipped = left_out(torch.device(args.device), args.ops)
        print_json({**conditions, "rows": [asdict(row) for row in rows], "left_out": skipped})
        return 1 if any(row.ms is None for row in rows) else 0
    console().print(_table(rows))
    console().print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    if skipped := left_out(torch.device(args.device), args.ops):
        console().print(f"left out, too large for a CPU: {'; '.join(skipped)}")
    return 1 if any(row.ms is None for row in rows) else 0


def _tune(args: argparse.Namespace) -> int:
    from pathlib import Path

    import torch

    from plait.bench.tune import tune
    from plait.ops import tuned

    if args.device != "cuda":
        raise UsageError("--tune times GPU kernels: add --device cuda")
    path = Path(args.tuned) if args.tuned else tuned.TABLE
    made = table("", "sizes", "tokens", "us", "formula", "tried", "setting")
    found = []
    for one in tune(torch.device("cuda", 0), path):
        job = one.job
        made.add_row(
            job.op, tuned.key(*job.sizes), str(job.tokens), f"{one.us:.4g}", f"{one.formula_us:.4g}", str(one.tried),
            str(one.setting),
        )  # fmt: skip
        found.append({"op": job.op, "sizes": job.sizes, "tokens": job.tokens, "us": one.us,
                      "formula_us": one.formula_us, "tried": one.tried, "setting": one.setting})  # fmt: skip
        print(f"{job.op} {tuned.key(*job.sizes)}: {job.tokens}", file=sys.stderr)
    if args.json:
        print_json({"device": _device_name("cuda"), "torch": torch.__version__, "rows": found})
    else:
        console().print(made)
        console().print(f"written to {path}")
    return 0


def _device_name(device: str) -> str:
    import platform

    import torch

    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def _table(rows: list[Row]) -> object:
    made = table("", "by", "ms", "+-", "GB/s", "floor")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is None or before.op != row.op:
            made.add_row(row.op, style="bold")
        label = f"  {row.case}"
        if row.ms is None:
            made.add_row(label, row.implementation, row.note)
            continue
        share = "" if row.floor_share is None else f"{row.floor_share:.0%}"
        speed = "" if row.gb_per_s is None else f"{row.gb_per_s:.3g}"
        made.add_row(label, row.implementation, f"{row.ms:.4g}", f"{row.spread_ms:.2g}", speed, share)
    return made
