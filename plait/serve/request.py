"""What is asked of the engine, and what it gives back: token ids only, text is `answer.py`'s."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from plait.serve.service import Grammar, PrefixUse
from plait.text import SamplingParams, TokenLogprob
from plait.text.generator import FinishReason


@dataclass(frozen=True)
class Request:
    """A prompt of at least one token, and how to go on from it."""

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    end_ids: frozenset[int] = frozenset()  # the model's own and params.stop_token_ids; none with ignore_eos
    turns: tuple[int, ...] = ()  # token counts at which a turn of the conversation ends: states are kept there
    priority: int = 0  # lower goes first; each level is worth `aging` steps of waiting
    grammar: Grammar | None = None
    salt: str = ""  # requests share cached prefixes with those of the same salt only
    is_private: bool = False  # with nobody: nothing is left in the cache, though its own answers share the prompt


class Output(NamedTuple):
    """What a step brought for one answer. The last one of an answer has a `finish_reason`."""

    request: int
    answer: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprob, ...]  # of each token, if asked for
    prompt_logprobs: tuple[TokenLogprob, ...]  # of the prompt's next tokens; the first token of all has none
    prefix: PrefixUse
    error: str | None = None  # with finish_reason "abort": why it could not go on
