"""Engines on other machines as one `Service`, asked through a Ray Serve handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError

from plait.model.checkpoint import read_config
from plait.serve.build import find_model
from plait.serve.options import EngineOptions
from plait.serve.prefix_routing import latest_figures, prefix_keys
from plait.serve.prompts import Prompts
from plait.serve.service import Delta, EngineError, EngineStats, Grammar, RunningAnswer, TreeBranch
from plait.text import GenerationRequest

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

MAX_TRIES = 3
"""Of a request that no replica has begun to answer."""


@dataclass(frozen=True)
class Failure:
    """What a replica sends instead of a piece: so errors keep their kind, unlike exceptions that Ray carries."""

    reason: str
    is_refusal: bool  # the request is wrong; else the engine failed


class RayService:
    """The model's folder must be there on this machine too: texts become tokens on either side."""

    def __init__(self, engines: DeploymentHandle, options: EngineOptions, name: str) -> None:
        folder = find_model(options.model)
        self.name, self.config = name, read_config(folder)
        self.prompts = Prompts.of_folder(folder, self.config, max_context=options.max_context)
        self._engines = engines

    @property
    def tokenizer(self) -> Any:
        return self.prompts.tokenizer

    @property
    def chat_template(self) -> Any:
        return self.prompts.chat_template

    @property
    def max_context(self) -> int:
        return self.prompts.max_context

    async def answers(
        self, request: GenerationRequest, *, priority: int = 0, grammar: Grammar | None = None
    ) -> AsyncGenerator[Delta, None]:
        """`Service.answers`. A request whose replica dies before the first piece goes to another one; behind the first
        piece that is an EngineError, because a client has part of an answer that nobody can take back.
        """
        keys, ask = prefix_keys(request), self._engines.options(stream=True).answers
        for n_tries in range(1, MAX_TRIES + 1):
            has_begun = False
            pieces: Any = ask.remote(request, priority, grammar, keys=keys)
            try:
                async for piece in pieces:
                    if isinstance(piece, Failure):
                        raise ValueError(piece.reason) if piece.is_refusal else EngineError(piece.reason)
                    has_begun = True
                    yield piece
                return
            except RayError as error:
                if has_begun or n_tries == MAX_TRIES:
                    raise EngineError(f"the replica that answered is gone ({_first_line(error)})") from error
            finally:
                pieces.cancel()  # of no effect when it has ended

    async def embed(self, token_ids: list[int]) -> list[float]:
        """`Service.embed`."""
        try:
            found = await self._engines.embed.remote(token_ids)
        except RayError as error:
            raise EngineError(f"the replica that was asked is gone ({_first_line(error)})") from error
        if isinstance(found, Failure):
            raise ValueError(found.reason) if found.is_refusal else EngineError(found.reason)
        return list(found)

    async def stats(self) -> EngineStats:
        """All replicas together, as of a few seconds ago (`step_ms`: the slowest)."""
        return summed([_stats(figures) for figures in latest_figures()])

    async def is_ready(self) -> bool:
        """Whether a replica takes requests."""
        try:
            return bool(await asyncio.wait_for(self._engines.is_ready.remote(), 2))
        except (TimeoutError, RayError):
            return False


def summed(stats: list[EngineStats]) -> EngineStats:
    """Several engines' figures as one's."""
    sums: dict[str, Any] = {
        f.name: sum(getattr(s, f.name) for s in stats) for f in fields(EngineStats) if f.type in ("int", "float")
    }
    batch: tuple[RunningAnswer, ...] = tuple(answer for s in stats for answer in s.batch)
    tree: tuple[TreeBranch, ...] = tuple(branch for s in stats for branch in s.tree)
    return EngineStats(**sums | {"step_ms": max((s.step_ms for s in stats), default=0.0), "batch": batch, "tree": tree})


def _stats(figures: dict[str, Any]) -> EngineStats:
    """From the plain values that Ray carries."""
    batch = tuple(RunningAnswer(**row) for row in figures["batch"])
    tree = tuple(TreeBranch(**row) for row in figures["tree"])
    return EngineStats(**figures | {"batch": batch, "tree": tree})


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
