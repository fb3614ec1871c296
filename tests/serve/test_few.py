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
from plait.serve.plan import RowResult, StepPlan
from plait.serve.runner import Runner
from tests.serve.pieces import plans

CONFIG = {
    "vocab_size": 40, "d_model": 16, "d_ff": 24, "n_layers": 4, "n_heads": 2, "n_kv_heads": 1, "attn_period": 2,
    "attn_offset": 1, "n_experts": 3, "d_state": 4, "init_std": 0.3, "max_context": 64, "dtype": "float32",
}  # fmt: skip
PAGE = 4

without_native = pytest.mark.skipif(native.why_not(torch.zeros(1)) is not None, reason="tapes hold native kernels")


def make_runner(model: LanguageModel, **options: object) -> Runner:
    """Pools full of NaN, but for the spare slot and page."""
    runner = Runner(model, n_slots=4, n_pages=40, page_size=PAGE, max_context=40, **options)  # type: ignore[arg-type]
    with torch.inference_mode():
        for pool in (runner.state.conv, runner.state.ssm, runner.state.k, runner.state.v):
            pool[:, :-1] = torch.nan
    return runner


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
