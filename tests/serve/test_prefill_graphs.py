"""Steps with prompts or guesses on fixed buffers draw what steps on tensors of their own size draw."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.config import ModelConfig
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.serve.plan import Row, Start, StepPlan
from plait.serve.prefill_graphs import LARGEST, guess_shapes, prompt_shapes
from plait.serve.runner import Runner
from plait.text import SamplingParams
from tests.serve.pieces import plans

CONFIG = ModelConfig(
    vocab_size=40, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=2, attn_offset=1, n_experts=5,
    d_state=4, init_std=0.3, max_context=64, dtype="float32",
)  # fmt: skip
LOGPROBS = SamplingParams(temperature=0, logprobs=1)
PAGE = 4
MODEL = init_weights(LanguageModel(CONFIG), seed=0).eval()


def pages_of(sequence: int) -> list[int]:
    return list(range(10 * sequence, 10 * sequence + 10))


def run(static: bool, lengths: list[int], cut: int, exporting: bool) -> tuple[list[list], Runner]:
    """A prompt of each length in one step; then one that decodes, and one more prompt in two chunks."""
    runner = Runner(MODEL, n_slots=8, n_pages=80, page_size=PAGE, max_context=40, max_running=4, static=static)
    with torch.inference_mode():
        for pool in (runner.state.conv, runner.state.ssm, runner.state.k, runner.state.v):
            pool[:, :-1] = torch.nan
    prompts = [tuple((7 * i + j) % 40 for j in range(n)) for i, n in enumerate(lengths)]
    late = tuple(range(3, 3 + cut + 5))
    starts = [Start(i, prompt, LOGPROBS, frozenset(), 0, None) for i, prompt in enumerate([*prompts, late])]
    rows = [
        Row(i, "fresh", len(p), 0, i, pages_of(i), p, True, export=(len(p) // 2, 7) if i == 0 and exporting else None)
        for i, p in enumerate(prompts)
    ]
    new = len(prompts)
    runner.launch(StepPlan(0, rows, started=starts))
    decode = [Row(0, "decode", 1, lengths[0], 0, pages_of(0), None, True)]
    chunks = (Row(new, "fresh", cut, 0, 5, pages_of(new), late[:cut], False),
              Row(new, "resume", 5, cut, 5, pages_of(new), late[cut:], True))  # fmt: skip
    for number, chunk in enumerate(chunks):
        runner.launch(StepPlan(1 + number, [*decode, chunk]))
        decode = [Row(0, "decode", 1, lengths[0] + 1, 0, pages_of(0), None, True)]
    return [runner.collect().rows for _ in range(3)], runner


@settings(max_examples=12)
@given(lengths=st.lists(st.integers(2, 20), min_size=1, max_size=4), cut=st.integers(1, 17), exporting=st.booleans())
def test_padded_steps_draw_what_others_draw(lengths: list[int], cut: int, exporting: bool) -> None:
    (expected, eager), (got, static) = (run(kept, lengths, cut, exporting) for kept in (False, True))
    assert static.prefills[0]._steps
    for one, other in zip(got, expected, strict=True):
        assert [r.token_ids for r in one] == [r.token_ids for r in other]
        for a, b in zip(one, other, strict=True):
            if a.token_ids:
                assert a.logprobs[0].logprob == pytest.approx(b.logprobs[0].logprob, abs=1e-5)
    for name in ("conv", "ssm", "k", "v"):  # and leave the same states and pages, exported ones too
        pool, like = getattr(static.state, name), getattr(eager.state, name)
        torch.testing.assert_close(pool[:, :-1], like[:, :-1], rtol=1e-4, atol=1e-5, equal_nan=True)
        assert torch.isfinite(pool[:, -1]).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), n_sequences=st.integers(1, 4))
def test_padded_guesses_draw_what_others_draw(seed: int, n_sequences: int) -> None:
    runners = []
    for options in ({"static": True, "n_drafts": 4}, {"static": False}):
        runner = Runner(MODEL, n_slots=4, n_pages=40, page_size=PAGE, max_context=40, **options)
        with torch.inference_mode():
            for pool in (runner.state.conv, runner.state.ssm, runner.state.k, runner.state.v):
                pool[:, :-1] = torch.nan
        runners.append(runner)
    for plan in plans(random.Random(seed), n_sequences):
        for runner in runners:
            runner.launch(plan)
        for one, other in zip(*(runner.collect().rows for runner in runners), strict=True):
            assert one.token_ids == other.token_ids
            for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    static, eager = runners
    assert static.prefills[0]._steps or static.graphs._steps
    for name in ("conv", "ssm", "k", "v"):
        pool, like = getattr(static.state, name), getattr(eager.state, name)
        torch.testing.assert_close(pool[:, :-1], like[:, :-1], rtol=1e-4, atol=1e-5, equal_nan=True)
        assert torch.isfinite(pool[:, -1]).all()


def test_shapes() -> None:
    sizes = [16, 32, 64, 128, 256, 384, 512, 640, 768, 896, 1024]
    assert prompt_shapes(LARGEST, 4) == [(n, rows) for n in sizes for rows in (1, 4)]
    assert prompt_shapes(20, 1) == [(16, 1), (20, 1)]
    assert guess_shapes(1, 1) == [(2, 1), (3, 1)]
    shapes = guess_shapes(3, 6)
    assert [n for n, rows in shapes if rows == 1] == [2, 3, 4, 5, 6, 7]
    assert [n for n, rows in shapes if rows == 6] == [9, 12, 18, 24]
    assert all(n <= 4 * (rows + 1) for n, rows in guess_shapes(7, 16))


def test_steps_that_fit_no_graph_run_without() -> None:
    _, runner = run(True, [2], 3, False)
    (prefills,) = runner.prefills
    assert prefills._shapes == [(n, rows) for n in (16, 32, 40) for rows in (1, 4)]  # padding alone must find pages
    assert set(prefills._steps) == {(16, 1), (16, 4)}


def test_running_all_steps_touches_only_the_spare() -> None:
    runner = Runner(MODEL, n_slots=4, n_pages=10, page_size=PAGE, max_context=20, static=True, n_drafts=2)
    pools = (runner.state.conv, runner.state.ssm, runner.state.k, runner.state.v)
    with torch.inference_mode():
        for pool in pools:
            pool[:, :-1] = 3
        runner._rehearse(20)
    for pool in pools:
        assert bool((pool[:, :-1] == 3).all())
        assert torch.isfinite(pool[:, -1]).all()
    assert not any(graphs._steps for graphs in (runner.graphs, *runner.prefills))


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[150], [3, 70, 33]])
def test_graphs_on_a_gpu_draw_what_launches_draw(lengths: list[int]) -> None:
    config = replace(CONFIG, d_model=128, d_ff=256, n_heads=4, n_kv_heads=2, d_state=16, max_context=1024)
    model = init_weights(LanguageModel(config), seed=0).eval().to_dtype(torch.bfloat16).cuda()
    results = []
    for static in (False, None):
        runner = Runner(model, n_slots=4, n_pages=200, page_size=16, max_context=1024, static=static)
        if static is None:
            runner.warm_up(256)
            assert all(graphs.why_not is None and graphs._steps for graphs in runner.prefills)
        prompts = [tuple((7 * i + j) % 40 for j in range(n)) for i, n in enumerate(lengths)]
        starts = [Start(i, p, LOGPROBS, frozenset(), 0, None) for i, p in enumerate(prompts)]
        rows = [Row(i, "fresh", len(p), 0, i, list(range(20 * i, 20 * i + 20)), p, True) for i, p in enumerate(prompts)]
        runner.launch(StepPlan(0, rows, started=starts))
        results.append(runner.collect().rows)
    for a, b in zip(*results, strict=True):
        assert a.logprobs[0].logprob == pytest.approx(b.logprobs[0].logprob, abs=0.05)
