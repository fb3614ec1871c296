"""Processes that share a model write what one process writes; one that dies takes the engine down, and says so."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from plait import quant
from plait.model.checkpoint import read_config
from plait.parallel.placement import placement_of, placements
from plait.parallel.tensor import slice_part
from plait.serve import LLM
from plait.serve.async_llm import AsyncLLM
from plait.serve.options import EngineOptions
from plait.serve.service import EngineError
from plait.text import GenerationRequest, SamplingParams

SHAPE = {"n_heads": 4, "n_kv_heads": 2, "vocab_size": 52, "d_ff": 24}
PROMPTS = [[1, 2, 3], list(range(1, 40)), [7] * 9, [5]]
LONG = [[n, *range(40), *range(40)] for n in range(8)]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=3, max_tokens=8, ignore_eos=True, n=2, logprobs=1),
]


@pytest.fixture(scope="module")
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(**SHAPE)


@pytest.mark.parametrize(("n", "quantize", "expert_parallel"), [(2, "experts_int8", True), (4, None, False)])
def test_the_same_tokens_as_one_process(
    folder: Path, n: int, quantize: str | None, expert_parallel: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two of them with so little room that states and pages come back from the host and from disk."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = {"quantize": quantize, "cache_tokens": 1024, "max_batched_tokens": 16, "max_running": 3}
    few = {"cache_tokens": 96, "max_context": 96, "host_gib": 2e-5, "disk": tmp_path / "tier", "disk_gib": 0.01}
    one = LLM(folder, **options)  # type: ignore[arg-type]
    own = {"tensor_parallel": n, "expert_parallel": expert_parallel, **(few if n == 2 else {})}
    shared = LLM(folder, **options | own)  # type: ignore[arg-type]
    asked = [(PROMPTS, params) for params in PARAMS] + [(LONG, PARAMS[0])] * (2 if n == 2 else 0)
    for prompts, params in asked:
        mine, theirs = one.generate(prompts, params), shared.generate(prompts, params)
        assert [c.token_ids for c in theirs] == [c.token_ids for c in mine]
    if n == 2:
        assert [c.cached_tokens for c in theirs] == [80] * len(LONG)
        names = [sorted(path.name for path in (tmp_path / "tier" / f"engine_{i}").iterdir()) for i in range(n)]
        assert names[0] == names[1] != ["lock"]
    assert shared.engine.stats().running == 0
    with pytest.raises(ValueError, match="shared"):
        _ = shared.model
    shared.engine.close()  # type: ignore[union-attr]


@pytest.mark.parametrize(("quantize", "dealt"), [(None, False), ("experts_int8", False), ("experts_int8", True)])
def test_a_process_never_holds_more_than_its_share_and_a_layer(
    make_folder: Callable[..., Path], quantize: str | None, dealt: bool
) -> None:
    """The whole is on disk only: its pages are mapped, or rounded row by row."""
    folder = make_folder(**SHAPE | {"n_layers": 12, "d_model": 64, "d_ff": 128, "attn_period": 6})
    config, shares = read_config(folder), []
    whole = quant.load(folder, quantize=quantize)
    for rank in range(2):
        cut = partial(slice_part, config=config, place=(rank, 2), whole_experts=dealt)
        peak, model = peak_of(lambda cut=cut: quant.load(folder, quantize=quantize, share=cut))  # type: ignore[misc]
        shares.append(model.state_dict())
        n_bytes = sum(t.nbytes for t in whole.state_dict().values())
        largest = max(sum(t.nbytes for t in layer.state_dict().values()) for layer in whole.layers)
        assert sum(t.nbytes for t in shares[rank].values()) < 0.53 * n_bytes
        peak -= (folder / "model.safetensors").stat().st_size  # mapped, which torch counts as given out
        assert 0.5 * n_bytes < peak < 0.53 * n_bytes + 1.5 * largest < 0.8 * n_bytes
    table = placements(config, tp=2, ep=1 + dealt)
    for name, tensor in whole.state_dict().items():
        for rank in range(2):
            expected = placement_of(table, name).share(tensor, tp=(rank, 2), ep=(rank, 2) if dealt else (0, 1))
            assert torch.equal(shares[rank][name], expected), name


def peak_of(run: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that torch's allocator has given out at the worst moment, and what came of it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        made = run()
    live = peak = 0
    assert profile.profiler is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak, made


def test_a_model_that_does_not_divide_is_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(ValueError, match="3"):
        LLM(folder, tensor_parallel=3)
    with pytest.raises(ValueError, match="give tensor_parallel at least 2"):
        LLM(folder, expert_parallel=True)


def test_a_worker_that_dies_ends_the_engine_and_the_error_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    async def test() -> None:
        llm = await AsyncLLM.start(EngineOptions(str(folder), cache_tokens=1024, tensor_parallel=2), restart=False)
        request = GenerationRequest(
            token_ids=[1, 2], sampling=SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
        )
        answers = llm.answers(request)
        await anext(answers)
        assert llm._child is not None
        worker = subprocess.run(["pgrep", "-P", str(llm._child.pid)], capture_output=True, text=True, check=True)
        os.kill(int(worker.stdout), signal.SIGKILL)
        with pytest.raises(EngineError, match=r"tensor-parallel worker 1.*signal 9"):
            async for _ in answers:
                pass
        assert await asyncio.to_thread(llm._child.wait, 30) == 1
        await llm.close()

    asyncio.run(asyncio.wait_for(test(), 120))
