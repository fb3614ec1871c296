"""`plait batch`: answer a file of requests in OpenAI's batch format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from plait.cli.screen import Commands, UsageError, print_json
from plait.cli.serve import add_engine_arguments, engine_options, need_serve_extra

if TYPE_CHECKING:
    from plait.serve.http.batch import BatchResult


def add(commands: Commands) -> None:
    parser = commands.add_parser("batch", help="answer a file of requests (OpenAI's batch format)")
    parser.add_argument("source", type=Path, metavar="IN", help="JSONL: custom_id, method, url, body")
    parser.add_argument("target", type=Path, metavar="OUT", help="JSONL of answers; OUT.partial until all are there")
    engine = argparse.ArgumentParser(add_help=False)
    add_engine_arguments(engine)
    for action in engine._actions:
        if action.option_strings:
            parser._add_action(action)
    parser.add_argument("--model", required=True, metavar="MODEL", help="a model's folder, or `demo`")
    parser.add_argument("--parallel", type=int, default=256, metavar="N", help="requests under way (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    import asyncio
    from dataclasses import asdict

    if args.parallel < 1:
        raise UsageError(f"--parallel {args.parallel} must be at least 1")
    need_serve_extra()
    result = asyncio.run(_run(args))
    if args.json:
        print_json(asdict(result))
    else:
        resumed = f", {result.n_resumed} of them by an earlier run" if result.n_resumed else ""
        print(f"{result.n_requests} requests{resumed}; {result.n_failed} failed")
    if not args.target.exists():
        raise OSError("some requests failed for want of the engine: run the same command again to have them tried")
    return 0


async def _run(args: argparse.Namespace) -> BatchResult:
    from plait.serve.async_llm import AsyncLLM
    from plait.serve.http import ServerSettings, run_batch

    def progress(n_done: int, n_requests: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{n_done} of {n_requests}", end="\n" if n_done == n_requests else "", file=sys.stderr, flush=True)

    settings = ServerSettings(request_timeout_s=24 * 3600, max_queued=10**6)
    service = await AsyncLLM.start(engine_options(args), name=Path(args.model).name or args.model)
    try:
        return await run_batch(
            service, args.source, args.target, settings=settings, n_parallel=args.parallel, on_answer=progress
        )
    finally:
        await service.close()
