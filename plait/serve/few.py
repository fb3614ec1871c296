"""Steps of few tokens on a CPU, whatever their rows are, kept as tapes of native kernels: guesses being verified, the
rest of a prompt that was found in the cache, and what decodes beside them.

A step of four tokens then costs what reading the weights for four tokens costs, and not four times that in Python
between the kernels. Decode steps have tapes of their own (graphs.py), without the copies in and out of slots.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from plait.model.layout import Layout
from plait.model.network import LanguageModel
from plait.model.replay import recorded
from plait.model.state import State
from plait.serve.inputs import PageTables, Rows

MOST_TOKENS = 8  # of a step: with more, products are the library's, which no tape holds
log = logging.getLogger("plait.serve")


class ShortSteps:
    """By number of rows and of tokens a tape, made when it is first needed."""

    def __init__(self, model: LanguageModel, state: State, tables: PageTables, last: Tensor) -> None:
        """`state` and `tables` have a spare slot, their last; `last` [n_seats] holds drawn tokens."""
        self._parts = (model, state, tables, last)
        self._tapes: dict[tuple[int, int], _Step] = {}
        self.why_not: str | None = None  # why steps can't be kept, once that was seen

    def run(self, rows: Rows) -> Tensor | None:
        """Logits [n_tokens, vocab_size], good until the next step; None for rows that are better run without."""
        if rows.n_tokens > MOST_TOKENS or rows.exports or self.why_not is not None:
            return None
        key = len(rows.slots), rows.n_tokens
        if key not in self._tapes:
            step = _Step(*self._parts, *key)
            self.why_not = step.keep()
            if self.why_not is not None:
                log.info("steps of few tokens run one kernel at a time, not as a tape: %s", self.why_not)
                return None
            self._tapes[key] = step
        return self._tapes[key](rows)


class _Step:
    """n_rows rows of n_tokens tokens together, all of whose inputs lie in buffers that never move."""

    def __init__(
        self, model: LanguageModel, state: State, tables: PageTables, last: Tensor, n_rows: int, n_tokens: int
    ) -> None:
        self.model, self.state, self.tables, self.last, self.n_tokens = model, state, tables, last, n_tokens
        self.token_ids = torch.zeros(1, n_tokens, dtype=torch.long)
        self.starts = torch.arange(n_rows + 1, dtype=torch.int32)
        self.starts[-1] = n_tokens
        self.slots = torch.full((n_rows,), state.n_slots - 1)
        self.fresh = torch.zeros(n_rows, dtype=torch.bool)
        self.contexts = torch.ones(n_rows, dtype=torch.int32)
        self.page_table = torch.full((n_rows, tables.host.shape[1]), tables.n_pages, dtype=torch.int32)
        self._replay: Callable[[], object]
        self._logits: Tensor

    def keep(self) -> str | None:
        """Make the tape, in the spare slot and page; or say why there can't be one."""
        kept = recorded(self._forward)
        if isinstance(kept, str):
            return kept
        self._replay, self._logits = kept
        return None

    def __call__(self, rows: Rows) -> Tensor:
        known = torch.from_numpy(rows.known)
        if rows.some_on_device:
            known = torch.where(known < 0, self.last[torch.from_numpy(rows.seats)], known)
        self.token_ids[0] = known
        for buffer, new in (
            (self.starts, rows.starts), (self.slots, rows.slots), (self.fresh, rows.fresh()),
            (self.contexts, rows.contexts),
        ):  # fmt: skip
            buffer.copy_(torch.from_numpy(new))
        torch.index_select(self.tables.device, 0, self.slots, out=self.page_table)
        self._replay()
        return self._logits

    def _forward(self) -> Tensor:
        layout = Layout.flat(
            n_tokens=self.n_tokens,
            n_decode=0,  # one that decodes is here a segment of one token
            cu_seqlens=self.starts,
            slots=self.slots,
            fresh=self.fresh,
            context_lens=self.contexts,
            page_table=self.page_table,
        )
        return self.model.logits(self.model(self.token_ids, layout, self.state, keep="none").hidden)
