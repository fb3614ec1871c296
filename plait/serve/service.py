"""What a server asks of an engine, wherever it runs: answers as they are written, cancelling, and its figures."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from plait.config import ModelConfig
from plait.text import ChatTemplate, GenerationRequest, Tokenizer, TokenLogprob
from plait.text.generator import FinishReason


@dataclass(frozen=True)
class Grammar:
    """What an answer must match: exactly one kind of constraint, as text (a JSON schema is its JSON)."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar"]
    text: str


@dataclass(frozen=True)
class PrefixUse:
    """Tokens of a prompt that the prefix cache knew: `matched` in the tree, `usable` with pages and a state (these were
    not computed again), `lost` for want of a state (matched - usable).
    """

    matched: int = 0
    usable: int = 0
    lost: int = 0


@dataclass(frozen=True)
class Delta:
    """A piece of one answer. Pieces of one answer come in order, its last has a `finish_reason`."""

    answer: int  # which of the request's n
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None  # with the first piece, if asked for
    prefix: PrefixUse = field(default_factory=PrefixUse)


@dataclass(frozen=True)
class RunningAnswer:
    """One answer of the batch, in tokens."""

    prompt: int
    cached: int  # of the prompt, not computed again
    fed: int  # of prompt and answer, computed
    written: int


@dataclass(frozen=True)
class TreeBranch:
    """A run of tokens of the prefix tree; `depth` branches hang above it."""

    depth: int
    tokens: int
    has_state: bool  # at its end, so that a prompt can go on from there
    n_users: int  # running answers whose prompts run through it
    tier: str  # where its pages are: device, host, disk


@dataclass(frozen=True)
class EngineStats:
    """The engine now (gauges) and since its start (counters end in _total)."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0
    pages_cached: int = 0  # of these, held for the prefix cache alone: all of them when nothing runs
    pages: int = 0
    slots_used: int = 0  # by running sequences
    slots_cached: int = 0  # by states of the prefix tree
    slots: int = 0
    host_states: int = 0
    step_ms: float = 0.0
    steps_total: int = 0
    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    preemptions_total: int = 0
    prefix_matched_total: int = 0
    prefix_usable_total: int = 0
    prefix_lost_total: int = 0
    drafts_total: int = 0
    drafts_accepted_total: int = 0
    batch: tuple[RunningAnswer, ...] = ()
    tree: tuple[TreeBranch, ...] = ()


class EngineError(RuntimeError):
    """The engine died or gave a request up; the message says why, and nothing of the request is left in it."""


class Service(Protocol):
    """An engine with its tokenizer and chat template, as a server sees it."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> ChatTemplate: ...

    @property
    def max_context(self) -> int: ...

    def answers(
        self, request: GenerationRequest, *, priority: int = 0, grammar: Grammar | None = None
    ) -> AsyncGenerator[Delta, None]:
        """The pieces of all n answers as they come. What is wrong with the request is a ValueError before the first;
        EngineError if the engine fails. Closing the generator cancels the request.
        """
        ...

    async def embed(self, token_ids: list[int]) -> list[float]:
        """The mean of the final hidden states over the tokens [d_model]."""
        ...

    async def stats(self) -> EngineStats: ...

    async def is_ready(self) -> bool: ...
