"""Carries out plans: copies, the model, the draws. On a GPU `launch` only sets things going; `collect` waits."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plait.model.layout import Layout, Segment
from plait.model.network import LanguageModel
from plait.model.state import PAGE_SIZE, State
from plait.model.warm_up import compile_ahead, one_layer_of_each_kind, warm_up
from plait.serve.drawing import Bans, Histories, Recipe, draw, has_penalties, request_key, uniforms
from plait.serve.few import ShortSteps
from plait.serve.grammar import Grammars, Guide
from plait.serve.graphs import DecodeGraphs
from plait.serve.inputs import PageTables, Rows, layout_of, sent, sent_together
from plait.serve.logprobs import SLICE, joined, logprobs_of
from plait.serve.plan import Row, Start, StepPlan, StepResult
from plait.serve.prefill_graphs import LARGEST, PrefillGraphs, guess_shapes, prompt_shapes
from plait.serve.results import Arriving, DrawnRow, Pending, prompt_after
from plait.serve.service import Grammar
from plait.serve.tiers import Tiers
from plait.text import Tokenizer


@dataclass
class Kept:
    """What is kept of one sequence between its draws."""

    start: Start
    key: int  # of its random numbers
    guide: Future[Guide] | None
    line: int | None = None  # in the histories, if it has penalties


class Runner:
    """Executes plans over one model and its pools. One slot and one page more than asked for are its own."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        n_slots: int,
        n_pages: int,
        page_size: int = PAGE_SIZE,
        max_context: int | None = None,
        max_running: int | None = None,
        split: int = 1,
        kv_dtype: torch.dtype | None = None,
        host_states: int = 0,
        host_pages: int = 0,
        disk: Path | None = None,
        int8_states: bool = False,
        n_drafts: int = 0,
        tokenizer: Tokenizer | None = None,
        static: bool | None = None,
        chunk: int = 2048,
    ) -> None:
        """Plans may name slots below n_slots, pages below n_pages, and as many places in host memory; `disk` is a
        folder of its own; int8_states: SSM states there and on the host are int8. static: decode steps of up to
        max_running rows (None: n_slots) run on fixed buffers (None: where they can be kept as graphs or tapes).
        kv_dtype: of keys and values, None for the model's. split: tensor-parallel processes. n_drafts: that rows may
        have, for graphs. chunk: tokens that `embed` runs at once. tokenizer: for grammars.
        """
        self.model = model.eval()
        config = model.config
        self.device = model.embed.weight.device
        with torch.inference_mode():
            self.state = State.empty(
                config,
                n_slots=n_slots + 1,
                n_pages=n_pages + 1,
                page_size=page_size,
                dtype=model.dtype,
                kv_dtype=kv_dtype,
                split=split,
                device=self.device,
            )
            state = self.state
            for pool in (state.conv, state.ssm, state.k, state.v, state.k_scales, state.v_scales):
                if pool is not None:
                    pool[:, -1] = 0  # the spare: padding rows stay finite
            max_pages = -(-(max_context or config.max_context) // page_size)
            self._tables = PageTables(n_slots + 1, max_pages, n_pages, self.device)
            self._last = torch.zeros(4 * n_slots, dtype=torch.long, device=self.device)  # drawn tokens, by seat
            self._histories = Histories(config.vocab_size, self.device)
            self._tiers = Tiers(
                self.state, host_states=host_states, host_pages=host_pages, disk=disk, int8_states=int8_states
            )
            self.max_running, self.split = min(max_running or n_slots, n_slots), split
            self._static, self._n_drafts = static, n_drafts
            self._make_static()
        self.n_slots, self.n_pages, self.chunk = n_slots, n_pages, chunk
        self._seats: dict[int, int] = {}  # sequence -> where its last drawn token is kept, from start to release
        self._free_seats = list(range(4 * n_slots))
        self._kept: dict[int, Kept] = {}
        ends = {*config.eos_ids, *(tokenizer.eos_ids if tokenizer else ())}
        self._grammars = Grammars(tokenizer, config.vocab_size, ends)
        self._guiding = ThreadPoolExecutor(1, "plait-grammar")
        self._recipe: tuple[object, Recipe, np.ndarray] | None = None
        self._under_way: deque[Pending] = deque()

    # ---- what planning calls ----

    def check_grammar(self, grammar: Grammar) -> None:
        """Raises ValueError for one that can't be followed; in a plan, it would fail its sequence at the first draw."""
        self._guiding.submit(self._grammars.guide, grammar).result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> None:
        """Set a plan going; several may be under way. Raises ValueError for a plan that contradicts itself."""
        self._forget(plan.released)
        for start in plan.started:
            self._begin(start)
        self._tiers.run(plan.before)
        self._under_way.append(self._step(plan) if plan.rows else Pending(plan, [], Arriving([]), [], []))
        self._tiers.run(plan.after)

    def collect(self) -> StepResult:
        """What the oldest plan under way brought, once it is done."""
        pending = self._under_way.popleft()
        pending.digest()
        return pending.result()

    @torch.inference_mode()
    def warm_up(self, most_tokens: int | None = None) -> None:
        """Before the first sequence: make all static decode steps now rather than when they are first needed, and on a
        GPU run prefills of up to most_tokens (None: `chunk`), so that no request waits for a compiler. Processes that
        share the model do so together.
        """
        most = most_tokens or self.chunk
        if self.device.type == "cuda":
            compile_ahead(lambda: self._rehearse(most), share=((self.device.index or 0) % self.split, self.split))
            warm_up(self.model, self.state, most)
            for prefills in self.prefills:
                prefills.capture_all()
        if self.graphs is not None:
            self.graphs.capture_all()

    def _rehearse(self, most_tokens: int) -> None:
        """Every step that `warm_up` takes, on the kinds of layers there are."""
        with one_layer_of_each_kind(self.model):
            warm_up(self.model, self.state, most_tokens)
            for steps in (*self.prefills, self.graphs):
                if steps is not None:
                    steps.run_all()

    def reset(self) -> None:
        """Forget all sequences and steps under way."""
        self._under_way.clear()
        self._kept.clear()
        self._seats.clear()
        self._free_seats = list(range(len(self._last)))
        self._histories = Histories(self.model.config.vocab_size, self.device)
        self._recipe = None
        self._tables.forget()

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> list[float]:
        """The mean of the final hidden states over the tokens [d_model]; runs at once, in chunks, on pools of its own.

        Raises ValueError for no tokens.
        """
        if not token_ids:
            raise ValueError("token_ids is empty: an embedding is of at least one token")
        config, n = self.model.config, len(token_ids)
        size = self.state.page_size
        n_pages = -(-n // size)
        state = State.empty(
            config,
            n_slots=1,
            n_pages=n_pages,
            page_size=size,
            dtype=self.model.dtype,
            split=self.split,
            device=self.device,
        )
        ids = sent(np.array([token_ids], np.int64), self.device)
        total = torch.zeros(config.d_model, dtype=torch.float32, device=self.device)
        for start in range(0, n, self.chunk):
            piece = ids[:, start : start + self.chunk]
            segment = Segment(0, piece.shape[1], "resume" if start else "fresh", 0, start, tuple(range(n_pages)))
            layout = Layout.of([segment], 1, piece.shape[1], self.device)
            total += self.model(piece, layout, state, keep="none").hidden.float().sum(0)
        return (total / n).tolist()

    def close(self) -> None:
        """Wait for what is being written to disk. Raises OSError if some of it failed."""
        self._guiding.shutdown()
        self._tiers.close()

    # ---- one step ----

    def _begin(self, start: Start) -> None:
        seed = secrets.randbits(63) if start.params.seed is None else start.params.seed
        guide = None if start.grammar is None else self._guiding.submit(self._grammars.guide, start.grammar)
        if not self._free_seats:  # many were preempted: move to a longer row of seats
            n = len(self._last)
            self._last = torch.cat([self._last, torch.zeros_like(self._last)])
            self._free_seats = list(range(n, 2 * n))
            self._make_static()
        self._seats[start.sequence] = self._free_seats.pop()
        self._kept[start.sequence] = Kept(start, request_key(seed, start.answer), guide)

    def _forget(self, sequences: Sequence[int]) -> None:
        for sequence in sequences:
            if sequence not in self._kept:
                continue  # it ended before its first row
            kept = self._kept.pop(sequence)
            self._free_seats.append(self._seats.pop(sequence))
            if kept.line is not None:
                self._histories.close(kept.line)
        if sequences:
            self._recipe = None  # a number may come back

    def _make_static(self) -> None:
        """Steps on fixed buffers, none kept yet: those that only decode, on a CPU those of few tokens, on a GPU those
        with guesses, and those with prompts.
        """
        is_cpu, kept = self.device.type == "cpu", self._static
        parts = self.model, self.state, self._tables, self._last
        self.graphs: DecodeGraphs | None = None
        self.short: ShortSteps | None = None
        self.prefills: list[PrefillGraphs] = []
        if kept is False:
            return
        self.graphs = DecodeGraphs(*parts, largest=self.max_running, keep=kept)
        if is_cpu and kept is None:
            self.short = ShortSteps(*parts)
        elif self.model.config.mamba_kind == "mamba":  # Mamba-2 reads lengths on the host
            if self._n_drafts:
                shapes = guess_shapes(self._n_drafts, self.max_running)
                self.prefills.append(PrefillGraphs(*parts, shapes, exporting=False, keep=kept))
            self.prefills.append(PrefillGraphs(*parts, prompt_shapes(LARGEST, self.max_running), keep=kept))

    def _step(self, plan: StepPlan) -> Pending:
        self._check(plan.rows)
        rows = Rows(plan.rows, self._tables, self.state.page_size, self._seats)
        drawn = self._drawn(plan.rows)
        guided = [d for d in drawn if d.guide is not None]
        masks = self._guiding.submit(self._masks, guided, tuple(self._under_way)) if guided else None
        hidden = logits = None
        if self.graphs is not None and rows.n_decode == len(plan.rows):
            logits = self.graphs.run(rows)
        elif self.short is not None and not any(row.wants_prompt_logprobs for row in plan.rows):
            logits = self.short.run(rows)
        if logits is None:
            hidden = next((done for graphs in self.prefills if (done := graphs.run(rows)) is not None), None)
        if logits is None and hidden is None:
            token_ids, layout = layout_of(rows, self._tables, self._last)
            hidden = self.model(token_ids, layout, self.state, keep="none").hidden
        arriving: list[Tensor] = []
        asking: list[int] = []
        failed: dict[int, str] = {}
        if drawn:
            logits = self._logits_of(drawn, rows, hidden, logits)
            allowed, failed = ({}, {}) if masks is None else masks.result()
            arriving, asking = self._draw(drawn, logits, allowed)
        prompts = self._prompts(plan.rows)
        if prompts:
            assert hidden is not None
            arriving += self._prompt_logprobs(plan.rows, rows, hidden)
        return Pending(plan, drawn, Arriving(arriving), asking, prompts, failed)

    def _check(self, rows: Sequence[Row]) -> None:
        """A slot or page that isn't there would be another sequence's to torch."""
        unknown = [row.sequence for row in rows if row.sequence not in self._kept]
        if unknown:
            raise ValueError(f"sequence {unknown[0]} has a row and was never started")
        slots = [row.slot for row in rows] + [row.export[1] for row in rows if row.export is not None]
        if len(set(slots)) != len(slots) or min(slots) < 0 or max(slots) >= self.n_slots:
            raise ValueError(f"slots {slots} of a plan must differ and lie between 0 and {self.n_slots - 1}")

    def _drawn(self, rows: Sequence[Row]) -> list[DrawnRow]:
        drawn, first = [], 0
        for row in rows:
            if row.draws:
                kept = self._kept[row.sequence]
                drawn.append(DrawnRow(row, kept.start, kept.guide, first))
                first += row.n_drafts + 1
        return drawn

    def _logits_of(self, drawn: list[DrawnRow], rows: Rows, hidden: Tensor | None, logits: Tensor | None) -> Tensor:
        """Logits of the positions that draw, in the order of `drawn`."""
        n = drawn[-1].first + drawn[-1].row.n_drafts + 1
        given = hidden if logits is None else logits
        assert given is not None
        if n < len(given):
            ends = (int(end) for end, row in zip(rows.starts[1:], rows.rows, strict=True) if row.draws)
            places = [
                end - back for end, d in zip(ends, drawn, strict=True) for back in range(d.row.n_drafts + 1, 0, -1)
            ]
            given = given[sent(np.array(places, np.int64), self.device)]
        return self.model.logits(given) if logits is None else given

    def _draw(
        self, drawn: list[DrawnRow], logits: Tensor, allowed: dict[int, np.ndarray]
    ) -> tuple[list[Tensor], list[int]]:
        """Draw, and remember what was drawn. Returns what to send to the host, and which rows have logprobs."""
        recipe, keys = self._recipe_for(drawn)
        guessed, follows = self._guesses(drawn)
        u = None
        if not recipe.is_greedy:
            positions = [
                d.row.context_len + d.row.n_tokens - d.row.n_drafts + i
                for d in drawn
                if not d.start.params.is_greedy
                for i in range(d.row.n_drafts + 1)
            ]
            u = sent(uniforms(keys, np.array(positions, np.uint64)), self.device)
        tokens = draw(logits, recipe, u, self._histories, self._bans(drawn, allowed), guessed)
        self._remember(drawn, recipe, tokens, follows)
        arriving = [tokens]
        if recipe.asking:
            mine = logits if recipe.asking_rows is None else logits[recipe.asking_rows]
            of = tokens if recipe.asking_rows is None else tokens[recipe.asking_rows]
            arriving += logprobs_of(mine, of, recipe.n_top)
        return arriving, recipe.asking

    def _recipe_for(self, drawn: list[DrawnRow]) -> tuple[Recipe, np.ndarray]:
        """The recipe of these rows and the keys of those that sample, made anew when the batch changes."""
        batch = [(d.row.sequence, d.row.n_drafts) for d in drawn]
        if self._recipe is None or self._recipe[0] != batch:
            rows = [(self._kept[d.row.sequence], d) for d in drawn for _ in range(d.row.n_drafts + 1)]
            for kept, d in rows:
                if kept.line is None and has_penalties(d.start):
                    kept.line = self._histories.open(d.start.prompt)
            recipe = Recipe(
                [d.start for _, d in rows], [kept.line for kept, _ in rows], self.model.config.vocab_size, self.device
            )
            keys = np.array([kept.key for kept, d in rows if not d.start.params.is_greedy], np.uint64)
            self._recipe = batch, recipe, keys
        return self._recipe[1], self._recipe[2]

    def _guesses(self, drawn: list[DrawnRow]) -> tuple[Tensor | None, Tensor | None]:
        """For verify rows, [n, k] each: the drafts before each row of logits (-1: none), and the rows of logits of each
        drawn row beside them (see `_remember`).
        """
        k = max(d.row.n_drafts for d in drawn)
        if not k:
            return None, None
        before = [d.drafts[:i] + (-1,) * (k - i) for d in drawn for i in range(d.row.n_drafts + 1)]
        n = len(before)
        follows = np.full(n, -1, np.int64)
        for d in drawn:
            follows[d.first : d.first + d.row.n_drafts] = d.drafts
        guessed, following = sent_together([np.array(before, np.int64).ravel(), follows], self.device)
        return guessed.view(n, k), following

    def _remember(self, drawn: list[DrawnRow], recipe: Recipe, tokens: Tensor, follows: Tensor | None) -> None:
        """Keep the last token of each sequence for its next row, and count those drawn for penalties."""
        seats = np.array([self._seats[d.row.sequence] for d in drawn], np.int64)
        if follows is None:
            self._last.index_copy_(0, sent(seats, self.device), tokens)
            reached = None
        else:
            firsts = np.array([d.first for d in drawn], np.int64)
            owners = np.repeat(np.arange(len(drawn)), [d.row.n_drafts + 1 for d in drawn])
            where, first, owner = sent_together([seats, firsts, owners.astype(np.int64)], self.device)
            wrong = (tokens != follows).long().cumsum(0)  # a row is reached if no row of its sequence before was wrong
            n_wrong = wrong - (tokens != follows).long()
            reached = n_wrong == n_wrong[first][owner]
            n_reached = torch.zeros_like(first).index_add_(0, owner, reached.long())
            self._last.index_copy_(0, where, tokens[first + n_reached - 1])
        if recipe.penalties is not None:
            p = recipe.penalties
            counted = torch.ones_like(p.rows) if reached is None else reached[p.rows].long()
            self._histories.counts.index_put_((p.lines, tokens[p.rows]), counted.to(torch.int32), accumulate=True)

    def _bans(self, drawn: list[DrawnRow], allowed: dict[int, np.ndarray]) -> Bans | None:
        """End tokens before min_tokens, and what grammars leave out."""
        rows: list[int] = []
        ids: list[int] = []
        for d in drawn:
            at_least = d.start.params.min_tokens
            if not at_least or not d.start.end_ids:
                continue
            n_before = d.row.context_len + d.row.n_tokens - d.row.n_drafts - len(d.start.prompt)
            for i in range(d.row.n_drafts + 1):
                mask = allowed.get(d.first + i)
                if n_before + i < at_least and not (mask is not None and d.guide and d.guide.result().must_end(mask)):
                    rows += [d.first + i] * len(d.start.end_ids)
                    ids += d.start.end_ids
        if not rows and not allowed:
            return None
        bans = Bans()
        if rows:
            bans.rows, bans.ids = sent_together([np.array(rows, np.int64), np.array(ids, np.int64)], self.device)
        if allowed:
            bans.masked_rows = sent(np.array(list(allowed), np.int64), self.device)
            bans.allowed = sent(np.stack(list(allowed.values())), self.device)
        return bans

    def _masks(
        self, guided: list[DrawnRow], before: tuple[Pending, ...]
    ) -> tuple[dict[int, np.ndarray], dict[int, str]]:
        """In another thread, while the model runs: by row of logits what a grammar allows, and which sequence's grammar
        can't go on.
        """
        for pending in before:
            pending.digest()
        allowed: dict[int, np.ndarray] = {}
        failed: dict[int, str] = {}
        for d in guided:
            assert d.guide is not None
            if (wrong := d.guide.exception()) is not None:
                failed[d.row.sequence] = str(wrong)
                continue
            guide = d.guide.result()
            masks = guide.masks(d.drafts)
            if guide.error is not None:
                failed[d.row.sequence] = guide.error
            else:
                allowed.update(zip(count(d.first), masks, strict=False))
        return allowed, failed

    def _prompts(self, rows: Sequence[Row]) -> list[tuple[Row, Start]]:
        asked = [(row, self._kept[row.sequence].start) for row in rows if row.wants_prompt_logprobs]
        return [(row, start) for row, start in asked if prompt_after(row, start)]

    def _prompt_logprobs(self, asked: Sequence[Row], rows: Rows, hidden: Tensor) -> Iterator[Tensor]:
        """Of all rows that want them, one behind the other, in slices: all logits of a long prompt never exist."""
        start_of = {row.sequence: int(start) for row, start in zip(asked, rows.starts, strict=False)}
        prompts = self._prompts(asked)
        n_top = min(max(start.params.prompt_logprobs or 0 for _, start in prompts), self.model.config.vocab_size)
        pieces = []
        for row, start in prompts:
            following = sent(np.array(prompt_after(row, start), np.int64), self.device)
            mine = hidden[start_of[row.sequence] :][: len(following)]
            for part, ids in zip(mine.split(SLICE), following.split(SLICE), strict=True):
                pieces.append(logprobs_of(self.model.logits(part), ids, n_top))
        return iter(joined(pieces))
