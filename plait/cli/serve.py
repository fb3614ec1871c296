"""`plait serve`: an OpenAI-compatible server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.cli.screen import Commands, UsageError

if TYPE_CHECKING:
    from plait.serve.http import ServerSettings
    from plait.serve.options import EngineOptions

_ENGINE = (  # flag, type, help; the defaults are EngineOptions' own
    ("--max-context", int, "tokens of prompt and answer together (the model's own)"),
    ("--max-running", int, "answers written at once (16)"),
    ("--max-batched-tokens", int, "tokens of one step (2048)"),
    ("--tensor-parallel", int, "processes that share the model (1)"),
    ("--kv-dtype", str, "of keys and values: a dtype, or int8 (the model's)"),
    ("--cache-tokens", int, "tokens that keys and values have room for (from the memory there is)"),
    ("--host-gib", float, "GiB of host memory for what a GPU's cache has no room for (0)"),
    ("--disk", str, "a folder for what neither has room for; with --disk-gib"),
    ("--disk-gib", float, "how much of it for each engine (0)"),
    ("--host-state-dtype", str, "of recurrent states there: float32, or int8, a third of it and not exact (float32)"),
    ("--n-drafts", int, "tokens guessed from the text before and verified at once (0)"),
)
_FLEET = (  # flag, type, help; the defaults are Fleet's own
    ("--replicas", int, "engines; with --max-replicas the least (1)"),
    ("--max-replicas", int, "engines that Ray may start when there is much to do (no more than --replicas)"),
    ("--http-replicas", int, "HTTP servers in front of them (1)"),
)
_SERVER = (  # flag, field of ServerSettings, type, help
    ("--host", "host", str, "address to listen on (127.0.0.1)"),
    ("--port", "port", int, "port; 0 takes a free one (8000)"),
    ("--max-tokens", "max_tokens", int, "tokens an answer may have (what fits the context)"),
    ("--max-body-mib", "max_body_bytes", float, "size of a request's body in MiB (16)"),
    ("--max-concurrent", "max_concurrent", int, "requests in the engine at once (256)"),
    ("--max-queued", "max_queued", int, "requests that wait; the next one gets a 429 (1024)"),
    ("--request-timeout", "request_timeout_s", float, "seconds until an answer must be whole (600)"),
    ("--drain", "drain_s", float, "seconds that answers may go on after SIGTERM (30)"),
)


def add(commands: Commands) -> None:
    parser = commands.add_parser("serve", help="an OpenAI-compatible server")
    add_engine_arguments(parser)
    for flag, field, kind, text in _SERVER:
        parser.add_argument(flag, dest=field, type=kind, metavar="N" if kind is not str else "HOST", help=text)
    parser.add_argument("--served-name", action="append", metavar="NAME", help="name of the model; may be repeated")
    parser.add_argument(
        "--api-key", action="append", metavar="KEY", help="may be repeated; PLAIT_API_KEY is one more, unseen by ps"
    )
    parser.add_argument("--api-keys", type=Path, metavar="FILE", help="hashed keys, made by --new-key")
    parser.add_argument("--new-key", metavar="NAME", help="make a key, add its hash to --api-keys, print it and leave")
    parser.add_argument("--allow-no-key", action="store_true", help="let other machines in without a key")
    parser.add_argument("--lenient", action="store_true", help="ignore fields that nobody knows instead of refusing")
    parser.add_argument("--batch-dir", type=Path, metavar="DIR", help="keep files and batches there (none are taken)")
    parser.add_argument("--log-prompts", action="store_true", help="write requests' bodies to the log")
    fleet = parser.add_argument_group("several engines")
    fleet.add_argument("--ray", action="store_true", help="with Ray Serve, on this machine or RAY_ADDRESS's cluster")
    for flag, kind, text in _FLEET:
        fleet.add_argument(flag, type=kind, metavar="N", help=text)
    parser.set_defaults(handler=run)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    from plait.cli.generate import add_model_arguments

    add_model_arguments(parser)
    for flag, kind, text in _ENGINE:
        parser.add_argument(flag, type=kind, metavar="NAME" if kind is str else "N", help=text)
    parser.add_argument("--expert-parallel", action="store_true", help="those processes share whole experts")
    parser.add_argument("--no-prefix-cache", action="store_true", help="compute every prompt anew")


def engine_options(args: argparse.Namespace) -> EngineOptions:
    from plait.serve.options import EngineOptions

    names = ["model", "device", "dtype", "quantize", *(_field(flag) for flag, _, _ in _ENGINE)]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    try:
        return EngineOptions(**given, prefix_cache=not args.no_prefix_cache, expert_parallel=args.expert_parallel)
    except ValueError as error:
        raise UsageError(str(error)) from error


def server_settings(args: argparse.Namespace) -> ServerSettings:
    from plait.serve.http import ServerSettings

    given: dict[str, Any] = {name: value for _, name, _, _ in _SERVER if (value := getattr(args, name)) is not None}
    if "max_body_bytes" in given:
        given["max_body_bytes"] = round(given["max_body_bytes"] * 2**20)
    from_environment = [key for key in [os.environ.get("PLAIT_API_KEY")] if key]
    try:
        return ServerSettings(
            **given,
            model_names=tuple(args.served_name or ()),
            api_keys=(*(args.api_key or ()), *from_environment),
            api_key_file=args.api_keys,
            allow_no_key=args.allow_no_key,
            lenient=args.lenient,
            log_prompts=args.log_prompts,
            batch_folder=args.batch_dir,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    import asyncio

    need_serve_extra()
    from plait.serve.http import log_json_lines, new_key

    if args.new_key is not None:
        if args.api_keys is None:
            raise UsageError("--new-key adds to a file: name it with --api-keys FILE")
        print(new_key(args.new_key, args.api_keys))
        return 0
    settings, options = server_settings(args), engine_options(args)
    name = Path(args.model).name or args.model
    fleet = {key: value for flag, _, _ in _FLEET if (value := getattr(args, key := _field(flag))) is not None}
    if not args.ray and fleet:
        raise UsageError(f"--{'/--'.join(fleet)} need --ray".replace("_", "-"))
    log_json_lines()
    with asyncio.Runner(loop_factory=None if args.ray else _fast_loop()) as runner:
        runner.run(_serve_with_ray(options, settings, fleet, name) if args.ray else _serve(options, settings, name))
    return 0


def _field(flag: str) -> str:
    return flag[2:].replace("-", "_")


async def _serve_with_ray(options: EngineOptions, settings: ServerSettings, given: dict[str, Any], name: str) -> None:
    from importlib.util import find_spec

    if not find_spec("ray"):
        raise ValueError("ray must be installed for this: pip install 'plait[serve,ray]'")
    from plait.serve.http.logs import logger
    from plait.serve.ray import Fleet, run

    try:
        fleet = Fleet(**given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    logger.info("loading", extra={"model": options.model, "replicas": fleet.replicas})
    await run(options, settings, fleet, name=name)


async def _serve(options: EngineOptions, settings: ServerSettings, name: str) -> None:
    from plait.serve.async_llm import AsyncLLM
    from plait.serve.http import serve
    from plait.serve.http.logs import logger

    logger.info("loading", extra={"model": options.model})
    service = await AsyncLLM.start(options, name=name)
    try:
        await serve(service, settings)
    finally:
        await service.close()


def need_serve_extra() -> None:
    """Raises ValueError if what the server needs beyond the core isn't installed."""
    from importlib.util import find_spec

    needed = ("starlette", "uvicorn", "pydantic", "prometheus_client", "msgspec")
    missing = [name for name in needed if not find_spec(name)]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be installed for this: pip install 'plait[serve]'")


def _fast_loop() -> Any:
    """uvloop's event loop if it is there; the standard one does the same, somewhat slower."""
    from importlib import import_module
    from importlib.util import find_spec

    return import_module("uvloop").new_event_loop if find_spec("uvloop") else None
