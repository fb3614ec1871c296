"""`plait paper`: a table or figure of the paper, regenerated."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plait.cli.screen import Commands, UsageError, console, print_json, suggest


def add(commands: Commands) -> None:
    parser = commands.add_parser("paper", help="regenerate a table or figure of the paper; without NAME, list them")
    parser.add_argument("name", nargs="?", metavar="NAME", help="such as table_1")
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a `plait eval` run to put beside the scores",
    )
    parser.add_argument("--json", action="store_true", help="print the data instead of the table")
    measured = parser.add_argument_group("what is measured here (figures 2, 3 and 4)")
    measured.add_argument("--scale", choices=("tiny", "full"), help="toys for a CPU, or the models' sizes (tiny)")
    measured.add_argument("--device", help="(cpu)")
    measured.add_argument("--models", help="comma-separated, by the beginnings of their names (all)")
    measured.add_argument("--methods", help="comma-separated (all)")
    measured.add_argument("--batches", help="figure_2: comma-separated sizes (1,4,8)")
    measured.add_argument("--contexts", help="figures 3 and 4: prompt tokens, comma-separated")
    measured.add_argument("--layers", type=int, help="of each model at most (what fits)")
    measured.add_argument("--repeats", type=int, help="of each timing (3)")
    measured.add_argument("--out", type=Path, metavar="DIR", help="also write DIR/NAME.json and DIR/NAME.png")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    from importlib import import_module

    from plait.paper import MEASURED, RESULTS, TAKES_RUNS

    if args.name is None:
        if args.json:
            print_json(RESULTS)
        else:
            print("\n".join(f"{name}  {what}" for name, what in RESULTS.items()))
        return 0
    if args.name not in RESULTS:
        raise UsageError(f"the paper has no {args.name!r} here; {suggest(args.name, RESULTS)}")
    if args.run and args.name not in TAKES_RUNS:
        raise UsageError(f"{args.name} has no scores of runs; --run goes with {', '.join(sorted(TAKES_RUNS))}")
    result = import_module(f"plait.paper.{args.name}")
    if args.name in MEASURED:
        return measure(args, result)
    given = [name for name in (*MEASURE_OPTIONS, "out") if getattr(args, name) is not None]
    if given:
        raise UsageError(f"{args.name} is not measured; --{given[0]} goes with {', '.join(sorted(MEASURED))}")
    runs = (args.run,) if args.name in TAKES_RUNS else ()
    if args.json:
        print_json(result.as_json(*runs))
    else:
        result.show(console(), *runs)
    return 0


MEASURE_OPTIONS = ("scale", "device", "models", "methods", "batches", "contexts", "layers", "repeats")


def measure(args: argparse.Namespace, result: Any) -> int:
    """Measure, print, and write what was found as it is: rows that failed carry their reason."""
    import json
    import os
    from dataclasses import fields

    options = {name: getattr(args, name) for name in MEASURE_OPTIONS if getattr(args, name) is not None}
    if "models" in options:
        wanted = options["models"].split(",")
        options["models"] = tuple(_named(name, result.MODELS) for name in wanted)
    if "methods" in options:
        options["methods"] = tuple(options["methods"].split(","))
    for name in {"batches", "contexts"} & set(options):
        if not all(size.isdigit() for size in options[name].split(",")):
            raise UsageError(f"--{name} {options[name]} must be numbers like 1,4,8")
        options[name] = tuple(int(size) for size in options[name].split(","))
    known = {field.name for field in fields(result.Options)}
    if unknown := [name for name in options if name not in known]:
        raise UsageError(f"{args.name} has no --{unknown[0]}")
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if not args.json else None
    data = result.measure(result.Options(**options), say)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        partial = args.out / f".{args.name}.json.partial"
        partial.write_text(json.dumps(data, indent=2) + "\n")
        os.replace(partial, args.out / f"{args.name}.json")
        result.draw(data, args.out / f"{args.name}.png")
    if args.json:
        print_json(data)
    else:
        result.show(console(), data)
    return 0


def _named(beginning: str, models: Iterable[str]) -> str:
    """`mini`, `8x7b`, or a model's whole name."""
    found = [name for name in models if beginning.lower() in name.lower()]
    if len(found) != 1:
        raise UsageError(f"--models: {beginning!r} is {'none' if not found else 'several'} of {', '.join(models)}")
    return found[0]
