"""The fixed-buffer decode step beside the one that is laid out anew each time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait import native
from plait.config import ModelConfig
from plait.model import LanguageModel, init_weights
from plait.serve import LLM
from plait.serve.graphs import ladder
from plait.serve.plan import Row, Start, StepPlan
from plait.serve.runner import Runner
from plait.text import SamplingParams

LOGPROBS = SamplingParams(temperature=0, logprobs=3)


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 8, 16, 100, 512])
def test_a_ladder_never_pads_a_batch_to_twice_its_size(largest: int) -> None:
    sizes = ladder(largest)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] == largest
    for n in range(1, largest + 1):
        assert min(size for size in sizes if size >= n) < 2 * n


@settings(max_examples=10)
@given(
    kind=st.sampled_from(["mamba", "mamba2"]),
    n=st.integers(1, 7),
    seed=st.integers(0, 100),
    n_experts=st.sampled_from([1, 5]),
)
def test_padded_static_decode_equals_eager(kind: str, n: int, seed: int, n_experts: int) -> None:
    """Bit for bit in what is drawn, to rounding in log-probabilities, with pools full of NaN; and the padding rows keep
    to the spare slot and page, which stay finite.
    """
    config = ModelConfig(
        vocab_size=40, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=2, attn_offset=1,
        mamba_kind=kind, d_ssm_head=8, n_experts=n_experts, d_state=4, init_std=0.3, max_context=64, dtype="float32",
    )  # fmt: skip
    model = init_weights(LanguageModel(config), seed=seed).eval()
    starts = [Start(i, (1 + i, 2), LOGPROBS, frozenset(), 0, None) for i in range(n)]
    results = []
    for static in (False, True, None):
        runner = Runner(model, n_slots=8, n_pages=40, page_size=4, max_context=32, static=static)
        state = runner.state
        with torch.inference_mode():
            for pool in (state.conv, state.ssm, state.k, state.v):
                pool[:, :-1] = torch.nan
        pages = [list(range(5 * i, 5 * i + 5)) for i in range(n)]
        rows = [Row(i, "fresh", 2, 0, 7 - i, pages[i], s.prompt, True) for i, s in enumerate(starts)]
        runner.launch(StepPlan(0, rows, started=starts))
        for number in range(1, 12):
            rows = [Row(i, "decode", 1, 1 + number, 7 - i, pages[i], None, True) for i in range(n)]
            runner.launch(StepPlan(number, rows))
        results.append([runner.collect().rows for _ in range(12)])
        assert all(torch.isfinite(pool[:, -1]).all() for pool in (state.conv, state.ssm, state.k, state.v))
        untouched = [slot for slot in range(8) if 7 - slot not in range(n)]
        assert torch.isnan(state.ssm[:, untouched]).all()
        assert torch.isnan(state.k[:, 5 * n : -1]).all()
    for eager, *others in zip(*results, strict=True):
        for rows in others:
            for one, other in zip(eager, rows, strict=True):
                assert one.token_ids == other.token_ids
                assert one.logprobs[0].logprob == pytest.approx(other.logprobs[0].logprob, abs=1e-5)


def test_a_cpu_keeps_decode_steps_as_tapes() -> None:
    """If there is a native library; with fewer rows than MOST_ON_CPU, and not what has no kernels."""
    config = ModelConfig(
        vocab_size=40, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=2, attn_offset=1,
        n_experts=4, d_state=4, dtype="float32", max_context=64,
    )  # fmt: skip
    for kind, is_kept in (("mamba", native.why_not(torch.empty(1)) is None), ("mamba2", False)):
        model = init_weights(LanguageModel(replace(config, mamba_kind=kind, d_ssm_head=8)), seed=0).eval()
        runner = Runner(model, n_slots=9, n_pages=9)
        runner.warm_up()
        assert runner.graphs is not None
        assert (runner.graphs.why_not is None) == is_kept
        assert runner.graphs.sizes == [1, 2, 3, 4, 5, 6, 7, 8]
        if not is_kept:
            assert "softplus" in runner.graphs.why_not or "native" in runner.graphs.why_not


def test_every_size_can_be_made_before_the_first_step() -> None:
    config = ModelConfig(
        vocab_size=40, d_model=16, d_ff=24, n_layers=2, n_heads=2, n_kv_heads=1, attn_period=2, attn_offset=1,
        n_experts=1, d_state=4, dtype="float32", max_context=64,
    )  # fmt: skip
    runner = Runner(
        init_weights(LanguageModel(config), seed=0).eval(), n_slots=9, n_pages=4, static=True, max_running=5
    )
    runner.warm_up()
    assert runner.graphs is not None
    assert sorted(runner.graphs._steps) == [1, 2, 4, 5]


def test_why_there_is_no_tape_is_said_before_the_first_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plait.serve.graphs.recorded", lambda call: "no reason")
    llm = LLM("demo", max_running=2)
    said = [record.message for record in caplog.records if "one kernel at a time" in record.message]
    assert said == ["decode steps run one kernel at a time, not as a tape: no reason"]
    caplog.clear()
    llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=3))
    assert not [record for record in caplog.records if "decode steps" in record.message]
