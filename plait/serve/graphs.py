"""Decode steps on fixed buffers, kept so that a step is one launch: as CUDA graphs at a ladder of batch sizes, on a CPU
as tapes of native kernels for a few rows.

A batch is padded to the next size; the padding rows write to a spare slot and page that nobody reads. The same path can
be called without graph or tape, so that it is tested everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from plait.model.layout import Layout
from plait.model.network import LanguageModel
from plait.model.replay import recorded
from plait.model.state import State
from plait.serve.inputs import PageTables, Rows, sent_together

MOST_ON_CPU = 8  # rows: with more, the calls are little beside the work, and a tape keeps all that is between
log = logging.getLogger("plait.serve")


def ladder(largest: int) -> list[int]:
    """Batch sizes 1, 2, 4, 8, then steps of a quarter to a half, up to `largest` (itself the last)."""
    sizes = [n for k in range(20) for n in ((1 << k,) if k < 4 else (1 << k, 3 << (k - 1)))]
    return [n for n in sizes if n < largest] + [largest]


class StaticDecode:
    """One decode step of `size` rows, all of whose inputs lie in buffers that never move."""

    def __init__(self, model: LanguageModel, state: State, tables: PageTables, last: Tensor, size: int) -> None:
        """`state` and `tables` have a spare slot, their last; `last` [n_seats] holds drawn tokens."""
        device = last.device
        self.model, self.state, self.tables, self.last, self.size = model, state, tables, last, size
        self.known = torch.zeros(size, dtype=torch.long, device=device)  # -1: drawn before, in `last`
        self.seats = torch.zeros(size, dtype=torch.long, device=device)
        self.spare = state.n_slots - 1
        self.slots = torch.full((size,), self.spare, device=device)
        self.contexts = torch.ones(size, dtype=torch.int32, device=device)
        self.starts = torch.arange(size + 1, dtype=torch.int32, device=device)
        self.fresh = torch.zeros(size, dtype=torch.bool, device=device)
        self.token_ids = torch.zeros(1, size, dtype=torch.long, device=device)
        self.page_table = torch.empty(size, tables.host.shape[1], dtype=torch.int32, device=device)
        self.logits: Tensor | None = None

    def fill(self, rows: Rows) -> None:
        """Put rows into the buffers, padding behind them."""
        arrays: list[np.ndarray] = [
            _padded(rows.known, self.size, 0),
            _padded(rows.seats, self.size, 0),
            _padded(rows.slots, self.size, self.spare),
            _padded(rows.contexts, self.size, 1),
            *([rows.news] if len(rows.news) else []),
        ]
        numbers = sent_together(arrays, self.last.device)
        if len(rows.news):
            self.tables.send(numbers.pop())
        for buffer, new in zip((self.known, self.seats, self.slots, self.contexts), numbers, strict=True):
            buffer.copy_(new)

    def step(self) -> None:
        """Everything from the buffers to the logits; no shape and no launch depends on what the buffers hold."""
        self.take_inputs()
        logits = self.forward()
        if self.logits is None:
            self.logits = logits
        else:
            self.logits.copy_(logits)

    def take_inputs(self) -> None:
        """Token ids and page table out of what the device holds."""
        torch.where(self.known < 0, self.last.index_select(0, self.seats), self.known, out=self.token_ids[0])
        torch.index_select(self.tables.device, 0, self.slots, out=self.page_table)

    def forward(self) -> Tensor:
        """Logits [size, vocab_size]."""
        layout = Layout.flat(
            n_tokens=self.size,
            n_decode=self.size,
            cu_seqlens=self.starts,
            slots=self.slots,
            fresh=self.fresh,
            context_lens=self.contexts,
            page_table=self.page_table,
        )
        return self.model.logits(self.model(self.token_ids, layout, self.state, keep="none").hidden)


def _padded(values: np.ndarray, size: int, padding: int) -> np.ndarray:
    """np.pad at a twentieth of its time."""
    if len(values) == size:
        return values
    whole = np.full(size, padding, values.dtype)
    whole[: len(values)] = values
    return whole


class DecodeGraphs:
    """Static decode steps by batch size, each made when it is first needed or by `capture_all`."""

    def __init__(
        self,
        model: LanguageModel,
        state: State,
        tables: PageTables,
        last: Tensor,
        *,
        largest: int,
        keep: Literal[True] | None,
    ) -> None:
        """For batches of up to `largest` rows. keep: None runs on fixed buffers only where steps can be kept, True even
        where they can't (and on a CPU keeps none, so that the buffers can be tested by themselves).
        """
        self._parts = (model, state, tables, last)
        self._keep = keep
        self._is_cuda = last.is_cuda
        if keep is None and not self._is_cuda:
            self.sizes = list(range(1, min(largest, MOST_ON_CPU) + 1))
        else:
            self.sizes = ladder(largest)
        self._steps: dict[int, tuple[StaticDecode, Callable[[], object]]] = {}
        self._pool: Any = None
        self.why_not: str | None = None  # why steps can't be kept, once that was seen

    def run(self, rows: Rows) -> Tensor | None:
        """Logits [n, vocab_size] of n decode rows, good until the next step; None if that is better done without."""
        n = len(rows.slots)
        size = next((size for size in self.sizes if size >= n), None)
        if size is None or not self._pays():
            return None
        static, replay = self._get(size)
        if not self._pays():
            return None
        static.fill(rows)
        replay()
        assert static.logits is not None
        return static.logits[:n]

    @torch.inference_mode()
    def run_all(self) -> None:
        """Every step that `capture_all` makes, once, and keep none."""
        for size in self.sizes:
            StaticDecode(*self._parts, size).step()

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Make every size now, the largest first, so that the others share its memory."""
        for size in reversed(self.sizes):
            if self._pays():
                self._get(size)

    @torch.inference_mode()
    def try_one(self) -> None:
        """Make the step of one row now: why steps can't be kept is then said before the first answer, not within it."""
        if self._pays():
            self._get(self.sizes[0])

    def _pays(self) -> bool:
        return self._keep is not None or self.why_not is None

    def _get(self, size: int) -> tuple[StaticDecode, Callable[[], object]]:
        if size not in self._steps:
            static = StaticDecode(*self._parts, size)
            self._steps[size] = static, self._kept(static)
        return self._steps[size]

    def _kept(self, static: StaticDecode) -> Callable[[], object]:
        if self.why_not is not None or (self._keep and not self._is_cuda):
            return static.step
        kept = captured(static.step, self._pool) if self._is_cuda else _taped(static)
        if isinstance(kept, torch.cuda.CUDAGraph):
            self._pool = kept.pool()
            return kept.replay
        if not isinstance(kept, str):
            return kept
        self.why_not = kept
        log.warning(
            "decode steps run one kernel at a time, not as a %s: %s", "graph" if self._is_cuda else "tape", kept
        )
        return static.step


def captured(step: Callable[[], object], pool: Any) -> torch.cuda.CUDAGraph | str:
    """A step as a CUDA graph that shares the memory of `pool` (None: its own), or why not."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):  # kernels are compiled and buffers made before the capture
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return graph


def _taped(static: StaticDecode) -> Callable[[], object] | str:
    """The step as a tape, or why not."""
    static.take_inputs()
    kept = recorded(static.forward)
    if isinstance(kept, str):
        return kept
    replay, static.logits = kept

    def run() -> None:
        static.take_inputs()
        replay()

    return run
