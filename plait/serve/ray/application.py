"""The Ray Serve application: HTTP replicas in front, engine replicas behind, a prefix-aware router between them.

plait serve MODEL --ray --replicas 2
serve run plait.serve.ray:app model=/models/jamba-1.5-mini replicas=2
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import ray
from ray import serve

from plait.model.checkpoint import read_config
from plait.parallel.mesh import check_tensor_split
from plait.serve.async_llm import AsyncLLM
from plait.serve.build import find_model
from plait.serve.http import ServerSettings, create_app, log_json_lines
from plait.serve.http.logs import logger
from plait.serve.options import EngineOptions
from plait.serve.ray.service import Failure, RayService
from plait.serve.service import Delta, EngineError, Grammar
from plait.text import GenerationRequest

NAME = "plait"
"""Of the application on its cluster."""

_QUIET = {"enable_access_log": False}  # our own log has a line a request

FIGURES_S = 2.0
"""How often replicas report their engines' figures."""


@dataclass(frozen=True)
class Fleet:
    """How many of everything. Raises ValueError for numbers that make no sense.

    An engine replica with tensor_parallel=N takes N GPUs of one machine; on CPUs it takes `cpus`.
    """

    replicas: int = 1  # of the engine; with max_replicas the least
    max_replicas: int | None = None  # None: no autoscaling
    target_requests: int = 16  # under way in a replica, which autoscaling aims at
    max_requests: int = 256  # under way in a replica; more wait in the router
    http_replicas: int = 1
    cpus: float = 1.0  # of an engine replica

    def __post_init__(self) -> None:
        for name in ("replicas", "target_requests", "max_requests", "http_replicas"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas={self.max_replicas} must be at least replicas={self.replicas}")
        if self.cpus < 0:
            raise ValueError(f"cpus={self.cpus} must not be negative")


class EngineReplica:
    """One engine, in a process of its own below this actor: an `AsyncLLM` for callers elsewhere."""

    async def __init__(self, options: EngineOptions, name: str) -> None:  # type: ignore[misc]  # Ray awaits it
        self.llm = await AsyncLLM.start(options, name=name)

    async def answers(
        self, request: GenerationRequest, priority: int, grammar: Grammar | None, *, keys: tuple[int, ...]
    ) -> AsyncGenerator[Delta | Failure, None]:
        """`keys` are for the router."""
        try:
            async for piece in self.llm.answers(request, priority=priority, grammar=grammar):
                yield piece
        except (ValueError, EngineError) as error:
            yield Failure(str(error), isinstance(error, ValueError))

    async def embed(self, token_ids: list[int]) -> list[float] | Failure:
        try:
            return await self.llm.embed(token_ids)
        except (ValueError, EngineError) as error:
            return Failure(str(error), isinstance(error, ValueError))

    async def is_ready(self) -> bool:
        return await self.llm.is_ready()

    async def record_routing_stats(self) -> dict[str, Any]:
        """Ray calls it, and brings what it returns to the routers."""
        return asdict(await self.llm.stats()) if await self.llm.is_ready() else {}

    def check_health(self) -> None:
        """Ray replaces a replica that raises. An engine that is being started again is not a reason to."""
        if self.llm.has_ended:
            raise RuntimeError("the engine has ended for good")


@serve.ingress()
class HttpReplica:
    """The HTTP server of `plait serve`, as an application under Ray's proxies."""

    def __init__(self, engines: Any, options: EngineOptions, name: str, settings: ServerSettings) -> None:
        self.service, self.settings = RayService(engines, options, name), settings

    def __serve_build_asgi_app__(self) -> Any:
        log_json_lines()
        return create_app(self.service, self.settings)


def application(
    options: EngineOptions, settings: ServerSettings | None = None, fleet: Fleet | None = None, *, name: str = ""
) -> serve.Application:
    """What `ray.serve.run` takes. Raises ValueError for a model that isn't there or can't be shared as asked: Ray would
    try again and again.
    """
    check_tensor_split(read_config(find_model(options.model)), options.tensor_parallel)
    settings, fleet = settings or ServerSettings(), fleet or Fleet()
    if settings.batch_folder is not None:
        raise ValueError("batch_folder: replicas can't share one; answer batches with `plait batch`, or without Ray")
    name = name or Path(options.model).name or options.model
    n_gpus = options.tensor_parallel if options.device.startswith("cuda") else 0
    engines = serve.deployment(
        name="Engine",
        ray_actor_options={"num_cpus": fleet.cpus, "num_gpus": n_gpus},
        max_ongoing_requests=fleet.max_requests,
        request_router_config={
            "request_router_class": "plait.serve.ray.router.PrefixRouter",
            "request_routing_stats_period_s": FIGURES_S,
        },
        health_check_period_s=5,
        **_how_many(fleet),
    )(EngineReplica)
    http = serve.deployment(
        name="Http",
        num_replicas=fleet.http_replicas,
        ray_actor_options={"num_cpus": 0.5},
        max_ongoing_requests=settings.max_concurrent + settings.max_queued + 64,  # what is beyond gets its 429 from us
    )(HttpReplica)
    return http.bind(engines.bind(options, name), options, name, settings)


def _how_many(fleet: Fleet) -> dict[str, Any]:
    if fleet.max_replicas is None:
        return {"num_replicas": fleet.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": fleet.replicas,
            "max_replicas": fleet.max_replicas,
            "target_ongoing_requests": fleet.target_requests,
        }
    }


def app(args: Mapping[str, Any]) -> serve.Application:
    """The application from the `args` of a Ray Serve config file (or of `serve run`): fields of EngineOptions,
    ServerSettings and Fleet by their names, and `name`. Raises ValueError for others.

    Ray's proxies listen, so port and host are theirs (`http_options`); others are taken to reach them: without a key
    the args must say `allow_no_key: true`.
    """
    kinds = (EngineOptions, ServerSettings, Fleet)
    known = {f.name: f for kind in kinds for f in fields(kind)}
    unknown = [key for key in args if key not in known and key != "name"]
    if unknown or "model" not in args:
        raise ValueError(
            f"args: {', '.join(unknown) + ' is not known' if unknown else 'model is missing'};"
            f" there are name, {', '.join(known)}"
        )
    given: dict[str, Any] = {"host": "0.0.0.0"}
    given |= {key: _read(value, str(known[key].type)) for key, value in args.items() if key != "name"}
    options, settings, fleet = (_made(kind, given) for kind in kinds)
    return application(options, settings, fleet, name=args.get("name", ""))


def _made(kind: Any, given: Mapping[str, Any]) -> Any:
    return kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given})


def _read(value: Any, kind: str) -> Any:
    """`serve run` gives text where a config file gives numbers, and a file gives lists where we have tuples."""
    if kind.startswith("tuple"):
        return tuple(value.split(",")) if isinstance(value, str) else tuple(value)
    if kind.startswith("Path"):
        return Path(value)
    if not isinstance(value, str) or kind.startswith("str"):
        return value
    if kind.startswith("bool"):
        return {"true": True, "false": False}[value.lower()]
    return float(value) if kind.startswith("float") else int(value)


async def run(options: EngineOptions, settings: ServerSettings, fleet: Fleet, *, name: str = "") -> None:
    """Serve on the cluster that RAY_ADDRESS names, or on one of this machine's own, until SIGTERM or SIGINT; then the
    application is taken down, and with it a cluster that was made for it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody unless it was asked to
    await asyncio.to_thread(start, options, settings, fleet, name=name)
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # behind Ray's start, which sets handlers of its own
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    page = f"http://{settings.host}:{settings.port}/"
    logger.info("serving", extra={"url": f"{page}v1", "page": page, "models": [name]})
    try:
        await done.wait()
    finally:
        await asyncio.to_thread(stop)


def start(options: EngineOptions, settings: ServerSettings, fleet: Fleet, *, name: str = "") -> None:
    """Ray, its proxies on the settings' host and port, and the application; returns when it takes requests."""
    if settings.port == 0:
        raise ValueError("port=0: Ray's proxies can't take any free one; name it")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": settings.host, "port": settings.port, "location": "HeadOnly"})
    serve.run(application(options, settings, fleet, name=name), name=NAME, route_prefix="/", logging_config=_QUIET)


def stop() -> None:
    serve.shutdown()
    ray.shutdown()
