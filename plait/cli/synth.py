"""`plait synth`: make post-training data, look at a run's funnel, turn chat files into training tokens."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.cli.screen import Commands, UsageError, console, print_json, table

if TYPE_CHECKING:
    from plait.data import Document
    from plait.synth import Decontaminator, Outcome, Requester, Skill


def add(commands: Commands) -> None:
    parser = commands.add_parser("synth", help="synthetic post-training data (paper section 5.3)")
    skills = parser.add_subparsers(dest="skill", metavar="SKILL", required=True)
    tables = _skill(skills, "table_qa", _table_qa, "questions on tables, answered by a query engine")
    tables.add_argument("--csv", action="append", type=Path, default=[], metavar="FILE", help="default: made-up tables")
    tables.add_argument("--paragraphs", action="store_true", help="a model turns the tables into paragraphs")
    tables.add_argument("--distractors", type=Path, metavar="TEXT", help="documents to hide tables in")
    tables.add_argument(
        "--max-distractors", type=int, default=4, metavar="N", help="paragraphs of them around a table (%(default)s)"
    )
    documents = _skill(skills, "document_qa", _document_qa, "questions on documents, answered with citations")
    documents.add_argument("--documents", type=Path, metavar="TEXT", help="files or folder (default: the corpus)")
    documents.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="to count with (default: 4 characters a token)"
    )
    documents.add_argument("--context", action="append", type=int, default=[], metavar="TOKENS", help="hide in so much")
    documents.add_argument(
        "--position", action="append", type=float, default=[], metavar="SHARE", help="0 front, 1 end"
    )
    documents.add_argument(
        "--similarity", choices=("words", "meaning"), default="words", help="of the texts around (%(default)s)"
    )
    documents.add_argument("--no-judge", action="store_true", help="checks of quotes and names only")
    tools = _skill(skills, "tool_use", _tool_use, "function calls, parallel calls, and when not to call")
    tools.add_argument(
        "--functions",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="OpenAPI, JSON schema or Glaive JSON",
    )
    tools.add_argument("--case", action="append", default=[], metavar="NAME", help="one_call, parallel_functions, …")
    recorded = _skill(skills, "tool_records", _tool_records, "recorded function-call conversations, validated")
    recorded.add_argument("--records", type=Path, required=True, metavar="FILE", help="Glaive's layout: JSONL or JSON")
    steer = _skill(skills, "steerability", _steerability, "document drafts under instructions a program checks")
    steer.add_argument("--samples", type=int, default=4, metavar="N", help="answers per prompt (%(default)s)")
    steer.add_argument("--no-judge", action="store_true", help="checkers only, no reward")
    _add_mix(skills)


def _skill(skills: Any, name: str, make: Callable[..., Skill], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = skills.add_parser(name, help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--n", type=int, default=100, metavar="N", help="prompts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="(%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--model", metavar="MODEL|URL", help="a model's folder, `demo`, or an OpenAI-compatible URL")
    parser.add_argument("--served-name", metavar="NAME", help="with a URL: the model's name there (default: its first)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="requests at the same time (%(default)s)")
    parser.add_argument("--per-minute", type=float, metavar="N", help="requests a minute at most")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="answers (default: DIR.cache.sqlite beside DIR)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's own")
    parser.add_argument("--quantize", metavar="METHOD[:LEVEL]", help="quantize while loading, as in experts_int8")
    _add_decontamination(parser)
    parser.add_argument("--json", action="store_true", help="print the funnel as JSON")
    parser.set_defaults(handler=run, make=make)
    return parser


def _add_decontamination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decontaminate", action="append", type=Path, default=[], metavar="FILE", help="an evaluation set (JSONL)"
    )


def _add_mix(skills: Any) -> None:
    mix = skills.add_parser("mix", help="chat files to token shards with a loss mask")
    mix.add_argument("chats", nargs="*", metavar="FILE[=TIMES]", help="TIMES 0.5 takes a random half, 2 all twice")
    for kind in ("long-context", "conversation"):
        mix.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            metavar="FILE[=TIMES]",
            help=f"a {kind} file, told apart in mix.json",
        )
    mix.add_argument("--tokenizer", required=True, metavar="DIR", help="a model's folder, or `demo`: its template too")
    mix.add_argument("--out", type=Path, required=True, metavar="DIR")
    mix.add_argument("--heldout", type=Path, metavar="DIR", help="a second folder, of conversations put aside")
    mix.add_argument("--heldout-share", type=float, default=0.05, metavar="S", help="how many (%(default)s)")
    mix.add_argument("--seed", type=int, default=0, metavar="S", help="(%(default)s)")
    mix.add_argument("--max-tokens", type=int, metavar="N", help="leave out longer conversations")
    _add_decontamination(mix)
    mix.add_argument("--json", action="store_true")
    mix.set_defaults(handler=run_mix)


def run(args: argparse.Namespace) -> int:
    from plait.synth import run_pipeline

    if args.model is None and args.skill != "tool_records" and not (args.skill == "table_qa" and not args.paragraphs):
        raise UsageError(f"{args.skill} needs a model: name one with --model")
    skill = args.make(args)
    with _requester(args) as requester:
        outcome = run_pipeline(
            skill,
            args.out,
            n=args.n,
            seed=args.seed,
            requester=requester,
            decontaminator=_decontaminator(args.decontaminate),
            resume=args.resume,
        )
    if args.json:
        stages = [stage.as_dict() for stage in outcome.stages]
        print_json({"chat": str(outcome.chat), "n_records": outcome.n_records, "stages": stages,
                    "requests": outcome.requests, "decontamination": outcome.contamination})  # fmt: skip
    else:
        _show(outcome)
    return 0


def _show(outcome: Outcome) -> None:
    from plait.synth.funnel import rows

    shown = table("step", "in", "out", "dropped because")
    shown.columns[-1].justify = "left"
    for row in rows(outcome.stages):
        shown.add_row(*row)
    console().print(shown)
    asked = ", ".join(f"{what} {count}" for what, count in outcome.requests.items())
    for found in (outcome.contamination or {"sets": []})["sets"]:
        print(f"decontamination: {found['found']} records shared text with {found['name']} ({found['texts']} texts)")
    print(f"{outcome.n_records} conversations in {outcome.chat}" + (f"; requests: {asked}" if asked else ""))


def run_mix(args: argparse.Namespace) -> int:
    import json

    from plait.synth.sft import ALL, REPORT_FILE, Side, write_sft
    from plait.text import ChatTemplate, Tokenizer

    parts = [
        _part(text, kind)
        for kind, texts in (
            ("skill", args.chats), ("long_context", args.long_context), ("conversation", args.conversation)
        )
        for text in texts
    ]  # fmt: skip
    if not parts:
        raise UsageError("name the chat files to mix")
    folder = _tokenizer_folder(args.tokenizer)
    tokenizer, template = Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder)
    sides = {args.out: ALL}
    if args.heldout is not None:
        sides = {
            args.out: Side(args.heldout_share, held_out=False),
            args.heldout: Side(args.heldout_share, held_out=True),
        }
    reports = {}
    for out, side in sides.items():
        write_sft(
            parts,
            tokenizer,
            template,
            out,
            seed=args.seed,
            side=side,
            max_tokens=args.max_tokens,
            decontaminator=_decontaminator(args.decontaminate),
        )
        reports[str(out)] = json.loads((out / REPORT_FILE).read_text(encoding="utf-8"))
    if args.json:
        print_json(reports[str(args.out)] if args.heldout is None else reports)
    else:
        _show_mix(reports)
    return 0


def _tokenizer_folder(name: str) -> Path:
    if name != "demo":
        return Path(name)
    from plait.serve import find_model

    return find_model(name)


def _show_mix(reports: dict[str, Any]) -> None:
    for out, report in reports.items():
        shown = table("file", "skill", "conversations", "tokens", "learned")
        for part in report["parts"]:
            skill = part["skill"] if part["kind"] == "skill" else f"{part['skill']} ({part['kind']})"
            counts = (f"{part[key]:,}" for key in ("conversations", "tokens", "learned_tokens"))
            shown.add_row(part["file"], skill, *counts)
        print(out)
        console().print(shown)
        for reason, count in report["left_out"].items():
            print(f"left out, {reason}: {count:,}")


def _part(text: str, kind: str) -> Any:
    from plait.synth import MixPart

    path, _, times = text.partition("=")
    if not Path(path).is_file():
        raise UsageError(f"{path} is not a chat file")
    try:
        return MixPart(Path(path), float(times or 1), kind)
    except ValueError as error:
        raise UsageError(f"{text}: write FILE or FILE=TIMES, such as chats.jsonl=0.5 ({error})") from None


def _table_qa(args: argparse.Namespace) -> Skill:
    from plait.synth import TableQA, read_csv

    return TableQA(
        tables=[read_csv(path) for path in args.csv],
        layouts=("paragraphs",) if args.paragraphs else ("markdown", "csv"),
        distractors=list(_documents(args.distractors)) if args.distractors else (),
        max_distractors=args.max_distractors,
    )


def _document_qa(args: argparse.Namespace) -> Skill:
    from plait.synth import DocumentQA

    places: dict[str, Any] = {"positions": args.position} if args.position else {}
    if args.tokenizer is not None:
        from plait.text import Tokenizer

        tokenizer = Tokenizer.from_folder(args.tokenizer)
        places["count_tokens"] = lambda text: len(tokenizer.encode(text))
    return DocumentQA(
        _documents(args.documents),
        context_tokens=args.context or (0,),
        similarity=args.similarity,
        judges=not args.no_judge,
        **places,
    )


def _tool_use(args: argparse.Namespace) -> Skill:
    from plait.synth import ToolUse, read_functions
    from plait.synth.mock_tools import BUILT_IN_FUNCTIONS
    from plait.synth.tool_use import CASES

    functions = [function for path in args.functions for function in read_functions(path)]
    return ToolUse(functions or list(BUILT_IN_FUNCTIONS), cases=args.case or CASES)


def _tool_records(args: argparse.Namespace) -> Skill:
    from plait.synth import ToolRecords

    if not args.records.is_file():
        raise UsageError(f"{args.records} is not a file of records")
    return ToolRecords(args.records)


def _steerability(args: argparse.Namespace) -> Skill:
    from plait.synth import Steerability
    from plait.synth.reward import judged

    return Steerability(samples=args.samples, reward=None if args.no_judge else judged)


def _documents(path: Path | None) -> Iterable[Document]:
    from plait.data import default_corpus, read_documents

    return default_corpus()[0] if path is None else read_documents(path)


def _decontaminator(paths: list[Path]) -> Decontaminator | None:
    from plait.synth import Decontaminator, read_evaluation_set

    return Decontaminator({path.stem: read_evaluation_set(path) for path in paths}) if paths else None


@contextmanager
def _requester(args: argparse.Namespace) -> Iterator[Requester | None]:
    """The model behind a queue: one call of many requests in process, many calls of one over HTTP."""
    if args.model is None:
        yield None
        return
    from plait.synth import AnswerCache, Requester, RequestLimits

    generator: Any
    if args.model.startswith(("http://", "https://")):
        from plait.text.openai_client import OpenAIClient

        key = os.environ.get("PLAIT_API_KEY") or os.environ.get("OPENAI_API_KEY")
        generator = OpenAIClient(args.model, model=args.served_name, api_key=key, n_parallel=1)
        name, limits = generator.model, RequestLimits(calls=args.batch, batch=1, per_minute=args.per_minute)
    else:
        from plait.cli.generate import load_llm

        generator, name = load_llm(args), args.model
        limits = RequestLimits(calls=1, batch=args.batch, per_minute=args.per_minute)
    cache = AnswerCache(args.cache or args.out.with_name(f"{args.out.name}.cache.sqlite"))
    try:
        with Requester(generator, name, limits=limits, cache=cache) as requester:
            yield requester
    finally:
        cache.close()
