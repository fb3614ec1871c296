"""Planning a step: who runs, with which tokens, on which places.

The order is total and fixed: a sequence's key is the step it arrived at plus its priority times `aging` steps. Who is
ahead in it is admitted first, gets prompt tokens first and is preempted last, so nobody starves and two sequences never
take places from each other in turn. A sequence is admitted with pages for all its known tokens; pages for the answer
come one by one, if need be from those behind it. Any one sequence fits the pools alone, so the one ahead of all always
ends.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from plait.serve.drafts import Drafter
from plait.serve.memory import Memory
from plait.serve.plan import Copy, Place, Row, Start, StepPlan
from plait.serve.prefix_tree import n_alike
from plait.serve.sequence import Sequence
from plait.serve.service import PrefixUse


@dataclass
class Limits:
    """How much runs at once. Raises ValueError for limits under 1 (drafts: under 0)."""

    max_batched_tokens: int = 2048  # of one step; decode rows always go
    max_running: int = 16
    n_drafts: int = 0  # guesses verified at once; 0 draws one token at a time
    aging: int = 256  # steps of waiting that make up for one level of priority
    few_tokens: int = 0  # that a step with drafts may have, where few are much cheaper than more; 0: any number

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low = 0 if name in ("n_drafts", "few_tokens") else 1
            if value < low:
                raise ValueError(f"{name}={value} must be at least {low}")


class Scheduler:
    def __init__(self, memory: Memory, limits: Limits, *, n_plans: int = 0) -> None:
        """`n_plans`: made by the scheduler before this one."""
        if limits.max_running > memory.sizes.slots:
            raise ValueError(f"max_running={limits.max_running} must be at most slots={memory.sizes.slots}")
        self.memory, self.limits = memory, limits
        self.waiting: list[Sequence] = []  # both in the order of their keys
        self.running: list[Sequence] = []
        self.n_plans = n_plans
        self.n_preempted = 0
        self._started: list[Start] = []
        self._released: list[int] = []
        self._after: list[Copy] = []
        self._kept: list[tuple[Sequence, int, int | None, bool]] = []
        self._stuck: Sequence | None = None  # did not fit, and nothing has been freed since

    def add(self, sequence: Sequence) -> None:
        if self.limits.n_drafts:
            sequence.drafter = Drafter(n_drafts=self.limits.n_drafts)
        insort(self.waiting, sequence, key=lambda s: s.key)

    def remove(self, sequence: Sequence) -> None:
        """A sequence ended, or nobody wants it any more; the tree takes over what it has."""
        if sequence.is_running:
            self.running.remove(sequence)
            self._take_places(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence.was_started:
            self._released.append(sequence.id)

    def _take_places(self, sequence: Sequence) -> None:
        self._share_kept(sequence)
        self.memory.leave(sequence)
        self._stuck = None

    def settle_drafts(self, sequence: Sequence, all_right: bool) -> None:
        """Unless all drafts of the last row were right, go on from the state before them: the two slots change roles,
        nothing is copied, and what was right is fed again.
        """
        if not all_right:
            sequence.slot, sequence.spare = sequence.spare, sequence.slot
            sequence.n_fed = sequence.n_before_drafts
        self.memory.give_slot(sequence.spare)
        sequence.spare = -1

    def plan(self, *, guesses: bool = True, alone: bool = True) -> StepPlan | None:
        """The next step, or None if there is nothing to do before another one is committed. guesses: if there are any.
        alone: no step is under way.
        """
        n_drafts = self.limits.n_drafts if guesses else 0
        if n_drafts and not alone and self._someone_hopes():
            return None
        self.n_plans += 1
        self.memory.clock = self.n_plans
        self._share_kept()  # what was waiting for a token: admission may need the slots
        self._admit()
        rows, behind = self._decode_rows(n_drafts if alone else 0)
        self._feed(rows, behind)
        self._share_kept()
        before, after, started, released = self.memory.copies, self._after, self._started, self._released
        if not (rows or before):
            return None
        self.memory.copies, self._after, self._started, self._released = [], [], [], []
        return StepPlan(self.n_plans, rows, before, after, started, released)

    def _share_kept(self, leaving: Sequence | None = None) -> None:
        """Put what was kept into the tree, which needs the tokens: the last of an answer may not be known yet. Of a
        sequence that leaves, those it will never know are dropped.
        """
        later = []
        for kept in self._kept:
            sequence, end, slot, is_rung = kept
            if leaving not in (None, sequence):
                later.append(kept)
            elif end <= len(sequence.tokens):
                self.memory.keep(sequence, end, slot, is_rung)
            elif leaving is None:
                later.append(kept)
            elif slot is not None:
                self.memory.give_slot(slot)
        self._kept = later

    @property
    def kept_slots(self) -> list[int]:
        """That hold states which are not in the tree yet."""
        return [slot for _, _, slot, _ in self._kept if slot is not None]

    def _someone_hopes(self) -> bool:
        """Whether a guess is likely behind a token that is still under way."""
        hoping = [s.drafter.hopes(s.tokens) for s in self.running if s.n_drawing and s.drafter]
        return any(hoping)

    # Admission and preemption

    def _admit(self) -> None:
        at = 0
        while at < len(self.waiting):
            sequence = self.waiting[at]
            if sequence is not self._stuck and self._waits_for_leader(sequence):
                at += 1
                continue
            if sequence is self._stuck or sequence.n_drawing:
                return
            is_full = len(self.running) >= self.limits.max_running
            if is_full or not self._begin(sequence):
                if not self.running or self.running[-1].key < sequence.key:
                    self._stuck = None if is_full else sequence
                    return
                self._preempt(self.running[-1])
                continue
            del self.waiting[at]
            insort(self.running, sequence, key=lambda s: s.key)

    def _waits_for_leader(self, sequence: Sequence) -> bool:
        """Whether someone ahead is about to feed what a prompt begins with: n answers to one prompt, or requests that
        came together. A state is kept where they part, and the later one starts from that.
        """
        leader = sequence.leader
        if leader and leader.n_fed < sequence.waits_to and (leader.is_running or leader in self.waiting):
            return True
        sequence.leader = None
        if sequence.was_started or sequence.request.params.prompt_logprobs is not None:
            return False
        size, gap = self.memory.page_size, self.memory.ladder // 16
        most = (sequence.n_prompt - 1) // size * size
        for other in self.running:
            if other.key > sequence.key or other.n_fed >= other.n_prompt or other.salt != sequence.salt:
                continue
            if other.tokens[:size] != sequence.tokens[:size]:
                continue
            same = n_alike(other.tokens[: other.n_prompt], sequence.tokens, 0, most, size)
            near = [p for p in other.keep if max(other.n_fed, same - gap) < p <= same]
            if same > other.n_fed and same >= min(gap, most):
                if not near:
                    insort(other.keep, same)
                sequence.leader, sequence.waits_to = other, near[-1] if near else same
                return True
        return False

    def _begin(self, sequence: Sequence) -> bool:
        memory, is_first = self.memory, not sequence.was_started
        scored_only = sequence.request.params.prompt_logprobs is not None
        limit = min(len(sequence.tokens) - 1, sequence.n_scored) if scored_only else len(sequence.tokens) - 1
        match = memory.match(sequence, limit)
        found = [match.node]
        if match.node.end % memory.page_size:  # going on from a tail takes a page more: its own beside the copy
            above = (node for node in match.node.path() if node.state and node.end % memory.page_size == 0)
            found.append(next(above, memory.tree.root(sequence.salt)))
        if not any(memory.begin(sequence, node, headroom=len(self.running)) for node in found):
            return False
        sequence.last_kept = sequence.n_fed
        if is_first:
            self._start(sequence)
            sequence.prefix = PrefixUse(match.matched, sequence.n_fed, match.matched - sequence.n_fed)
        if sequence.n_fed < match.fork < sequence.n_prompt and match.fork not in sequence.keep:
            insort(sequence.keep, match.fork)  # two prompts were seen to diverge here: a third finds a state
        return True

    def _start(self, sequence: Sequence) -> None:
        request = sequence.request
        sequence.was_started = True
        self._started.append(
            Start(sequence.id, request.prompt, request.params, request.end_ids, sequence.answer, request.grammar)
        )

    def _preempt(self, sequence: Sequence) -> None:
        """Its pages and state become cached ones, which go to the host or are dropped as others need the room; it waits
        in its old place, and goes on from what it finds when its turn comes.
        """
        self.running.remove(sequence)
        self._take_places(sequence)
        self.n_preempted += 1
        insort(self.waiting, sequence, key=lambda s: s.key)

    # Rows

    def _decode_rows(self, n_drafts: int) -> tuple[list[Row], list[Sequence]]:
        """One row for each sequence whose only unfed token is the one drawn last, with up to n_drafts guesses behind
        it, and those that have more to feed.
        """
        rows: list[Row] = []
        verified: list[Row] = []
        behind: list[Sequence] = []
        make = rows.append
        running, few = self.running, self.limits.few_tokens
        room = min(n_drafts * len(running), few - len(running) if few else 2**31)  # for drafts
        at = 0
        while at < len(running):  # it may get shorter at its end meanwhile
            sequence = running[at]
            at += 1
            n_fed = sequence.n_fed
            n_known = len(sequence.tokens) + sequence.n_drawing
            if n_fed == n_known:  # waits for its end to be seen
                continue
            may_guess = room > 0 and sequence.n_prompt <= n_fed >= n_known - 1 - n_drafts
            if may_guess and (row := self._verify(sequence, room)):
                verified.append(row)
                room -= row.n_tokens - 1
                continue
            if n_fed != n_known - 1 or n_fed < sequence.n_prompt:
                behind.append(sequence)
                continue
            if n_known >= sequence.max_len or (n_fed >= sequence.n_held and not self._grow(sequence)):
                continue
            unseen = sequence.n_drawing > 0
            make(Row(
                sequence.id, "decode", 1, n_fed, sequence.slot, sequence.pages,
                None if unseen else sequence.tokens[n_fed:], True,
            ))  # fmt: skip
            sequence.n_fed = n_fed + 1
            sequence.n_drawing += 1
            if n_fed + 1 >= sequence.next_rung:
                self._keep_rung(sequence)
        return rows + verified, behind

    def _keep_rung(self, sequence: Sequence) -> None:
        """A state along a long answer, thinned to the last one and the ladder: who is preempted and finds the end of it
        gone doesn't write all of it again.
        """
        end, size, gap = sequence.n_fed, self.memory.page_size, max(self.memory.ladder // 4, self.memory.page_size)
        due = max(sequence.last_kept + gap, end)
        sequence.next_rung = -(-due // size) * size
        if end < sequence.next_rung:
            return
        sequence.next_rung = end + gap
        slot = self.memory.take_slot()
        if slot is not None:
            self._after.append(Copy("state", Place("device", sequence.slot), Place("device", slot)))
            self._kept.append((sequence, end, slot, True))
            sequence.last_kept = end

    def _grow(self, sequence: Sequence) -> bool:
        """A page more, from the cache or from those behind; False if the sequence itself had to give up its places."""
        while not self.memory.grow(sequence):
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _verify(self, sequence: Sequence, room: int) -> Row | None:
        """The unfed tokens and some guesses behind them, if there are any, and a slot to keep the state before them; in
        all at most `room` tokens more than one.
        """
        assert sequence.drafter is not None
        n_most = min(sequence.max_len - len(sequence.tokens), room - (len(sequence.tokens) - sequence.n_fed) + 2) - 1
        drafts = sequence.drafter.guess(sequence.tokens, n_most) if n_most > 0 else []
        if not drafts:
            return None
        n = len(sequence.tokens) - sequence.n_fed + len(drafts)
        while sequence.n_fed + n > sequence.n_held:
            if not self.memory.grow(sequence):
                return None
        spare = self.memory.take_slot()
        if spare is None:
            return None
        self.memory.copies.append(Copy("state", Place("device", sequence.slot), Place("device", spare)))
        sequence.spare, sequence.n_before_drafts = spare, sequence.n_fed
        row = Row(
            sequence.id, "resume", n, sequence.n_fed, sequence.slot, sequence.pages,
            [*sequence.tokens[sequence.n_fed :], *drafts], True, len(drafts),
        )  # fmt: skip
        sequence.n_fed += n
        sequence.n_drawing += 1
        return row

    def _feed(self, rows: list[Row], behind: list[Sequence]) -> None:
        """Chunks of what is known and not fed, within the budget that decode rows leave."""
        budget = self.limits.max_batched_tokens - sum(row.n_tokens for row in rows)
        for sequence in behind:
            if budget <= 0:
                return
            rows.append(self._chunk(sequence, budget))
            budget -= rows[-1].n_tokens

    def _chunk(self, sequence: Sequence, budget: int) -> Row:
        start, n_known, size = sequence.n_fed, len(sequence.tokens), self.memory.page_size
        end = min(start + budget, n_known)
        if end < n_known and end // size * size > start:
            end = end // size * size
        inside = [p for p in sequence.keep if start < p <= end]
        end = inside[1] if len(inside) > 1 else end
        export = self._export(sequence, inside[0]) if inside and inside[0] < end else None
        wants_scores = sequence.request.params.prompt_logprobs is not None and start < sequence.n_prompt
        draws = end == n_known and n_known < sequence.max_len
        row = Row(
            sequence.id, "resume" if start else "fresh", end - start, start, sequence.slot, sequence.pages,
            sequence.tokens[start:end], draws, 0, wants_scores, export,
        )  # fmt: skip
        sequence.n_fed = end
        sequence.n_drawing += draws
        if wants_scores:
            sequence.n_scored = end
        self._keep_state(sequence, end)
        return row

    def _export(self, sequence: Sequence, at: int) -> tuple[int, int] | None:
        """A slot for the state at a place inside of the chunk that begins where the sequence stands."""
        slot = self.memory.take_slot()
        self._kept.append((sequence, at, slot, False))
        if slot is None:
            return None
        sequence.last_kept = at
        return at - sequence.n_fed, slot

    def _keep_state(self, sequence: Sequence, end: int) -> None:
        """Copy the state behind a chunk for later, if this is a place for one."""
        is_rung = end not in sequence.keep
        if end % self.memory.page_size or (is_rung and end - sequence.last_kept < self.memory.ladder):
            return
        slot = self.memory.take_slot()
        if slot is not None:
            self._after.append(Copy("state", Place("device", sequence.slot), Place("device", slot)))
            sequence.last_kept = end
        self._kept.append((sequence, end, slot, is_rung))
