"""Steps of few tokens from tapes, beside the same steps run kernel by kernel."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait import native
from plait.config import ModelConfig
from plait.model import LanguageModel, init_weights
from plait.serve.few import MOST_TOKENS
from plait.serve.plan import Row, RowResult, Start, StepPlan
from plait.serve.runner import Runner
from plait.text import SamplingParams

CONFIG = {
    "vocab_size": 40, "d_model": 16, "d_ff": 24, "n_layers": 4, "n_heads": 2, "n_kv_heads": 1, "attn_period": 2,
    "attn_offset": 1, "n_experts": 3, "d_state": 4, "init_std": 0.3, "max_context": 64, "dtype": "float32",
}  # fmt: skip
LOGPROBS = SamplingParams(temperature=0, logprobs=3)
PAGE = 4

without_native = pytest.mark.skipif(native.why_not(torch.zeros(1)) is not None, reason="tapes hold native kernels")


def make_runner(model: LanguageModel, **options: object) -> Runner:
    """Pools full of NaN, but for the spare slot and page."""
    runner = Runner(model, n_slots=4, n_pages=40, page_size=PAGE, max_context=40, **options)  # type: ignore[arg-type]
    with torch.inference_mode():
        for pool in (runner.state.conv, runner.state.ssm, runner.state.k, runner.state.v):
            pool[:, :-1] = torch.nan
    return runner


def plans(rng: random.Random, n_sequences: int) -> list[StepPlan]:
    """Every sequence by pieces of one to five tokens, some of them guesses; a piece of one is at times a decode row."""
    tokens = [[rng.randrange(40) for _ in range(30)] for _ in range(n_sequences)]
    starts = [Start(i, tuple(t), LOGPROBS, frozenset(), 0, None) for i, t in enumerate(tokens)]
    fed = [0] * n_sequences
    made = []
    for number in range(1, 9):
        rows = []
        for i in rng.sample(range(n_sequences), rng.randint(1, n_sequences)):
            n = rng.choice((1, 1, 2, 5))
            n_drafts = rng.randrange(n) if fed[i] else 0
            mode = "fresh" if fed[i] == 0 else "decode" if n == 1 and rng.random() < 0.5 else "resume"
            pages = list(range(10 * i, 10 * i + 10))
            fields = {"draws": True, "n_drafts": n_drafts}
            rows.append(Row(i, mode, n, fed[i], 3 - i, pages, tokens[i][fed[i] : fed[i] + n], **fields))  # type: ignore[arg-type]
            fed[i] += n
        if number > 1 or rng.random() < 0.5:
            rows.sort(key=lambda row: row.mode != "decode")
        made.append(StepPlan(number, rows, started=[] if made else starts))
        if max(fed) > 25:
            break
    return made


@without_native
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), n_sequences=st.integers(1, 4), n_experts=st.sampled_from([1, 3]))
def test_kept_and_run_kernel_by_kernel_are_the_same(seed: int, n_sequences: int, n_experts: int) -> None:
    model = init_weights(LanguageModel(ModelConfig(**CONFIG | {"n_experts": n_experts})), seed=seed).eval()  # type: ignore[arg-type]
    kept, eager = make_runner(model), make_runner(model, static=False)
    schedule = plans(random.Random(seed), n_sequences)
    expected = [run(eager, plan) for plan in schedule]
    for nth in range(2):
        for plan, results in zip(schedule, expected, strict=True):
            with calls_of(model) as forwards:
                found = run(kept, plan)
            if nth:  # the tapes are there
                assert len(forwards) == (sum(row.n_tokens for row in plan.rows) > MOST_TOKENS)
            for one, other in zip(found, results, strict=True):
                assert one.token_ids == other.token_ids
                for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
                    assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
        kept.reset()
    assert torch.isfinite(kept.state.ssm[:, -1]).all()  # the spare slot


def run(runner: Runner, plan: StepPlan) -> list[RowResult]:
    runner.launch(plan)
    return list(runner.collect().rows)


@contextmanager
def calls_of(model: LanguageModel) -> Iterator[list[None]]:
    calls: list[None] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(None))
    yield calls
    handle.remove()


def test_what_no_tape_holds_runs_kernel_by_kernel(caplog: pytest.LogCaptureFixture) -> None:
    config = ModelConfig(**CONFIG | {"mamba_kind": "mamba2", "d_ssm_head": 8})  # type: ignore[arg-type]
    model = init_weights(LanguageModel(config), seed=1).eval()
    kept, eager = make_runner(model), make_runner(model, static=False)
    with caplog.at_level(logging.INFO, "plait.serve"):
        for plan in plans(random.Random(3), 2):
            assert run(kept, plan) == run(eager, plan)
    assert len([r for r in caplog.records if "steps of few tokens run one kernel at a time" in r.message]) == 1
