"""What a server asks of an engine, wherever it runs: answers as they are written, cancelling, and its figures."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
class EngineStats:
    """The engine now (gauges) and since its start (counters end in _total)."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0
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


class EngineError(RuntimeError):
    """The engine died or gave a request up; the message says why, and nothing of the request is left in it."""


class Service(Protocol):
    """An engine with its tokenizer and chat template, as a server sees it."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    max_context: int

    def answers(
        self, request: GenerationRequest, *, priority: int = 0, grammar: Grammar | None = None
    ) -> AsyncIterator[Delta]:
        """The pieces of all n answers as they come. What is wrong with the request is a ValueError before the first;
        EngineError if the engine fails. Closing the iterator cancels the request.
        """
        ...

    async def embed(self, token_ids: list[int]) -> list[float]:
        """The mean of the final hidden states over the tokens [d_model]."""
        ...

    async def stats(self) -> EngineStats: ...

    async def is_ready(self) -> bool: ...
