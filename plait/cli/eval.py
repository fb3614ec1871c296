"""`plait eval`: run an evaluation task, list them, compare two runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.cli.screen import Commands, UsageError, console, print_json, table

if TYPE_CHECKING:
    from plait.eval.runner import Price
    from plait.eval.task import Inputs, PromptFormat
    from plait.text import Generator, Tokenizer

DATA_VARIABLE = "PLAIT_EVAL_DATA"
HARNESS_ABOUT = "tasks of lm-evaluation-harness, with the paper's shots (Tables 2 and 6); extra `eval`"
HARNESS_OPTIONS = {
    "tasks": "names of the harness, commas between (default: Table 2's)",
    "include": "folder of the harness' YAML tasks, for data given by path",
    "max_context": "split longer texts when a whole text is scored",
}


def add(commands: Commands) -> None:
    parser = commands.add_parser("eval", help="evaluate a model; without TASK, list the tasks")
    parser.add_argument("task", nargs="?", metavar="TASK", help="a task, or `diff` to compare two runs")
    parser.add_argument("runs", nargs="*", type=Path, metavar="DIR", help="with diff: the folders of two runs")
    parser.add_argument("--model", metavar="MODEL|URL", help="a model's folder, `demo`, or an OpenAI-compatible URL")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the run goes; one begun there is gone on with")
    parser.add_argument("--limit", type=int, metavar="N", help="samples per group at most")
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"folder of public evaluation sets (${DATA_VARIABLE})")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="(%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the task")
    parser.add_argument("--prompt-format", choices=("chat", "text"), help="default: the task's own")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="samples asked at once (%(default)s)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="with a URL: the folder of the model's tokenizer")
    parser.add_argument("--served-name", metavar="NAME", help="with a URL: the model's name there (default: its first)")
    parser.add_argument("--price", metavar="IN,OUT", help="US dollars for a million tokens of prompts and of answers")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's own")
    parser.add_argument("--quantize", metavar="METHOD[:LEVEL]", help="quantize while loading, as in experts_int8")
    parser.add_argument("--json", action="store_true", help="print data instead of tables")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    if args.task is None:
        return _list(args)
    if args.task == "diff":
        return _diff(args)
    return _evaluate(args)


def _list(args: argparse.Namespace) -> int:
    from plait.eval.registry import TASKS

    if args.json:
        listed = {
            name: {"about": t.about, "options": {n: o.about for n, o in t.options.items()}} for name, t in TASKS.items()
        }
        print_json(listed | {"harness": {"about": HARNESS_ABOUT, "options": HARNESS_OPTIONS}})
        return 0
    for name, task in TASKS.items():
        print(f"{name}  {task.about}")
        for option, described in task.options.items():
            print(f"    --set {option}={described.default}  {described.about}")
    print(f"harness  {HARNESS_ABOUT}")
    for option, about in HARNESS_OPTIONS.items():
        print(f"    --set {option}=  {about}")
    return 0


def _diff(args: argparse.Namespace) -> int:
    from plait.eval.diff import compare, render
    from plait.eval.records import read_run, write_whole

    if len(args.runs) != 2:
        raise UsageError("diff compares two runs: plait eval diff DIR DIR [--out FILE]")
    diff = compare(*map(read_run, args.runs))
    if args.out is not None:
        write_whole(args.out, render(diff))
    if args.json:
        print_json(diff.as_json())
        return 0
    shown = table("after - before", "difference", "from", "to", "samples")
    for name, found in diff.metrics.items():
        shown.add_row(name, f"{found.value:+.2f}", f"{found.low:+.2f}", f"{found.high:+.2f}", str(found.n))
    console().print(shown)
    better = sum(change.gain > 0 for change in diff.changes)
    print(f"of {diff.n_shared} samples {better} are better and {len(diff.changes) - better} worse")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from plait.eval.records import read_run
    from plait.eval.registry import TASKS, find_task
    from plait.eval.report import write_report
    from plait.eval.runner import run_task

    if args.runs:
        raise UsageError(f"only diff takes folders; {args.runs[0]} is one too many")
    if args.task == "harness":
        return _harness(args)
    if args.task not in TASKS:
        try:
            find_task(args.task)
        except ValueError as error:
            raise UsageError(str(error)) from error
    _need_model_and_out(args)
    task = TASKS[args.task]
    options = _options(args, task.with_defaults)
    price = _price(args.price)
    generator, tokenizer, template = _load(args)
    inputs = _inputs(args, args.prompt_format or task.prompt_format, options, tokenizer, template)
    with _progress() as on_progress:
        scores = run_task(
            task,
            generator,
            args.out,
            inputs,
            model=args.served_name or str(args.model),
            batch_size=args.batch,
            price=price,
            on_progress=on_progress,
        )
    write_report(read_run(args.out))
    return _tell(args, scores)


def _harness(args: argparse.Namespace) -> int:
    from plait.eval.harness import run_harness
    from plait.eval.harness_tasks import TABLE_2
    from plait.eval.records import read_run
    from plait.eval.report import write_report

    _need_model_and_out(args)
    options = _options(args, _harness_defaults)
    names = options["tasks"].split(",") if options["tasks"] else [task.name for task in TABLE_2]
    generator, tokenizer, template = _load(args)
    inputs = _inputs(args, args.prompt_format or "text", options, tokenizer, template)
    scores = run_harness(
        names,
        generator,
        args.out,
        inputs,
        model=args.served_name or str(args.model),
        max_context=_max_context(options["max_context"]),
        include=Path(options["include"]) if options["include"] else None,
        price=_price(args.price),
    )
    write_report(read_run(args.out))
    return _tell(args, scores)


def _max_context(given: str) -> int | None:
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(f"--set max_context={given}: must be a number of tokens, at least 1")
    return int(given)


def _harness_defaults(given: Mapping[str, str]) -> dict[str, str]:
    unknown = [name for name in given if name not in HARNESS_OPTIONS]
    if unknown:
        raise ValueError(f"harness has no option {unknown[0]!r}; it has {', '.join(HARNESS_OPTIONS)}")
    return {name: given.get(name, "") for name in HARNESS_OPTIONS}


def _need_model_and_out(args: argparse.Namespace) -> None:
    if args.model is None or args.out is None:
        raise UsageError("give the model and where the run goes: --model MODEL --out DIR")


def _tell(args: argparse.Namespace, scores: dict[str, Any]) -> int:
    if args.json:
        print_json(scores)
    else:
        _show(scores, args.out)
    return 0


def _options(args: argparse.Namespace, with_defaults: Callable[[Mapping[str, str]], dict[str, str]]) -> dict[str, str]:
    pairs = [given.partition("=") for given in args.set]
    wrong = next((name for name, sign, _ in pairs if not sign), None)
    if wrong is not None:
        raise UsageError(f"--set {wrong}: write NAME=VALUE")
    try:
        return with_defaults({name: value for name, _, value in pairs})
    except ValueError as error:
        raise UsageError(str(error)) from error


def _price(given: str | None) -> Price | None:
    from plait.eval.runner import Price

    if given is None:
        return None
    try:
        prompt, completion = map(float, given.split(","))
    except ValueError:
        raise UsageError(f"--price {given}: write two numbers with a comma between, such as 0.2,0.4") from None
    if not (prompt >= 0 and completion >= 0):  # NaN isn't either
        raise UsageError(f"--price {given}: a price must be at least 0")
    return Price(prompt, completion)


def _load(args: argparse.Namespace) -> tuple[Generator, Tokenizer | None, Any]:
    """The model, its tokenizer and its chat template, in this process or behind a URL."""
    from plait.text import ChatTemplate, Tokenizer

    if not args.model.startswith(("http://", "https://")):
        from plait.cli.generate import load_llm

        llm = load_llm(args)
        return llm, llm.tokenizer, llm.chat_template
    from plait.text.openai_client import OpenAIClient

    tokenizer = None if args.tokenizer is None else Tokenizer.from_folder(args.tokenizer)
    template = None if args.tokenizer is None else ChatTemplate.from_folder(args.tokenizer)
    key = os.environ.get("PLAIT_API_KEY") or os.environ.get("OPENAI_API_KEY")
    client = OpenAIClient(args.model, model=args.served_name, api_key=key, tokenizer=tokenizer, n_parallel=args.batch)
    return client, tokenizer, template


def _inputs(
    args: argparse.Namespace,
    prompt_format: PromptFormat,
    options: dict[str, str],
    tokenizer: Tokenizer | None,
    template: Any,
) -> Inputs:
    import plait.data
    from plait.eval.task import Inputs

    named = os.environ.get(DATA_VARIABLE)
    data = args.data or (Path(named) if named else None)
    if data is not None and not data.is_dir():
        raise ValueError(f"{data} is not a folder of evaluation sets")
    return Inputs(
        tokenizer=tokenizer,
        chat_template=template,
        prompt_format=prompt_format,
        data=data,
        prose=Path(plait.data.__file__).parent / "corpus",
        seed=args.seed,
        limit=args.limit,
        options=options,
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with samples done, of how many, time passed and time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    screen = Console(file=sys.stderr)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        bar = progress.add_task("samples", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _show(scores: dict[str, Any], out: Path) -> None:
    shown = table("group", "metric", "value", "95 %", "samples")
    for group, found in scores["groups"].items():
        for name, metric in found["metrics"].items():
            shown.add_row(group, name, *_cells(metric))
    for name, metric in scores["metrics"].items():
        shown.add_row("all", name, *_cells(metric))
    console().print(shown)
    tokens = scores["tokens"]
    cost = "" if scores["cost_usd"] is None else f", {scores['cost_usd']:.4f} US dollars"
    print(
        f"{tokens['prompt']:,} prompt and {tokens['completion']:,} new tokens{cost}; empty outputs: {scores['empty']}"
    )
    print(f"{out / 'report.html'}")


def _cells(metric: dict[str, Any]) -> tuple[str, str, str]:
    return f"{metric['value']:.2f}", f"{metric['low']:.2f} - {metric['high']:.2f}", str(metric["n"])
