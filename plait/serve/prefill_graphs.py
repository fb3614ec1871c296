"""Steps with prompts or guesses in them on fixed buffers, as CUDA graphs: a few hundred launches a step become one,
which for chunks of up to about a thousand tokens halves the time (docs/kernels_launch.md).

A graph is of so many tokens and rows. What a step leaves free belongs to one more sequence, padding, whose slot and
pages are the spare ones; rows that decode are segments of one token. Lengths, slots, pages and where a state is
exported lie on the device, so one graph serves any step that fits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from plait.model.layout import Exports, Layout
from plait.model.network import LanguageModel
from plait.model.state import State
from plait.serve.graphs import captured
from plait.serve.inputs import PageTables, Rows, packed, sent, unpacked

LARGEST = 1024  # tokens: above it the kernels take longer than their launches, and long chunks have faster attention
LONGEST = 4096  # tokens of a sequence, from which one token's keys should be split among programs
FEW = 4  # tokens a row on average, up to which kernels do that
log = logging.getLogger("plait.serve")

Shape = tuple[int, int]  # tokens, rows


def prompt_shapes(largest: int, most_rows: int) -> list[Shape]:
    """For steps with prompts of up to `largest` tokens: where experts' weights bound the time, padding is free; then
    steps of 128; each for one row and for as many as may run.
    """
    sizes = [n for n in (16, 32, 64, 128, 256, *range(384, largest, 128)) if n < largest] + [largest]
    return [(n_tokens, n_rows) for n_tokens in sizes for n_rows in sorted({1, most_rows})]


def guess_shapes(n_drafts: int, most_rows: int) -> list[Shape]:
    """For steps in which rows verify up to n_drafts guesses each, and others decode. Each token costs the weights of
    its experts, so one row has a graph of every length (what was right before a wrong guess is fed again). All have
    rows enough, if need be empty ones, for FEW tokens a row.
    """
    shapes = {(n, 1) for n in range(2, 2 * n_drafts + 2)}
    per_row = [n for n in (1.5, 2, 3, 4, 6, 8, 12, 16) if n < n_drafts + 1] + [n_drafts + 1]
    for n_rows in [n for n in (2, 4, 8, 16, 64) if n < most_rows] + [most_rows] * (most_rows > 1):
        shapes |= {(int(n * n_rows), n_rows) for n in per_row}
    return sorted({(n_tokens, max(n_rows, -(-n_tokens // FEW) - 1)) for n_tokens, n_rows in shapes})


class StaticPrefill:
    """One step of up to n_tokens tokens of up to n_rows rows, all of whose inputs lie in buffers that never move."""

    def __init__(
        self, model: LanguageModel, state: State, tables: PageTables, last: Tensor, hidden: Tensor, n_rows: int, *,
        exporting: bool,
    ) -> None:  # fmt: skip
        """`state` and `tables` have a spare slot, their last; `last` [n_seats] holds drawn tokens; the results go to
        hidden [n_tokens, d_model].
        """
        self.exporting = exporting
        self.model, self.state, self.tables, self.last, self.hidden = model, state, tables, last, hidden
        self.n_tokens = n_tokens = len(hidden)
        self.spare, n = state.n_slots - 1, n_rows + 1
        self._host = [
            np.zeros(n_tokens, np.int64), np.zeros(n_tokens, np.int64), np.full(n, self.spare),
            np.full(n, self.spare), np.full(n + 1, n_tokens, np.int32), np.zeros(n, np.int32), np.zeros(n, np.int32),
            np.ones(n, np.bool_),
        ]  # fmt: skip
        self._host[4][0] = 0
        self._buffer = torch.from_numpy(packed(self._host)).to(last.device)
        self._device = unpacked(self._buffer, self._host)
        self._segments = torch.arange(n, device=last.device)
        self._token_ids = torch.zeros(1, n_tokens, dtype=torch.long, device=last.device)
        self._page_table = torch.full((n, tables.host.shape[1]), tables.n_pages, dtype=torch.int32, device=last.device)

    def fill(self, rows: Rows) -> None:
        """Put rows into the buffers, padding behind them."""
        known, seats, slots, export_slots, starts, contexts, at, fresh = self._host
        n = len(rows.slots)
        for whole, own, rest in (
            (known, rows.known, 0), (seats, rows.seats, 0), (slots, rows.slots, self.spare),
            (contexts, rows.contexts, 0), (fresh, rows.fresh(), True), (at, np.diff(rows.starts), 0),
        ):  # fmt: skip
            whole[: len(own)] = own
            whole[len(own) :] = rest
        starts[: n + 1] = rows.starts
        starts[n + 1 :] = rows.n_tokens
        starts[-1] = self.n_tokens  # the last sequence is the padding, those between are empty
        export_slots[:] = self.spare
        for segment, tokens, slot in rows.exports:
            at[rows.n_decode + segment], export_slots[rows.n_decode + segment] = tokens, slot
        self._buffer.copy_(sent(packed(self._host), self.last.device))
        if len(rows.news):
            self.tables.send(sent(rows.news, self.last.device))

    def step(self) -> None:
        """Everything from the buffers to the hidden states; no shape and no launch depends on what the buffers hold."""
        known, seats, slots, export_slots, starts, contexts, at, fresh = self._device
        torch.where(known < 0, self.last.index_select(0, seats), known, out=self._token_ids[0])
        torch.index_select(self.tables.device, 0, slots, out=self._page_table)
        layout = Layout.flat(  # anew: it keeps what it computes
            n_tokens=self.n_tokens,
            n_decode=0,
            cu_seqlens=starts,
            slots=slots,
            fresh=fresh,
            context_lens=contexts,
            page_table=self._page_table,
            exports=Exports(at, self._segments, export_slots) if self.exporting else None,
        )
        self.hidden.copy_(self.model(self._token_ids, layout, self.state, keep="none").hidden)


class PrefillGraphs:
    """Static steps by number of tokens and rows."""

    def __init__(
        self, model: LanguageModel, state: State, tables: PageTables, last: Tensor, shapes: Sequence[Shape], *,
        exporting: bool = True, keep: Literal[True] | None,
    ) -> None:  # fmt: skip
        """exporting: whether rows may ask for a state inside their tokens. keep: None holds what `capture_all` could
        make on a GPU, True also runs uncaptured, for tests. Of the shapes, those remain for whose tokens a line of
        `tables` has pages, since padding may be all of them.
        """
        room = tables.host.shape[1] * state.page_size
        self._shapes = sorted({(min(n_tokens, room), n_rows) for n_tokens, n_rows in shapes})
        hidden = torch.empty(self._shapes[-1][0], model.config.d_model, dtype=model.dtype, device=last.device)
        self._hidden, self._parts = hidden, (model, state, tables, last)
        self._exporting, self._keep = exporting, keep
        self._steps: dict[Shape, tuple[StaticPrefill, Callable[[], object]]] = {}
        self.why_not: str | None = None  # why steps can't be kept, once that was seen

    def run(self, rows: Rows) -> Tensor | None:
        """Hidden states [n_tokens, d_model], good until the next step; None if the step fits no graph."""
        n_rows, n_tokens = len(rows.slots), rows.n_tokens
        shape = next((shape for shape in self._shapes if shape[0] >= n_tokens and shape[1] >= n_rows), None)
        if shape is None or (rows.exports and not self._exporting):
            return None
        if shape[0] > FEW * (shape[1] + 1) and int(rows.contexts.max()) + max(rows.lengths) > LONGEST:
            return None
        if self._keep and shape not in self._steps:
            static = self._static(shape)
            self._steps[shape] = static, static.step
        if shape not in self._steps:
            return None
        static, replay = self._steps[shape]
        static.fill(rows)
        replay()
        return static.hidden[:n_tokens]

    def _static(self, shape: Shape) -> StaticPrefill:
        n_tokens, n_rows = shape
        return StaticPrefill(*self._parts, self._hidden[:n_tokens], n_rows, exporting=self._exporting)

    @torch.inference_mode()
    def run_all(self) -> None:
        """Every step that `capture_all` makes, once, and keep none."""
        for shape in self._shapes:
            self._static(shape).step()

    @torch.inference_mode()
    def capture_all(self, pool: Any = None) -> None:
        """Make every graph, the largest first, so that the others share its memory; `pool`: also of other graphs."""
        for shape in reversed(self._shapes):
            static = self._static(shape)
            kept = captured(static.step, pool)
            if isinstance(kept, str):
                self.why_not = kept
                log.warning("steps with prompts run one kernel at a time, not as a graph: %s", kept)
                return
            pool = kept.pool()
            self._steps[shape] = static, kept.replay
