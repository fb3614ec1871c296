"""What evaluation and data synthesis ask of a model, whether it runs in this process or behind an HTTP endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from plait.text.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt: exactly one of messages, prompt (bare text) and token_ids.

    tools, documents and knobs go with messages (`ChatTemplate`).
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | None = None
    token_ids: Sequence[int] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    knobs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        prompts = {name: getattr(self, name) for name in ("messages", "prompt", "token_ids")}
        given = [name for name, value in prompts.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of messages, prompt and token_ids, not {' and '.join(given) or 'none'}")
        extras = [name for name in ("tools", "documents", "knobs") if getattr(self, name) is not None]
        if extras and self.messages is None:
            raise ValueError(f"{' and '.join(extras)} go with messages, not with {given[0]}")


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log of the probability of one token, and of the likeliest ones in its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob)


@dataclass(frozen=True)
class Completion:
    """One answer. `text` has no stop string and no end token; `token_ids` are the new ones, an end token included."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None  # one per new token, if asked for
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None  # one per prompt token; the first has none
    cached_tokens: int = field(default=0, compare=False)  # of the prompt: found in the cache, not computed again
    lost_tokens: int = field(default=0, compare=False)  # known to the cache too, but computed again for want of a state


@dataclass(frozen=True)
class ScoreRequest:
    """How likely is `continuation` behind `context`? Both text, or both token ids; the context may be empty."""

    context: str | Sequence[int]
    continuation: str | Sequence[int]

    def __post_init__(self) -> None:
        if isinstance(self.context, str) != isinstance(self.continuation, str):
            raise ValueError("context and continuation must both be text or both be token ids")
        if not self.continuation:
            raise ValueError("continuation must not be empty")


@dataclass(frozen=True)
class Score:
    logprob: float  # natural log, summed over the continuation's tokens
    is_greedy: bool  # each of them is the likeliest where it stands
    n_tokens: int  # of the continuation


class Generator(Protocol):
    """A model that answers and scores. Text goes in and comes out; batching is its own affair."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """All answers, in the order of the requests, the `sampling.n` of one request side by side."""
        ...

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One score per request, in order."""
        ...
