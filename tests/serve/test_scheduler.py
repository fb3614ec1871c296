"""What is decided, case by case: what hits, who waits, who gives way, and where states are kept."""

from typing import ClassVar

import pytest

from plait.serve.drafts import Worth
from plait.serve.plan import StepPlan
from plait.serve.pools import PoolSizes
from plait.serve.request import Request
from plait.serve.scheduler import Limits
from plait.serve.sequence import positions_to_keep
from plait.serve.service import Grammar, PrefixUse
from plait.text import SamplingParams
from tests.serve.engine_run import PAGE, Run
from tests.serve.fake_executor import answer

ROOMY = PoolSizes(slots=20, pages=100)


def prefix_of(run: Run, prompt: list[int], **fields: object) -> PrefixUse:
    """How much of a prompt was known when its answer began."""
    number = run.add(Request(tuple(prompt), SamplingParams(max_tokens=2), **fields))  # type: ignore[arg-type]
    seen = []
    while not run.engine.is_idle:
        seen += [out.prefix for out in run.step() if out.request == number]
    run.check_answers()
    return seen[-1]


def test_the_second_sighting_of_a_prompt_hits() -> None:
    for length in (5, 8, 9, 30):
        run = Run(ROOMY)
        prompt = list(range(length))
        assert prefix_of(run, prompt).usable == 0
        last = (length - 1) // PAGE * PAGE
        whole = length // PAGE * PAGE  # of a prompt of whole pages the last token is still to be fed
        assert prefix_of(run, prompt) == PrefixUse(whole, last, whole - last)


def test_a_fork_is_remembered_when_it_is_seen_and_hits_the_third_time() -> None:
    run = Run(ROOMY)
    stem = list(range(13))
    assert prefix_of(run, [*stem, 1, 1, 1]) == PrefixUse(0, 0, 0)
    assert prefix_of(run, [*stem, 2, 2, 2]) == PrefixUse(12, 12, 0)  # the first one's last page ended there by chance
    run = Run(ROOMY)
    prefix_of(run, [*stem, *range(20, 30)])
    assert prefix_of(run, [*stem, *range(30, 40)]) == PrefixUse(12, 0, 12)  # pages, but no state
    assert prefix_of(run, [*stem, *range(40, 50)]) == PrefixUse(12, 12, 0)


def test_the_next_turn_starts_where_the_answer_ended() -> None:
    run = Run(ROOMY)
    first = [1, 2, 3, 4, 5]
    new = run.ask(first, 7)
    # The last token of an answer is drawn and not fed.
    assert prefix_of(run, [*first, *new, 9, 9]) == PrefixUse(11, 11, 0)


def test_a_turn_in_the_middle_of_a_prompt_hits_the_second_time() -> None:
    run = Run(ROOMY, ladder=64)
    system, user = list(range(22)), list(range(50, 80))
    assert prefix_of(run, [*system, *user], turns=(22, 52)).usable == 0
    assert prefix_of(run, [*system, 9, 9, 9]) == PrefixUse(20, 20, 0)


def test_where_states_are_kept() -> None:
    prompt = tuple(range(100))
    assert positions_to_keep(Request(prompt), 16, 32) == [96]
    assert positions_to_keep(Request(prompt[:16]), 16, 32) == []
    assert positions_to_keep(Request(prompt[:17]), 16, 32) == [16]
    assert positions_to_keep(Request(prompt, turns=(10, 40, 60, 70, 90)), 16, 32) == [32, 64, 96]


def test_chunks_end_at_pages_and_states_are_kept_inside_them() -> None:
    run = Run(ROOMY, limits=Limits(max_batched_tokens=10), ladder=16)
    run.add(Request(tuple(range(41)), SamplingParams(max_tokens=1), turns=(30,)))
    ends: list[int] = []
    inside: list[int] = []
    launch = run.executor.launch

    def noting(plan: object) -> None:
        ends.extend(row.context_len + row.n_tokens for row in plan.rows)  # type: ignore[attr-defined]
        inside.extend(row.context_len + row.export[0] for row in plan.rows if row.export)  # type: ignore[attr-defined]
        launch(plan)  # type: ignore[arg-type]

    run.executor.launch = noting  # type: ignore[method-assign, assignment]
    run.finish()
    assert (ends, inside) == ([8, 16, 24, 32, 41], [28, 40])  # a place inside a chunk doesn't cut it
    kept = sorted(node.end for node in run.engine.memory.tree.nodes if node.state)
    assert kept == [16, 28, 40, 41]


def test_answers_of_one_prompt_share_its_pages() -> None:
    run = Run(ROOMY)
    run.add(Request(tuple(range(41)), SamplingParams(max_tokens=3, n=4)))
    run.finish()
    run.check_answers()
    assert run.executor.n_fed == 41 + 3 * 1 + 4 * 2
    private = Run(ROOMY)
    private.add(Request(tuple(range(41)), SamplingParams(max_tokens=3, n=4), is_private=True))
    private.finish()
    assert private.executor.n_fed == run.executor.n_fed
    assert private.engine.stats().pages_used == private.engine.stats().slots_cached == 0


def test_nothing_is_shared_between_salts_or_with_a_private_request() -> None:
    run = Run(ROOMY)
    prompt = list(range(20))
    prefix_of(run, prompt, salt="one")
    assert prefix_of(run, prompt, salt="two").matched == 0
    assert prefix_of(run, prompt, is_private=True).matched == 0
    assert prefix_of(run, prompt, salt="one").usable == 16


def first_tokens(run: Run) -> list[int]:
    """Requests in the order of their first tokens."""
    order: list[int] = []
    while not run.engine.is_idle:
        order += [out.request for out in run.step() if out.request not in order]
    run.check_answers()
    return order


def test_the_urgent_go_first_and_nobody_waits_for_ever() -> None:
    run = Run(ROOMY, limits=Limits(max_running=1, aging=10))
    a, b, c = (run.add(Request((1, 2, 3, p + 5), SamplingParams(max_tokens=3), priority=p)) for p in (0, 0, -1))
    assert first_tokens(run) == [c, a, b]
    run = Run(ROOMY, limits=Limits(max_running=1, aging=10))
    late = run.add(Request((1, 2, 3), SamplingParams(max_tokens=2), priority=3))
    order = []
    for i in range(40):  # a stream of others that would always go first
        run.add(Request((1, 2, i), SamplingParams(max_tokens=3)))
        for _ in range(3):
            order += [out.request for out in run.step()]
    assert late in order
    assert 5 < order.index(late) < 60


@pytest.mark.parametrize(("host_slots", "n_again"), [(2, 0), (0, 8)])
def test_a_preempted_sequence_keeps_its_pages_and_its_state_goes_to_the_host(host_slots: int, n_again: int) -> None:
    run = Run(PoolSizes(slots=1, pages=40, host_slots=host_slots), limits=Limits(max_running=1))
    slow = run.add(Request((1, 2, 3, 4, 5), SamplingParams(max_tokens=9)))
    for _ in range(4):
        run.step()
    run.add(Request((9, 9), SamplingParams(max_tokens=2), priority=-1))
    run.finish()
    run.check_answers()
    assert run.engine.stats().preemptions_total == 1
    assert len(run.answers[slow, 0].token_ids) == 9
    assert run.executor.n_fed == (5 + 8) + (2 + 1) + n_again


def test_pages_for_an_answer_come_from_those_behind() -> None:
    run = Run(PoolSizes(slots=4, pages=8), limits=Limits(max_running=4))
    for first in (1, 2, 3):
        run.add(Request((first, 2, 3, 4, 5, 6, 7, 8), SamplingParams(max_tokens=20)))
    done: list[int] = []
    while not run.engine.is_idle:
        done += [out.request for out in run.step() if out.finish_reason]
    run.check_answers()
    assert done == [0, 1, 2]
    assert run.engine.stats().preemptions_total > 0


def test_what_can_never_fit_is_refused() -> None:
    run = Run(PoolSizes(slots=1, pages=2), limits=Limits(max_running=1))
    with pytest.raises(ValueError, match="prompt and answer have up to 9 tokens; the cache holds 8"):
        run.engine.add(Request((1, 2, 3), SamplingParams(max_tokens=7)))
    assert len(run.ask([1, 2, 3], 6)) == 6
    with pytest.raises(ValueError, match="the prompt is empty"):
        run.engine.add(Request(()))
    with pytest.raises(ValueError, match="max_running=2 must be at most slots=1"):
        Run(PoolSizes(slots=1, pages=2), limits=Limits(max_running=2))
    with pytest.raises(ValueError, match="max_batched_tokens=0 must be at least 1"):
        Limits(max_batched_tokens=0)


@pytest.mark.parametrize("overlap", [False, True])
def test_drafts_make_fewer_steps_and_the_same_answer(overlap: bool) -> None:
    prompt, n = [1, 2, 3, 4] * 3, 60
    plain = Run(ROOMY, vocab_size=2)
    guessing = Run(ROOMY, vocab_size=2, limits=Limits(n_drafts=4), overlap=overlap)
    assert plain.ask(prompt, n) == guessing.ask(prompt, n) == answer(prompt, n, 2)
    stats = guessing.engine.stats()
    assert 0 < stats.drafts_accepted_total < stats.drafts_total
    assert stats.steps_total < plain.engine.stats().steps_total
    one_slot = Run(PoolSizes(slots=1, pages=40), vocab_size=2, limits=Limits(max_running=1, n_drafts=4))
    assert one_slot.ask(prompt, n) == answer(prompt, n, 2)  # no slot to keep a state in: no drafts
    assert one_slot.engine.stats().drafts_total == 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("is_open", [False, True])
def test_guesses_wait_until_they_are_worth_it(overlap: bool, is_open: bool) -> None:
    class Given(Worth):
        noted: ClassVar[list[tuple[int, bool]]] = []

        def is_open(self, n_rows: int) -> bool:
            return is_open

        def note(self, n_rows: int, n_tokens: int, seconds: float, *, guessing: bool) -> None:
            assert n_rows == 1
            assert seconds > 0
            self.noted.append((n_tokens, guessing))

    Given.noted = []
    run = Run(ROOMY, vocab_size=2, limits=Limits(n_drafts=4), overlap=overlap, worth=Given())
    prompt, n = [1, 2, 3, 4] * 3, 60
    assert run.ask(prompt, n) == answer(prompt, n, 2)
    assert (run.engine.stats().drafts_total > 0) == is_open
    assert any(guessing for _, guessing in Given.noted) == is_open
    assert any(n_tokens > 1 for n_tokens, _ in Given.noted) == is_open
    assert sum(n_tokens for n_tokens, _ in Given.noted) < n  # the first token is a prompt's


def test_drafts_keep_within_the_few_tokens_of_a_step() -> None:
    run = Run(ROOMY, vocab_size=2, limits=Limits(max_running=4, n_drafts=7, few_tokens=6))
    sizes: list[int] = []
    launch = run.executor.launch

    def watched(plan: StepPlan) -> None:
        if any(row.n_drafts for row in plan.rows):
            sizes.append(sum(row.n_tokens for row in plan.rows if row.n_drafts or row.mode == "decode"))
        launch(plan)

    run.executor.launch = watched  # type: ignore[method-assign]
    for nth in range(4):
        run.add(Request(tuple([1, nth % 2, 3, 4] * 3), SamplingParams(max_tokens=40 + 20 * nth)))
    run.finish()
    run.check_answers()
    assert max(sizes) == 6


def test_a_failing_executor_ends_everything_and_the_engine_goes_on() -> None:
    run = Run(ROOMY, overlap=True)
    run.add(Request((1, 2, 3), SamplingParams(max_tokens=5)))
    run.step()

    def failing() -> None:
        raise OSError("the device is gone")

    collect, run.executor.collect = run.executor.collect, failing  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="the device is gone"):
        run.step()
    run.executor.collect = collect  # type: ignore[method-assign]
    assert run.engine.is_idle
    run.answers.clear()
    assert run.ask([1, 2, 3], 5) == answer([1, 2, 3], 5, 5)


def test_what_a_failed_row_left_in_its_slot_is_never_used() -> None:
    prompt = (1, 2, 3, 4, 5)
    for overlap in (True, False):
        run = Run(ROOMY, overlap=overlap)
        number = run.add(Request(prompt, SamplingParams(max_tokens=9), grammar=Grammar("regex", "7")))
        run.finish()
        got = run.answers[number, 0]
        assert (got.finish, got.error) == ("abort", "grammar: 7")
        # With overlap a row behind the failed one has fed a token that nobody was told of.
        follow_up = [*prompt, *got.token_ids, 4, 4, 4]
        assert run.ask(follow_up, 4) == answer(follow_up, 4, 5)


def test_a_preempted_sequence_comes_back_only_when_its_last_draw_is_known() -> None:
    run = Run(PoolSizes(slots=3, pages=40), limits=Limits(max_running=2), overlap=True)
    run.add(Request((1, 2, 3), SamplingParams(max_tokens=8)))
    run.add(Request((1, 2, 4), SamplingParams(max_tokens=8)))
    for _ in range(4):
        run.step()
    _, other = run.engine.scheduler.running
    assert other.n_drawing == 1
    run.engine.scheduler._preempt(other)
    run.finish()
    run.check_answers()
    assert run.engine.stats().preemptions_total == 1


def test_of_several_turns_in_a_chunk_every_second_ends_one() -> None:
    run = Run(ROOMY, ladder=16)
    run.add(Request(tuple(range(41)), SamplingParams(max_tokens=1), turns=(9, 17, 26)))
    while not run.engine.is_idle:
        run.step()
    assert (run.executor.n_exports, run.executor.n_rows) == (2, 3)  # 0 to 16 with 8 inside, to 40 with 24, the rest
    for known in (8, 16, 24, 40):
        assert prefix_of(run, [*range(known), 90]).usable == known


def test_prompts_that_arrive_together_are_prefilled_once() -> None:
    stem = list(range(100, 140))
    for prompts in ([stem] * 4, [[*stem, 9, 9, 9, 9, i] for i in range(4)]):
        run = Run(ROOMY, ladder=64)
        for prompt in prompts:
            run.add(Request(tuple(prompt), SamplingParams(max_tokens=2)))
        run.finish()
        run.check_answers()
        assert run.executor.n_fed <= len(prompts[0]) + 3 * (PAGE + 4) + 4 * 2
    # Those of lower priority are not waited for, and who goes away leaves the others to themselves.
    run = Run(ROOMY, ladder=64, limits=Limits(max_batched_tokens=8))
    late = run.add(Request(tuple(stem), SamplingParams(max_tokens=2), priority=1))
    run.step()
    run.add(Request(tuple(stem), SamplingParams(max_tokens=2)))
    run.step()
    assert len(run.engine.scheduler.running) == 2
    follower = run.add(Request(tuple(stem), SamplingParams(max_tokens=2), priority=2))
    run.step()
    assert [s.request_id for s in run.engine.scheduler.waiting] == [follower]
    run.abort(late)
    run.abort(late + 1)
    run.finish()
    run.check_answers()


def test_a_long_answer_leaves_states_on_its_way() -> None:
    run = Run(PoolSizes(slots=8, pages=40), limits=Limits(max_running=1), ladder=32)
    number = run.add(Request((1, 2, 3), SamplingParams(max_tokens=80)))
    while len(run.answers[number, 0].token_ids) < 70:
        run.step()
    rungs = sorted(node.end for node in run.engine.memory.tree.nodes if node.state is not None)
    assert rungs[-1] >= 64  # never more than an eighth of the ladder and a page behind
    assert len(rungs) <= 4
    run.finish()
    run.check_answers()
