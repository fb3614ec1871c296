"""One step of the engine, as planning hands it to execution and what comes back. No torch on this side.

A step has three parts: *plan* decides which tokens of which sequences run and which states and pages move, *execute*
does exactly that on the device, *commit* takes the drawn tokens back into the books. A plan names places, never values:
the token that a decode row feeds may still be on the device when the next step is planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from plait.text import TokenLogprob

Mode = Literal["fresh", "resume", "decode"]
Tier = Literal["device", "host", "disk"]


class Place(NamedTuple):
    """Where one state or one page lies: its number in the pools of the device, of the host, or of the disk."""

    tier: Tier
    number: int


class Copy(NamedTuple):
    """Copy one sequence's recurrent state (all Mamba layers), or one page of keys and values (all attention layers)."""

    kind: Literal["state", "page"]
    source: Place
    target: Place


@dataclass(frozen=True)
class Row:
    """One sequence's share of a step: `n_tokens` tokens behind `context_len` that its slot and pages already hold.

    `tokens` None stands for the one token drawn for this sequence in the step before, which the device holds.
    Of the last `n_drafts` tokens each is a guess: the row's result says how many were right.
    """

    sequence: int
    mode: Mode  # said, never inferred from counts
    n_tokens: int
    context_len: int
    slot: int
    pages: tuple[int, ...]  # in order, enough for context_len + n_tokens
    tokens: tuple[int, ...] | None
    draws: bool  # the row reaches the end of what is known: draw the next token from its last logits
    n_drafts: int = 0
    wants_prompt_logprobs: bool = False


@dataclass(frozen=True)
class StepPlan:
    """Copies in `before` run first and in order, then the rows as one batch (decode rows first), then `after`."""

    number: int
    rows: tuple[Row, ...]
    before: tuple[Copy, ...] = ()
    after: tuple[Copy, ...] = ()
    released: tuple[int, ...] = ()  # sequences that ended since the last plan: forget what is kept for their draws


@dataclass(frozen=True)
class RowResult:
    """What a row brought: nothing if it didn't draw, else one token, and before it the drafts that were right."""

    sequence: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # of each, if the request asks
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # of prompt tokens context_len + 1 .. context_len + n_tokens


@dataclass(frozen=True)
class StepResult:
    number: int
    rows: tuple[RowResult, ...]  # in the order of the plan's
    failed: Mapping[int, str] = field(default_factory=dict)  # sequence -> why it alone can't go on (its grammar broke)
