"""`plait data`: documents to token shards, tokenizers, and a look at what training will read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from plait.cli.screen import Commands, UsageError, console, print_json

if TYPE_CHECKING:
    from plait.data.pipeline.build import MakeExecutor


def add(commands: Commands) -> None:
    parser = commands.add_parser("data", help="documents to token shards; tokenizers")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="parse, filter, deduplicate and tokenize; without RECIPE, list them")
    build.add_argument("recipe", nargs="?", metavar="RECIPE", help="a shipped recipe, or one's own .toml file")
    build.add_argument("--out", type=Path, metavar="DIR", help="where shards and reports go (runs/data/RECIPE)")
    build.add_argument("--workers", type=int, default=2, metavar="N", help="tasks at a time (%(default)s)")
    build.add_argument(
        "--executor", choices=("local", "ray", "slurm"), default="local", help="what runs the tasks (%(default)s)"
    )
    build.add_argument(
        "--executor-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="slurm: partition, time, sbatch's others",
    )
    build.add_argument(
        "--packages", type=Path, metavar="DIR", help="where Debian packages are kept (DIR/work/packages)"
    )
    build.add_argument("--json", action="store_true", help="print funnel.json instead of tables")
    build.set_defaults(handler=run_build)
    tokenizer = actions.add_parser("tokenizer", help="train a tokenizer with the family's control tokens")
    tokenizer.add_argument(
        "texts", nargs="*", type=Path, metavar="TEXT", help="files or folders (default: the corpus that ships)"
    )
    tokenizer.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="(%(default)s)")
    tokenizer.add_argument(
        "--held-out", action="append", type=Path, default=[], metavar="TEXT", help="to measure it on"
    )
    tokenizer.add_argument("--out", type=Path, required=True, metavar="DIR")
    tokenizer.add_argument("--json", action="store_true")
    tokenizer.set_defaults(handler=run_tokenizer)
    inspect = actions.add_parser("inspect", help="documents by length and decoded samples of a shards folder")
    inspect.add_argument("shards", metavar="DIR", help="a shards folder, or a mixture: DIR:WEIGHT,DIR:WEIGHT")
    inspect.add_argument("--tokenizer", type=Path, metavar="DIR", help="to show samples as text")
    inspect.add_argument("--samples", type=int, default=3, metavar="N", help="(%(default)s)")
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(handler=run_inspect)
    fetch = actions.add_parser("fetch", help="more text than ships with the package")
    fetch.add_argument("corpus", choices=("austen",), help="austen: six novels, from Debian's r-cran-janeaustenr")
    fetch.add_argument("--out", type=Path, required=True, metavar="DIR")
    fetch.set_defaults(handler=run_fetch)


def run_build(args: argparse.Namespace) -> int:
    from plait.data.pipeline.recipe import load_build_recipe
    from plait.data.pipeline.shipped import SHIPPED

    if args.recipe is None:
        for name, shipped in SHIPPED.items():
            print(f"{name:28} {(shipped.__doc__ or '').strip().splitlines()[0]}")
        return 0
    if args.workers < 1:
        raise UsageError(f"--workers {args.workers} must be at least 1")
    try:
        recipe = load_build_recipe(args.recipe, SHIPPED)
    except ValueError as error:
        raise UsageError(str(error)) from error

    from plait.data.pipeline.build import build, check_installed
    from plait.data.pipeline.funnel import funnel_table

    out = args.out or Path("runs/data") / recipe.name
    screen = console()
    say = (lambda _: None) if args.json else (lambda stage: screen.print(f"{stage} …"))
    check_installed()
    executor = _executor(args)
    built = build(recipe, out, executor=executor, cache=args.packages, say=say)
    if args.json:
        print_json(built.funnel)
        return 0
    screen.print(funnel_table(built.funnel))
    done = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in built.manifest["seconds"].items())
    screen.print(f"{done or 'nothing had to be done again'}\n{out}/shards, manifest.json, funnel.json, funnel.html")
    return 0


def _executor(args: argparse.Namespace) -> MakeExecutor:
    from plait.data.pipeline.build import local_executor, ray_executor, slurm_executor

    pairs = [given.partition("=") for given in args.executor_set]
    if wrong := next((name for name, sign, _ in pairs if not sign), None):
        raise UsageError(f"--executor-set {wrong}: write KEY=VALUE, such as partition=cpu")
    if pairs and args.executor != "slurm":
        raise UsageError("--executor-set goes with --executor slurm")
    if args.executor == "slurm":
        try:
            return slurm_executor(args.workers, {name: value for name, _, value in pairs})
        except ValueError as error:
            raise UsageError(str(error)) from error
    return {"local": local_executor, "ray": ray_executor}[args.executor](args.workers)


def run_tokenizer(args: argparse.Namespace) -> int:
    from plait.data.commands import tokenizer_table, train_tokenizer_command

    report = train_tokenizer_command(args.texts, vocab_size=args.vocab_size, out=args.out, held_out=args.held_out)
    if args.json:
        print_json(report)
    else:
        console().print(tokenizer_table(report))
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    from plait.data.commands import inspect_command, inspect_mixture, inspect_table, mixture_table
    from plait.data.mixture import is_mixture

    if args.samples < 0:
        raise UsageError(f"--samples {args.samples} must not be negative")
    if is_mixture(args.shards) or (not Path(args.shards).exists() and any(sign in args.shards for sign in ",:@")):
        mixture = inspect_mixture(args.shards)
        shown = mixture_table(mixture)
        report: dict[str, object] = mixture
    else:
        report = inspect_command(Path(args.shards), tokenizer=args.tokenizer, n_samples=args.samples)
        shown = inspect_table(report)
    if args.json:
        print_json(report)
    else:
        console().print(shown)
    return 0


def run_fetch(args: argparse.Namespace) -> int:
    from plait.data.austen import fetch_austen

    for path in fetch_austen(args.out):
        print(path)
    return 0
