"""The engine: requests in, token ids out, one step at a time. It knows no text and no tensors.

A step is planned (`Scheduler`), executed (an `Executor`) and committed (here). With `overlap` a step is planned and
launched while the one before is still under way, so that a device never waits for planning: decode rows then feed a
token that only the device knows yet, and a row whose sequence turns out to have ended is dropped at commit. Only where
somebody guesses tokens (`Drafter`) is each step waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from plait.serve.drafts import Worth
from plait.serve.live import running_answers, tree_branches
from plait.serve.memory import Memory
from plait.serve.plan import Executor, Row, RowResult, StepPlan, StepResult
from plait.serve.pools import PoolSizes
from plait.serve.request import Output, Request
from plait.serve.scheduler import Limits, Scheduler
from plait.serve.sequence import Sequence, positions_to_keep
from plait.serve.service import EngineStats
from plait.text.generator import FinishReason


class Engine:
    """Writes answers to many requests at once."""

    def __init__(
        self,
        executor: Executor,
        sizes: PoolSizes,
        *,
        page_size: int,
        limits: Limits | None = None,
        page_bytes: int = 1,
        state_bytes: int = 1,
        ladder: int = 4096,
        overlap: bool = False,
        worth: Worth | None = None,
    ) -> None:
        """`sizes`: the executor's pools. `ladder`: tokens between the states kept along a long prompt. `overlap` has a
        second step under way, but where somebody guesses: what comes next depends on which guesses were right. `worth`
        says when to guess; None: whenever there is something to.
        """
        limits = limits or Limits()
        self.executor, self.limits = executor, limits
        self._n_ahead = int(overlap)
        self._sizes = {"page_size": page_size, "page_bytes": page_bytes, "state_bytes": state_bytes, "ladder": ladder}
        self.memory = Memory(sizes, **self._sizes)
        self.scheduler = Scheduler(self.memory, limits)
        self._live: dict[int, Sequence] = {}  # by number
        self._requests: dict[int, list[Sequence]] = {}  # the answers still being written
        self._under_way: deque[StepPlan] = deque()
        self._waited_for: deque[bool] = deque()  # of those under way: whether they were planned with none before them
        self._worth, self._collected_at = worth, 0.0  # when the last step was, 0 after idleness
        self._n_requests = self._n_sequences = 0
        self._n_steps = self._n_prompt = self._n_generated = self._n_preempted = 0
        self._matched = self._usable = self._n_drafts = self._n_right = 0
        self._step_ms = 0.0

    @property
    def is_idle(self) -> bool:
        return not (self._live or self._under_way)

    def add(self, request: Request) -> int:
        """Queue a request; returns its number. ValueError if it could never fit the pools alone."""
        page_size, pages = self.memory.page_size, self.memory.sizes.pages
        n_prompt, params = len(request.prompt), request.params
        if not n_prompt:
            raise ValueError("the prompt is empty: give at least one token")
        n_fed = n_prompt + max(params.max_tokens - 1, 0)  # the last token is drawn and never fed
        if self.memory.n_pages_for(n_fed) > pages:
            raise ValueError(
                f"prompt and answer have up to {n_fed} tokens; the cache holds {pages * page_size}: "
                f"ask for fewer than max_tokens={params.max_tokens}, or make the cache larger"
            )
        number = self._n_requests
        self._n_requests += 1
        arrived = self.scheduler.n_plans + request.priority * self.limits.aging
        shares = params.n > 1 or not request.is_private
        keep = positions_to_keep(request, page_size, self.memory.ladder // 16) if shares else []
        answers: list[Sequence] = []
        for answer in range(params.n):
            sequence = Sequence(
                number, request, answer, number=self._n_sequences, max_len=n_prompt + params.max_tokens,
                key=(arrived, self._n_sequences), keep=list(keep),
            )  # fmt: skip
            self._n_sequences += 1
            answers.append(sequence)
            self._live[sequence.id] = sequence
            self.scheduler.add(sequence)
        self._requests[number] = answers
        return number

    def has_request(self, number: int) -> bool:
        """Whether some answer of a request is still being written."""
        return number in self._requests

    def abort(self, request: int, answer: int | None = None) -> None:
        """Stop writing one answer of a request, or all of them. Nothing more comes of it. A request that has ended is
        left alone.
        """
        for sequence in list(self._requests.get(request, ())):
            if answer in (None, sequence.answer):
                self._end(sequence)

    def step(self) -> list[Output]:
        """Plan and launch a step, and take in the oldest result that is due. Nothing if there is nothing to do.

        An exception from the executor ends every request: `reset` has run when it leaves here.
        """
        begin = perf_counter()
        if not self.launch():
            return []
        outputs = self.collect()
        self._step_ms = (perf_counter() - begin) * 1e3
        return outputs

    def launch(self) -> bool:
        """The first half of a step: plan one and set it going. Whether a result is due."""
        with self._all_or_nothing():
            guesses = self._worth is None or self._worth.is_open(len(self.scheduler.running))
            alone = not self._under_way
            plan = self.scheduler.plan(guesses=guesses, alone=alone)
            if plan is not None:
                self.executor.launch(plan)
                self._under_way.append(plan)
                self._waited_for.append(alone)
            assert self._under_way or not self._live, "sequences are left that can't run"
            goes_on = plan is not None and not any(row.n_drafts for row in plan.rows)
            return len(self._under_way) > (self._n_ahead if goes_on else 0)

    def collect(self) -> list[Output]:
        """The second half: wait for the oldest step under way, and take in what it brought."""
        with self._all_or_nothing():
            result = self.executor.collect()
            plan, waited = self._under_way.popleft(), self._waited_for.popleft()
            outputs = self._commit(plan, result)
        self._n_steps += 1
        if self._worth is not None:
            self._time(plan, result, waited)
        return outputs

    def _time(self, plan: StepPlan, result: StepResult, waited: bool) -> None:
        """Tell `worth` of a step without prompts behind another one."""
        before, self._collected_at = self._collected_at, 0.0 if self.is_idle else perf_counter()
        if not waited and self._n_steps % 4:  # of those that nothing is decided by, some are enough
            return
        lengths = [row.n_tokens for row in plan.rows if row.context_len]
        if self._worth is None or not before or len(lengths) < len(plan.rows):
            return
        if lengths and max(lengths) <= 2 * self.limits.n_drafts + 1:
            n_tokens = sum(len(row.token_ids) for row in result.rows)
            guessing = max(lengths) > 1 or (waited and self._n_ahead > 0)
            self._worth.note(len(lengths), n_tokens, perf_counter() - before, guessing=guessing)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.reset()
            raise

    def reset(self) -> None:
        """Drop every request, everything cached and every step under way."""
        self.executor.reset()
        self.memory = Memory(self.memory.sizes, **self._sizes)
        self._n_preempted += self.scheduler.n_preempted
        self.scheduler = Scheduler(self.memory, self.limits, n_plans=self.scheduler.n_plans)
        self._live.clear()
        self._requests.clear()
        self._under_way.clear()
        self._waited_for.clear()

    def _commit(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Take drawn tokens into the books; what each answer gained, in the order of the rows."""
        assert plan.number == result.number, f"step {plan.number} was under way, the result is of {result.number}"
        outputs: list[Output] = []
        find, put, failed = self._live.get, outputs.append, result.failed
        for row, brought in zip(plan.rows, result.rows, strict=True):
            sequence = find(row.sequence)
            if sequence is None:  # ended meanwhile
                continue
            if row.draws:
                sequence.n_drawing -= 1
            if failed and row.sequence in failed:
                if row.n_drafts:
                    self.scheduler.settle_drafts(sequence, all_right=False)
                put(self._output(sequence, row, brought, (), "abort", failed[row.sequence]))
                self._end(sequence)
                continue
            token_ids = brought.token_ids
            reason: FinishReason | None = None
            if row.n_drafts:
                token_ids, reason = self._commit_drafts(sequence, row, token_ids)
            elif token_ids:
                token_id = token_ids[0]
                tokens = sequence.tokens
                tokens.append(token_id)
                self._n_generated += 1
                if token_id in sequence.end_ids and len(tokens) > sequence.min_len:
                    reason = "stop"
                elif len(tokens) >= sequence.max_len:
                    reason = "length"
                elif not brought.prompt_logprobs:  # all but the first and the last token of an answer: made to be quick
                    put(
                        Output(
                            sequence.request_id, sequence.answer, token_ids, None, brought.logprobs, (), sequence.prefix
                        )
                    )
                    continue
            elif row.context_len + row.n_tokens == sequence.max_len:  # a prompt to be scored, and no answer
                reason = "length"
            elif not brought.prompt_logprobs:
                continue
            put(self._output(sequence, row, brought, token_ids, reason))
            if reason is not None:
                self._end(sequence)
        return outputs

    def _output(
        self,
        sequence: Sequence,
        row: Row,
        brought: RowResult,
        token_ids: tuple[int, ...],
        reason: FinishReason | None,
        error: str | None = None,
    ) -> Output:
        scores = brought.prompt_logprobs
        if scores:  # after preemption some may come a second time
            scores = scores[sequence.n_scores_out - row.context_len :]
            sequence.n_scores_out += len(scores)
        return Output(
            sequence.request_id, sequence.answer, token_ids, reason, brought.logprobs[: len(token_ids)], scores,
            sequence.prefix, error,
        )  # fmt: skip

    def _commit_drafts(
        self, sequence: Sequence, row: Row, drawn: tuple[int, ...]
    ) -> tuple[tuple[int, ...], FinishReason | None]:
        """Take in what a verify row brought, up to the end of the answer if that is among it."""
        assert sequence.drafter is not None
        reason: FinishReason | None = None
        n_taken = 0
        for token_id in drawn:
            sequence.tokens.append(token_id)
            n_taken += 1
            if token_id in sequence.end_ids and len(sequence.tokens) > sequence.min_len:
                reason = "stop"
            elif len(sequence.tokens) >= sequence.max_len:
                reason = "length"
            if reason is not None:
                break
        self.scheduler.settle_drafts(sequence, all_right=n_taken == row.n_drafts + 1)
        sequence.drafter.note(len(drawn) - 1)
        self._n_generated += n_taken
        self._n_drafts += row.n_drafts
        self._n_right += len(drawn) - 1
        return drawn[:n_taken], reason

    def _end(self, sequence: Sequence) -> None:
        del self._live[sequence.id]
        self.scheduler.remove(sequence)
        answers = self._requests[sequence.request_id]
        answers.remove(sequence)
        if sequence.answer == 0 and sequence.was_started:
            self._n_prompt += sequence.n_prompt
            self._matched += sequence.prefix.matched
            self._usable += sequence.prefix.usable
        if not answers:
            del self._requests[sequence.request_id]
            if sequence.request.is_private:
                self.memory.forget(sequence.salt)

    def stats(self) -> EngineStats:
        memory, scheduler, sizes = self.memory, self.scheduler, self.memory.sizes
        n_running = len(scheduler.running)
        pages, slots, host = (memory.pools[key] for key in (("page", "device"), ("state", "device"), ("state", "host")))
        return EngineStats(
            running=n_running,
            waiting=len(scheduler.waiting),
            pages_used=sizes.pages - pages.n_free,
            pages_cached=memory.tree.n_evictable,
            pages=sizes.pages,
            slots_used=n_running,
            slots_cached=sizes.slots - slots.n_free - n_running,
            slots=sizes.slots,
            host_states=host.size - host.n_free,
            step_ms=self._step_ms,
            steps_total=self._n_steps,
            prompt_tokens_total=self._n_prompt,
            generated_tokens_total=self._n_generated,
            preemptions_total=self._n_preempted + scheduler.n_preempted,
            prefix_matched_total=self._matched,
            prefix_usable_total=self._usable,
            prefix_lost_total=self._matched - self._usable,
            drafts_total=self._n_drafts,
            drafts_accepted_total=self._n_right,
            batch=running_answers(scheduler.running),
            tree=tree_branches(memory.tree),
        )

    def check(self) -> None:
        """AssertionError unless the books agree with each other: every page and slot has one owner, nothing leaked."""
        scheduler = self.scheduler
        running, waiting = scheduler.running, scheduler.waiting
        self.memory.check(running, [*(s.spare for s in running if s.spare >= 0), *scheduler.kept_slots])
        assert {s.id for s in running} | {s.id for s in waiting} == set(self._live)
        assert len(running) + len(waiting) == len(self._live) == sum(len(a) for a in self._requests.values())
        assert len(running) <= self.limits.max_running
        for queue in (running, waiting):
            assert [s.key for s in queue] == sorted(s.key for s in queue)
        assert all(s.is_running and s.n_fed <= len(s.tokens) <= s.max_len for s in running)
        assert not any(s.is_running or s.pages for s in waiting)
        n_drawing = sum(row.draws and row.sequence in self._live for plan in self._under_way for row in plan.rows)
        assert sum(s.n_drawing for s in self._live.values()) == n_drawing
