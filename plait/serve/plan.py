"""One step of the engine, as planning hands it to execution and what comes back. No torch on this side.

A step has three parts: *plan* decides which tokens of which sequences run and which states and pages move, *execute*
does exactly that on the device, *commit* takes the drawn tokens back into the books. A plan names places, never values:
the token that a decode row feeds may still be on the device when the next step is planned.

Plans are executed strictly in order, and the books are kept as if each had run: a slot freed while a step is under way
is handed out in the next plan, whose copies and rows come behind. So a row may belong to a sequence that has ended
meanwhile; its result is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from plait.serve.service import Grammar
from plait.text import SamplingParams, TokenLogprob

Mode = Literal["fresh", "resume", "decode"]
Tier = Literal["device", "host", "disk"]


class Place(NamedTuple):
    """Where one state or one page lies: its number in the pools of the device, of the host, or of the disk."""

    tier: Tier
    number: int


class Copy(NamedTuple):
    """Copy one sequence's recurrent state (all Mamba layers), or one page of keys and values (all attention layers).

    A page is copied whole, though perhaps only its first tokens are meant.
    """

    kind: Literal["state", "page"]
    source: Place
    target: Place


class Start(NamedTuple):
    """What drawing for a sequence needs, said once, in the plan of its first row. It holds until `released` names it,
    through preemption too.
    """

    sequence: int
    prompt: Sequence[int]  # for penalties and prompt logprobs
    params: SamplingParams
    end_ids: frozenset[int]  # not drawn before params.min_tokens; none if the answer goes on through them
    answer: int  # which of params.n: it has a random stream of its own
    grammar: Grammar | None


class Row(NamedTuple):
    """One sequence's share of a step: `n_tokens` tokens behind `context_len` that its slot and pages already hold.

    `tokens` None stands for the one token drawn for this sequence, in this slot, in the step before: the device holds
    it. Of the last `n_drafts` tokens each is a guess: the row's result says how many were right. `pages` is a list of
    the sequence's own: the same object at most grows, when pages are replaced there is a new one. Read it in `launch`.

    A NamedTuple, because making a frozen dataclass takes longer than all the rest of planning a decode row.
    """

    sequence: int
    mode: Mode  # said, never inferred from counts
    n_tokens: int
    context_len: int
    slot: int
    pages: Sequence[int]  # in order, enough for context_len + n_tokens; may be more
    tokens: Sequence[int] | None
    draws: bool  # the row reaches the end of what is known: draw the next token from its last logits
    n_drafts: int = 0
    wants_prompt_logprobs: bool = False
    export: tuple[int, int] | None = None  # (n, slot): the state behind the first n < n_tokens of it goes there too


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Copies in `before` run first and in order, then the rows as one batch (decode rows first), then `after`."""

    number: int
    rows: Sequence[Row]  # may be empty, when only copies are left to do
    before: Sequence[Copy] = ()
    after: Sequence[Copy] = ()
    started: Sequence[Start] = ()
    released: Sequence[int] = ()  # sequences that ended since the last plan: forget what is kept for their draws


class RowResult(NamedTuple):
    """What a row brought: nothing if it didn't draw, else one token, and before it the drafts that were right."""

    sequence: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # of each, if the request asks
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # of prompt tokens context_len + 1 .. context_len + n_tokens


@dataclass(frozen=True, slots=True)
class StepResult:
    number: int
    rows: Sequence[RowResult]  # in the order of the plan's
    failed: Mapping[int, str] = field(default_factory=dict)  # sequence -> why it alone can't go on (its grammar broke)


class Executor(Protocol):
    """Executes plans in the order they are launched. An exception from either method means that nothing in the pools
    can be trusted any more: the engine then calls `reset`, drops all it has and passes the exception on.
    """

    def launch(self, plan: StepPlan) -> None:
        """Begin a step; returns before it is done where the device can work alone. At most two are under way."""
        ...

    def collect(self) -> StepResult:
        """Wait for the oldest step under way."""
        ...

    def reset(self) -> None:
        """Forget all sequences and steps under way. What the pools hold is of no use any more."""
        ...
