"""`plait train`: run a recipe."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from plait.cli.screen import Commands, UsageError, console, table
from plait.cli.torchrun import under_torchrun

if TYPE_CHECKING:
    from plait.train.config import TrainConfig


def add(commands: Commands) -> None:
    parser = commands.add_parser("train", help="train a model from a recipe; without RECIPE, list them")
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a shipped recipe, or my_runs.py:my_run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the run goes (runs/RECIPE)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="such as steps=20 or optim.lr=3e-4"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of DIR")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--nproc", type=int, metavar="N", help="processes on this machine, laid out as parallel.* says")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A|B|…", help="one run for each value; several: all pairs"
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    from plait.recipes import RECIPES, load_recipe

    if args.recipe is None:
        for name, recipe in RECIPES.items():
            print(f"{name:19} {(recipe.__doc__ or '').strip().splitlines()[0]}")
        return 0
    try:
        config = load_recipe(args.recipe, args.set)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads {args.threads} must be at least 1")

    if args.sweep and (args.nproc is not None or args.resume):
        raise UsageError("--sweep runs in one process and goes on by itself: leave out --nproc and --resume")
    if args.nproc is not None:
        return _start_processes(args)

    import torch

    from plait.recipes.probes import measure
    from plait.train.loop import train
    from plait.train.preferences import train_preferences

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.sweep:
        return _sweep(config, args.sweep, args.out or Path("runs") / f"{config.name}_sweep")
    out = args.out or Path("runs") / config.name
    if config.dpo.beta:
        result = train_preferences(config, out, resume=args.resume)
    else:
        result = train(config, out, resume=args.resume, probe=measure)
    screen = console()
    if int(os.environ.get("RANK", "0")) > 0:  # one of several speaks
        return 130 if result.stopped else 0
    if result.stopped:
        screen.print(f"stopped after step {result.step} of {config.steps}; --resume goes on from there")
        return 130
    summary = table(config.name, "")
    for label, value in (
        ("steps", f"{result.step:,}"),
        ("first loss", f"{result.first_loss:.4f}"),
        ("held-out loss", f"{result.heldout_loss:.4f}"),
        *([] if math.isnan(result.tokens_per_second) else [("tokens per second", f"{result.tokens_per_second:,.0f}")]),
        *_probe_rows(result.out),
        ("model", str(result.out / "model")),
        *([("report", str(report))] if (report := result.out / "report.html").exists() else []),
    ):
        summary.add_row(label, value)
    screen.print(summary)
    return 0


def _probe_rows(out: Path) -> list[tuple[str, str]]:
    """Averages of what was measured, before → after."""
    from plait.train.probes import averages, read_probes

    found = read_probes(out)
    names = averages(found[-1]["scores"]) if found else []
    return [(name, " → ".join(f"{record['scores'][name]:.1f}" for record in found)) for name in names]


def _sweep(config: TrainConfig, axes: list[str], out: Path) -> int:
    from plait.recipes.probes import measure
    from plait.train.sweep import combinations, sweep

    try:
        combinations(axes)
    except ValueError as error:
        raise UsageError(str(error)) from error
    done = sweep(config, axes, out, measure)
    screen = console()
    summary = table("settings", "first loss", "held-out loss", "tokens per second")
    for trial in done.trials:
        label = ", ".join(f"{key}={value}" for key, value in trial.settings.items())
        heldout = "diverged" if trial.diverged else f"{trial.heldout_loss:.4f}" + " *" * (trial is done.best)
        summary.add_row(label, f"{trial.first_loss:.4f}", heldout, f"{trial.tokens_per_second:,.0f}")
    screen.print(summary)
    if done.stopped:
        screen.print("stopped; the same command goes on from here")
        return 130
    screen.print(f"{out / 'sweep.json'}")
    return 0


def _start_processes(args: argparse.Namespace) -> int:
    words = ["train", args.recipe, *(word for setting in args.set for word in ("--set", setting))]
    words += ["--out", str(args.out)] if args.out else []
    words += ["--threads", str(args.threads)] if args.threads else []
    words += ["--resume"] if args.resume else []
    return under_torchrun(args.nproc, words)
