"""What a launched step will bring, on its way from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from plait.serve.grammar import Guide
from plait.serve.logprobs import Logprobs
from plait.serve.plan import Row, RowResult, Start, StepPlan, StepResult
from plait.text import TokenLogprob


class Arriving:
    """Tensors copied to the host; on CUDA into pinned memory, behind what was launched before."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event = None
        self._tensors = list(tensors)
        if any(t.is_cuda for t in tensors):
            self._tensors = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for here, there in zip(self._tensors, tensors, strict=True):
                here.copy_(there, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[Tensor]:
        if self._event is not None:
            self._event.synchronize()
        return self._tensors


@dataclass(frozen=True)
class DrawnRow:
    """A row that draws: its logits are rows first .. first + n_drafts of those computed."""

    row: Row
    start: Start
    guide: Future[Guide] | None
    first: int

    @property
    def drafts(self) -> tuple[int, ...]:
        if not self.row.n_drafts:
            return ()
        assert self.row.tokens is not None
        return tuple(self.row.tokens[-self.row.n_drafts :])


@dataclass
class Pending:
    """A step under way. What each sequence drew can be asked once the device is done."""

    plan: StepPlan
    drawn: list[DrawnRow]
    arriving: Arriving  # the tokens, then log-probabilities
    asking: list[int]  # rows of logits that have log-probabilities
    prompts: list[tuple[Row, Start]]  # rows with log-probabilities of their prompt
    failed: dict[int, str] = field(default_factory=dict)  # sequence -> why its grammar can't go on
    _is_digested: bool = False

    @cached_property
    def token_ids(self) -> list[int]:
        return self.arriving.wait()[0].tolist() if self.drawn else []

    def tokens_of(self, drawn: DrawnRow) -> tuple[int, ...]:
        """The drafts that were right, and the token drawn behind them."""
        tokens = self.token_ids[drawn.first : drawn.first + drawn.row.n_drafts + 1]
        for n_right, (draft, token) in enumerate(zip(drawn.drafts, tokens, strict=False)):
            if draft != token:
                return tuple(tokens[: n_right + 1])
        return tuple(tokens)

    def digest(self) -> None:
        """Tell the grammars what was drawn; once."""
        if self._is_digested:
            return
        self._is_digested = True
        for drawn in self.drawn:
            if drawn.guide is not None and drawn.row.sequence not in self.failed:
                drawn.guide.result().advance(self.tokens_of(drawn))

    def result(self) -> StepResult:
        tensors = self.arriving.wait()
        logprobs, prompt_logprobs = self._logprobs(tensors), self._prompt_logprobs(tensors)
        results = {}
        for drawn in self.drawn:
            if drawn.row.sequence in self.failed:
                continue
            tokens = self.tokens_of(drawn)
            of_tokens = tuple(logprobs[drawn.first + i] for i in range(len(tokens)) if drawn.first + i in logprobs)
            results[drawn.row.sequence] = (tokens, of_tokens)
        rows = tuple(
            RowResult(r.sequence, *results.get(r.sequence, ((), ())), prompt_logprobs.get(r.sequence, ()))
            for r in self.plan.rows
        )
        return StepResult(self.plan.number, rows, self.failed)

    def _logprobs(self, tensors: list[Tensor]) -> dict[int, TokenLogprob]:
        if not self.asking:
            return {}
        n_top = {d.first + i: d.start.params.logprobs or 0 for d in self.drawn for i in range(d.row.n_drafts + 1)}
        token_ids = [self.token_ids[i] for i in self.asking]
        records = Logprobs(*tensors[1:4]).records(token_ids, [n_top[i] for i in self.asking])
        return dict(zip(self.asking, records, strict=True))

    def _prompt_logprobs(self, tensors: list[Tensor]) -> dict[int, tuple[TokenLogprob, ...]]:
        if not self.prompts:
            return {}
        token_ids: list[int] = []
        n_top: list[int] = []
        for row, start in self.prompts:
            following = prompt_after(row, start)
            token_ids += following
            n_top += [start.params.prompt_logprobs or 0] * len(following)
        records = iter(Logprobs(*tensors[-3:]).records(token_ids, n_top))
        return {row.sequence: tuple(next(records) for _ in prompt_after(row, start)) for row, start in self.prompts}


def prompt_after(row: Row, start: Start) -> Sequence[int]:
    """The prompt tokens that follow each of a row's, as far as there are any."""
    return start.prompt[row.context_len + 1 : row.context_len + row.n_tokens + 1]
