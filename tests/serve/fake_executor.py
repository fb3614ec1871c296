"""An executor without a model: what it draws depends on every token before, through its slots and through its pages.

A slot holds a hash of the tokens fed so far and their number, a page holds tokens; both start unwritten. So a stale
slot, a page of someone else or a rollback gone wrong changes the answer or fails at once. It also holds plans to what
plan.py promises.
"""

from collections import deque
from collections.abc import Sequence

from plait.serve.plan import Copy, Place, Row, RowResult, Start, StepPlan, StepResult
from plait.serve.pools import TIERS, PoolSizes
from plait.text import TokenLogprob

State = tuple[int, int]  # hash, tokens fed

EMPTY: State = (7, 0)


def feed(state: State, token: int) -> State:
    return (state[0] * 1_000_003 + token + 1) % 0xFFFF_FFFB, state[1] + 1


def draw(state: State, context: tuple[int, ...], vocab_size: int) -> int:
    return (state[0] ^ hash(context)) % 1009 % vocab_size


def answer(prompt: Sequence[int], n: int, vocab_size: int) -> list[int]:
    """What follows a prompt, by definition."""
    state, tokens = EMPTY, list(prompt)
    for token in tokens:
        state = feed(state, token)
    for _ in range(n):
        tokens.append(draw(state, tuple(tokens), vocab_size))
        state = feed(state, tokens[-1])
    return tokens[len(prompt) :]


class FakeExecutor:
    def __init__(self, sizes: PoolSizes, page_size: int, vocab_size: int) -> None:
        self.page_size, self.vocab_size = page_size, vocab_size
        self.states: dict[Place, State | None] = {}
        self.pages: dict[Place, list[int | None]] = {}
        for tier in TIERS:
            self.states |= {Place(tier, i): None for i in range(sizes.of("state", tier))}
            self.pages |= {Place(tier, i): [None] * page_size for i in range(sizes.of("page", tier))}
        self.done: deque[StepResult] = deque()
        self.starts: dict[int, Start] = {}
        self.released: set[int] = set()
        self.drawn: dict[int, tuple[int, int, int]] = {}  # sequence -> plan, slot, token
        self.n_rows = self.n_fed = self.n_drafted = self.n_copies = self.n_exports = 0
        self.last_number = 0

    def reset(self) -> None:
        self.done.clear()
        self.starts.clear()
        self.released.clear()

    def launch(self, plan: StepPlan) -> None:
        assert len(self.done) < 2
        assert plan.number > self.last_number
        for start in plan.started:
            assert start.sequence not in self.starts
            self.starts[start.sequence] = start
        self.released |= set(plan.released)
        for copy in plan.before:
            self._copy(copy)
        self._check_rows(plan)
        rows, failed = [], {}
        for row in plan.rows:
            rows.append(self._run(row, plan.number))
            grammar = self.starts[row.sequence].grammar
            if grammar and row.context_len + row.n_tokens >= int(grammar.text):
                failed[row.sequence] = f"grammar: {grammar.text}"
        for copy in plan.after:
            self._copy(copy)
        self.last_number = plan.number
        self.done.append(StepResult(plan.number, rows, failed))

    def collect(self) -> StepResult:
        return self.done.popleft()

    def _check_rows(self, plan: StepPlan) -> None:
        assert plan.rows or plan.before
        decoding = [row.mode == "decode" for row in plan.rows]
        assert decoding == sorted(decoding, reverse=True)
        exports = [(row, *row.export) for row in plan.rows if row.export is not None]
        assert all(row.mode != "decode" and 0 < n < row.n_tokens for row, n, _ in exports)
        slots = [row.slot for row in plan.rows] + [slot for _, _, slot in exports]
        assert len(set(slots)) == len(slots)
        assert len({row.sequence for row in plan.rows}) == len(plan.rows)
        written: list[int] = []
        for row in plan.rows:
            written += row.pages[
                row.context_len // self.page_size : -(-(row.context_len + row.n_tokens) // self.page_size)
            ]
        assert len(set(written)) == len(written)
        read = [p for row in plan.rows for p in row.pages[: row.context_len // self.page_size]]
        assert not set(read) & set(written)

    def _copy(self, copy: Copy) -> None:
        self.n_copies += 1
        if copy.kind == "state":
            assert self.states[copy.source] is not None
            self.states[copy.target] = self.states[copy.source]
        else:
            self.pages[copy.target] = list(self.pages[copy.source])

    def _run(self, row: Row, number: int) -> RowResult:
        assert row.sequence not in self.released
        start, place = self.starts[row.sequence], Place("device", row.slot)
        self.n_rows += 1
        self.n_fed += row.n_tokens
        self.n_drafted += row.n_drafts
        if row.tokens is None:
            when, where, token = self.drawn[row.sequence]
            assert (when, where, row.n_tokens, row.mode) == (self.last_number, row.slot, 1, "decode")
            tokens: list[int] = [token]
        else:
            tokens = list(row.tokens)
        assert len(tokens) == row.n_tokens >= 1
        assert (row.mode == "fresh") == (row.context_len == 0)
        known = EMPTY if row.mode == "fresh" else self.states[place]
        assert known is not None
        assert known[1] == row.context_len
        state, context = known, self._read(row.pages, row.context_len)
        drawn: list[int] = []
        first_guess = len(tokens) - row.n_drafts
        is_right = True
        for i, token in enumerate(tokens):
            if is_right and i >= first_guess:
                drawn.append(draw(state, tuple(context), self.vocab_size))
                is_right = drawn[-1] == token
            self.pages[Place("device", row.pages[len(context) // self.page_size])][len(context) % self.page_size] = (
                token
            )
            context.append(token)
            state = feed(state, token)
            if row.export is not None and i + 1 == row.export[0]:
                self.states[Place("device", row.export[1])] = state
                self.n_exports += 1
        assert context == self._read(row.pages, len(context))
        self.states[place] = state
        if row.draws and is_right:
            drawn.append(draw(state, tuple(context), self.vocab_size))
        if drawn:
            self.drawn[row.sequence] = (number, row.slot, drawn[-1])
        scored = (
            start.prompt[row.context_len + 1 : row.context_len + 1 + row.n_tokens] if row.wants_prompt_logprobs else ()
        )
        return RowResult(
            row.sequence,
            tuple(drawn),
            tuple(TokenLogprob(t, -1.0) for t in drawn) if start.params.logprobs is not None else (),
            tuple(TokenLogprob(t, -float(row.context_len + 1 + i)) for i, t in enumerate(scored)),
        )

    def _read(self, pages: Sequence[int], n: int) -> list[int]:
        out: list[int] = []
        for page in pages[: -(-n // self.page_size)]:
            out += self.pages[Place("device", page)]  # type: ignore[arg-type]
        assert None not in out[:n]
        return out[:n]
