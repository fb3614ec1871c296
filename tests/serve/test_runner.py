"""Execution of plans, over a small planner of its own: whatever the schedule, tokens are those of the plain model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.config import ModelConfig
from plait.model import LanguageModel, init_weights
from plait.serve.plan import Copy, Place, Row, RowResult, Start, StepPlan
from plait.serve.runner import Runner
from plait.text import SamplingParams

VOCAB = 50
CONFIG = ModelConfig(
    vocab_size=VOCAB, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=4, attn_offset=2,
    n_experts=4, d_state=4, init_std=0.3, max_context=512, dtype="float32",
)  # fmt: skip
GREEDY = SamplingParams(temperature=0, max_tokens=100)
PAGE = 4


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return init_weights(LanguageModel(CONFIG), seed=3).eval()


def make_runner(model: LanguageModel, **options: Any) -> Runner:
    """Its pools full of NaN, but for what it keeps for itself: reading a stale place shows."""
    runner = Runner(model, **({"n_slots": 6, "n_pages": 60, "page_size": PAGE, "max_context": 128} | options))
    with torch.inference_mode():
        state = runner.state
        for pool in (state.conv, state.ssm, state.k, state.v, state.k_scales, state.v_scales):
            if pool is not None and pool.is_floating_point():
                pool[:, :-1] = torch.nan
        for pool in runner._tiers.host.values():
            pool.fill_(torch.nan if pool.is_floating_point() else 99)
    return runner


class Book:
    """One sequence as the tests' planner sees it."""

    def __init__(self, number: int, prompt: Sequence[int], params: SamplingParams, slot: int, **start: Any) -> None:
        self.start = Start(
            number, tuple(prompt), params, start.get("end_ids", frozenset()), start.get("answer", 0),
            start.get("grammar"),
        )  # fmt: skip
        self.number, self.tokens, self.slot = number, list(prompt), slot
        self.fed = 0  # tokens in the pools
        self.pages = [slot * 10 + i for i in range(10)]
        self.n_prompt = len(prompt)
        self.results: list[RowResult] = []
        self.is_started = False
        self.in_flight = 0  # drawn tokens that have not been collected

    @property
    def drawn(self) -> list[int]:
        return self.tokens[self.n_prompt :]

    def row(self, n: int = 1, drafts: Sequence[int] = (), **fields: Any) -> Row:
        """The next n known tokens (and drafts), or the one that only the device knows."""
        known = self.tokens[self.fed : self.fed + n]
        is_last = self.fed + n == len(self.tokens) + self.in_flight
        decode = self.fed >= self.n_prompt and not drafts and is_last and n == 1
        tokens = None if decode else [*known, *drafts]
        n += len(drafts)
        mode = "decode" if decode else "resume" if self.fed else "fresh"
        row = Row(
            self.number, mode, n, self.fed, self.slot, self.pages[: -(-(self.fed + n) // PAGE) + 1], tokens, is_last,
            len(drafts), **fields,
        )  # fmt: skip
        self.fed += n
        if is_last:
            self.in_flight += 1
        return row

    def take(self, result: RowResult, row: Row) -> None:
        assert result.sequence == self.number
        self.results.append(result)
        if row.draws:
            self.tokens += result.token_ids
            self.in_flight -= 1
            self.fed -= row.n_drafts + 1 - len(result.token_ids)


class Engine:
    def __init__(self, runner: Runner) -> None:
        self.runner, self.number = runner, 0
        self.under_way: list[tuple[list[Book], list[Row]]] = []

    def launch(self, *books_and_rows: tuple[Book, Row], **fields: Any) -> None:
        ordered = sorted(books_and_rows, key=lambda pair: pair[1].mode != "decode")
        books, rows = [b for b, _ in ordered], [r for _, r in ordered]
        started = [b.start for b in books if not b.is_started]
        for book in books:
            book.is_started = True
        self.number += 1
        self.runner.launch(StepPlan(self.number, rows, started=started, **fields))
        self.under_way.append((books, rows))

    def collect(self) -> dict[int, str]:
        result = self.runner.collect()
        books, rows = self.under_way.pop(0)
        assert len(result.rows) == len(rows)
        for book, row, brought in zip(books, rows, result.rows, strict=True):
            if row.sequence not in result.failed:
                book.take(brought, row)
        return dict(result.failed)

    def step(self, *books_and_rows: tuple[Book, Row], **fields: Any) -> dict[int, str]:
        self.launch(*books_and_rows, **fields)
        return self.collect()


def plain(model: LanguageModel, prompt: Sequence[int], n: int) -> list[int]:
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def prompt_of(seed: int, n: int) -> list[int]:
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@given(data=st.data(), static=st.sampled_from([None, False, True]), overlap=st.booleans())
def test_any_schedule_gives_the_plain_models_tokens(
    model: LanguageModel, data: st.DataObject, static: bool | None, overlap: bool
) -> None:
    engine = Engine(make_runner(model, static=static))
    lengths = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=5))
    books = [Book(i, prompt_of(i, n), GREEDY, i) for i, n in enumerate(lengths)]
    for _ in range(data.draw(st.integers(3, 10))):
        rows = []
        for book in books:
            left = book.n_prompt - book.fed
            if data.draw(st.booleans()):
                rows.append((book, book.row(data.draw(st.integers(1, left)) if left > 0 else 1)))
        if rows:
            engine.launch(*rows)
            if not overlap or len(engine.under_way) == 2:
                engine.collect()
    while engine.under_way:
        engine.collect()
    for book in books:
        assert book.drawn == plain(model, book.tokens[: book.n_prompt], len(book.drawn))


def run_alone(engine: Engine, book: Book, n: int, chunk: int = 100) -> list[int]:
    """Prefill in chunks, then draw up to n tokens in all."""
    while len(book.drawn) < n:
        engine.step((book, book.row(min(chunk, max(book.n_prompt - book.fed, 1)))))
    return book.drawn


SAMPLED = SamplingParams(
    temperature=1.3, top_p=0.9, seed=7, max_tokens=40, repetition_penalty=1.2, frequency_penalty=0.3, min_tokens=3,
    logit_bias={4: 1.5},
)  # fmt: skip


def test_a_request_draws_the_same_whatever_runs_beside_it(model: LanguageModel) -> None:
    prompt = prompt_of(1, 9)
    alone = run_alone(Engine(make_runner(model)), Book(0, prompt, SAMPLED, 2), 20)
    engine = Engine(make_runner(model, static=True))
    book = Book(9, prompt, SAMPLED, 0)
    others = [
        Book(1, prompt_of(2, 11), SamplingParams(temperature=0.5, top_k=3, seed=1, max_tokens=40), 1),
        Book(2, prompt_of(3, 5), GREEDY, 2),
        Book(3, prompt_of(4, 7), SamplingParams(presence_penalty=1.0, seed=1, max_tokens=40), 3),
    ]
    step = 0
    while len(book.drawn) < 20:
        rows = [(b, b.row(min(4, max(b.n_prompt - b.fed, 1)))) for b in [book, *others[: step % 4]]]
        engine.step(*rows)
        step += 1
    assert book.drawn == alone
    again = Book(10, prompt, SAMPLED, 5, answer=1)
    assert run_alone(engine, again, 20) != alone  # the n answers of one prompt differ


def test_released_sequences_leave_nothing(model: LanguageModel) -> None:
    """Numbers, seats and lines of the histories are used again, far more often than there are."""
    runner = make_runner(model)
    engine = Engine(runner)
    first = run_alone(engine, Book(0, prompt_of(1, 5), SAMPLED, 0), 6)
    for _ in range(50):
        book = Book(0, prompt_of(1, 5), SAMPLED, 0)
        engine.launch((book, book.row(5)), released=(0,))
        engine.collect()
        assert run_alone(engine, book, 6) == first
    assert len(runner._kept) == len(runner._seats) == 1
    assert len(runner._histories.counts) == 4
    assert len(runner._last) == 24


def test_after_a_reset_all_begins_anew(model: LanguageModel) -> None:
    """Also after a plan that failed half way."""
    runner = make_runner(model)
    book = Book(0, prompt_of(1, 5), SAMPLED, 0)
    expected = run_alone(Engine(runner), book, 6)
    with pytest.raises(ValueError, match="page 60"):
        runner.launch(StepPlan(9, [book.row()._replace(pages=[60] * 9)]))
    runner.launch(StepPlan(10, [book.row()._replace(tokens=[1], mode="resume")]))
    runner.reset()
    again = Book(0, prompt_of(1, 5), SAMPLED, 0)
    again.pages = [pages + 5 for pages in again.pages]
    assert run_alone(Engine(runner), again, 6) == expected


def test_page_lists_grow_or_are_replaced(model: LanguageModel) -> None:
    """The same list with more pages, an equal one (as another process gets it), and one with other pages."""
    expected = plain(model, prompt_of(1, 7), 20)
    engine = Engine(make_runner(model, static=True))
    book = Book(0, prompt_of(1, 7), GREEDY, 0)
    growing = [31, 2]
    engine.step((book, book.row(7)._replace(pages=growing)))
    for n in range(16):
        if book.fed == 4 * len(growing):
            growing.append(50 - n)
        engine.step((book, book.row()._replace(pages=growing if n % 3 else list(growing))))
    moved = [55, *growing[1:], 9]
    copy = Copy("page", Place("device", 31), Place("device", 55))
    with torch.inference_mode():
        engine.step((book, book.row()._replace(pages=moved)), before=[copy])
        engine.runner.state.k[:, 31] = torch.nan
    engine.step((book, book.row()._replace(pages=moved)))
    assert book.drawn == expected[: len(book.drawn)]
    assert len(book.drawn) == 19


def test_more_sequences_than_seats(model: LanguageModel) -> None:
    """Those preempted keep their last token; the row of seats grows under the static buffers."""
    engine = Engine(make_runner(model, n_slots=1, static=True))
    books = [Book(i, prompt_of(i, 3), GREEDY, 0) for i in range(9)]
    for book in books:
        engine.step((book, book.row(3)))
    for book in books:
        assert engine.runner._last[engine.runner._seats[book.number]] == book.drawn[0]


def test_states_and_pages_come_back_from_any_tier(model: LanguageModel, tmp_path: Path) -> None:
    """Preempted to the host and to disk, its slot and pages overwritten by others, and back in other places: the pools
    hold the same bits, and the answer is the one without.
    """
    plain_book = Book(0, prompt_of(5, 13), SAMPLED, 0)
    expected = run_alone(Engine(make_runner(model)), plain_book, 16)
    runner = make_runner(model, host_states=2, host_pages=12, disk=tmp_path / "tier")
    engine = Engine(runner)
    book = Book(1, plain_book.tokens[:13], SAMPLED, 0)
    run_alone(engine, book, 5, chunk=6)
    state, pages = runner.state, list(book.pages)
    before = [pool[:, 0].clone() for pool in (state.conv, state.ssm)]
    kv_before = [pool[:, pages[:5]].clone() for pool in (state.k, state.v)]

    host_pages = [Place("host", i + 3) for i in range(5)]
    away = [Copy("state", Place("device", 0), Place("host", 1))]
    away += [Copy("page", Place("device", p), h) for p, h in zip(pages, host_pages, strict=False)]
    away += [Copy("state", Place("host", 1), Place("disk", 7))]
    away += [Copy("page", h, Place("disk", i)) for i, h in enumerate(host_pages)]
    other = Book(2, prompt_of(8, 9), GREEDY, 0)
    engine.step((other, other.row(9)), before=away)
    with torch.inference_mode():
        for pool in runner._tiers.host.values():
            pool.fill_(torch.nan)
    new_pages = [50 + i for i in range(10)]
    back = [Copy("state", Place("disk", 7), Place("host", 0)), Copy("state", Place("host", 0), Place("device", 4))]
    back += [Copy("page", Place("disk", i), Place("device", p)) for i, p in enumerate(new_pages[:5])]
    book.slot, book.pages = 4, new_pages
    engine.launch((other, other.row()), before=back)
    for there, pool in zip(before, (state.conv, state.ssm), strict=True):
        assert torch.equal(pool[:, 4], there)
    for there, pool in zip(kv_before, (state.k, state.v), strict=True):
        written = there.view(len(pool), -1, *pool.shape[3:])[:, : book.fed]
        assert torch.equal(pool[:, new_pages[:5]].view(len(pool), -1, *pool.shape[3:])[:, : book.fed], written)
    engine.collect()
    assert run_alone(engine, book, 16) == expected
    assert not list((tmp_path / "tier").rglob("*.tmp"))
    runner.close()


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_drafts_are_accepted_while_equal_and_change_no_token(model: LanguageModel, params: SamplingParams) -> None:
    """A state saved before a verify row rolls back what was wrong. Tokens, sampled with penalties too, are those
    without drafts.
    """
    prompt = prompt_of(6, 8)
    expected = run_alone(Engine(make_runner(model)), Book(0, prompt, params, 0), 24)
    engine = Engine(make_runner(model))
    book, beside = Book(1, prompt, params, 1), Book(2, prompt_of(7, 6), GREEDY, 2)
    engine.step((book, book.row(8)), (beside, beside.row(6)))
    n_right = []
    for turn in range(30):
        if len(book.drawn) >= 20:
            break
        right = turn % 4
        drafts = expected[len(book.drawn) :][:right]
        drafts += [(token + 1) % VOCAB for token in expected[len(book.drawn) :][right : right + 1]]
        fed = book.fed
        save = Copy("state", Place("device", 1), Place("device", 5))
        engine.step((book, book.row(1, drafts)), (beside, beside.row()), before=[save])
        n_right.append(len(book.results[-1].token_ids) - 1)
        assert n_right[-1] == right
        if n_right[-1] < len(drafts):  # back to the state before, and feed the right ones again
            known, book.fed = book.fed - fed, fed
            row = Row(1, "resume", known, fed, 1, book.pages, book.tokens[fed : fed + known], False)
            engine.step((book, row), before=[Copy("state", Place("device", 5), Place("device", 1))])
            book.fed = fed + known
    assert max(n_right) == 3
    assert book.drawn[:20] == expected[:20]
    assert run_alone(engine, book, 24) == expected
    assert beside.drawn == plain(model, beside.tokens[:6], len(beside.drawn))


def test_logprobs_are_of_the_logits_as_they_came(model: LanguageModel) -> None:
    prompt = prompt_of(2, 9)
    engine = Engine(make_runner(model))
    params = SamplingParams(
        temperature=2.0, seed=3, logprobs=3, prompt_logprobs=2, max_tokens=9, logit_bias={1: 9}, repetition_penalty=2.0
    )
    book, greedy = Book(0, prompt, params, 0), Book(1, prompt_of(3, 4), SamplingParams(temperature=0, logprobs=0), 1)
    engine.step((book, book.row(5, wants_prompt_logprobs=True)), (greedy, greedy.row(4)))
    engine.step((book, book.row(4, wants_prompt_logprobs=True)), (greedy, greedy.row()))
    for _ in range(4):
        engine.step((book, book.row()), (greedy, greedy.row()))
    with torch.inference_mode():
        logprobs = model(torch.tensor([book.tokens])).logits[0].log_softmax(-1)
    own = [entry for result in book.results for entry in result.logprobs]
    assert [entry.token_id for entry in own] == book.drawn
    of_prompt = [entry for result in book.results for entry in result.prompt_logprobs]
    assert [entry.token_id for entry in of_prompt] == prompt[1:]
    for place, entry in enumerate([*of_prompt, *own]):
        assert entry.logprob == pytest.approx(float(logprobs[place, entry.token_id]), abs=1e-4)
        n = 2 if place < len(of_prompt) else 3
        assert [i for i, _ in entry.top] == logprobs[place].topk(n).indices.tolist()
        assert [x for _, x in entry.top] == pytest.approx(logprobs[place].topk(n).values.tolist(), abs=1e-4)
    assert all(entry.top == () for result in greedy.results for entry in result.logprobs)
    assert len(greedy.drawn) == sum(len(result.logprobs) for result in greedy.results)


def test_min_tokens_forbids_the_end_tokens(model: LanguageModel) -> None:
    prompt = prompt_of(2, 9)
    free = run_alone(Engine(make_runner(model)), Book(0, prompt, GREEDY, 0), 8)
    ends = frozenset(free[2:5])
    params = SamplingParams(temperature=0, min_tokens=4)
    bound = run_alone(Engine(make_runner(model)), Book(0, prompt, params, 0, end_ids=ends), 4)
    assert not ends & set(bound)
    later = Book(0, prompt, SamplingParams(temperature=0, min_tokens=2), 0, end_ids=frozenset(free[2:3]))
    if free[2] not in free[:2]:
        assert run_alone(Engine(make_runner(model)), later, 3) == free[:3]


def test_an_embedding_is_the_mean_of_the_final_states(model: LanguageModel) -> None:
    tokens = prompt_of(4, 37)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).hidden.mean(0)
    for chunk in (5, 100):
        assert make_runner(model, chunk=chunk).embed(tokens) == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(ValueError, match="token_ids is empty"):
        make_runner(model).embed([])


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("static", [None, False, True])
def test_keys_and_values_may_be_narrower(
    model: LanguageModel, kv_dtype: torch.dtype, static: bool | None, tmp_path: Path
) -> None:
    """Log-probabilities stay near the plain model's, and pages that were on disk, scales too, are the same."""
    prompt = prompt_of(4, 9)
    params = SamplingParams(temperature=0, logprobs=0, max_tokens=9)
    runner = make_runner(model, kv_dtype=kv_dtype, static=static, disk=tmp_path)
    assert runner.state.k.dtype == kv_dtype
    assert runner.state.conv.dtype == runner.state.ssm.dtype == torch.float32
    book, engine = Book(0, prompt, params, 0), Engine(runner)
    run_alone(engine, book, 2, chunk=4)
    away = [Copy("page", Place("device", p), Place("disk", p)) for p in book.pages[:3]]
    back = [Copy("page", Place("disk", p), Place("device", p + 20)) for p in book.pages[:3]]
    book.pages = [p + 20 for p in book.pages]
    engine.step((book, book.row()), before=[*away, *back])
    run_alone(engine, book, 6)
    with torch.inference_mode():
        logprobs = model(torch.tensor([book.tokens])).logits[0].log_softmax(-1)
    for place, result in enumerate(result for result in book.results if result.token_ids):
        (entry,) = result.logprobs
        assert entry.logprob == pytest.approx(float(logprobs[place + 8, entry.token_id]), abs=0.05)
    runner.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot": 6}, "must differ and lie between 0 and 5"),
        ({"slot": -1}, "must differ and lie between 0 and 5"),
        ({"sequence": 8}, "sequence 8 has a row and was never started"),
        ({"pages": [0, 1]}, "2 pages don't hold 9 tokens"),
        ({"tokens": [1, 2]}, "the rows say 9 tokens and bring 2"),
        ({"pages": [0, 1, 60]}, "page 60"),
        ({"pages": [0, 1, -1]}, "page -1"),
        ({"context_len": 140, "mode": "resume", "pages": list(range(40))}, "38 pages of one sequence"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(model: LanguageModel, change: dict[str, Any], message: str) -> None:
    runner = make_runner(model)
    book = Book(0, prompt_of(1, 9), GREEDY, 0)
    with pytest.raises(ValueError, match=message):
        runner.launch(StepPlan(1, [book.row(9)._replace(**change)], started=[book.start]))


def test_prefill_memory_does_not_grow_with_the_prompt(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that any layer or the head gives out, prompt log-probabilities included, is that of a chunk or
    of a slice of logits, however long the prompt is.
    """
    largest = 0

    def note(_: object, __: object, out: Any) -> None:
        nonlocal largest
        out = out[0] if isinstance(out, tuple) else out
        largest = max(largest, out.numel() if isinstance(out, torch.Tensor) else 0)

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if layer is not model]
    real = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: (note(None, None, out := real(hidden)), out)[1])
    sizes = []
    for n_tokens in (600, 1800):
        runner = make_runner(model, n_pages=600, max_context=2048)
        book = Book(0, prompt_of(1, n_tokens), SamplingParams(temperature=0, prompt_logprobs=0), 0)
        book.pages = list(range(500))
        largest = 0
        engine = Engine(runner)
        while book.fed < n_tokens:
            engine.step((book, book.row(min(300, n_tokens - book.fed), wants_prompt_logprobs=True)))
        assert sum(len(result.prompt_logprobs) for result in book.results) == n_tokens - 1
        sizes.append(largest)
    for hook in hooks:
        hook.remove()
    assert sizes[0] == sizes[1] <= max(300 * 2 * CONFIG.d_inner, 256 * VOCAB)
