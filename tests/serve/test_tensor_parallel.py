"""Processes that share a model write what one process writes; one that dies takes the engine down, and says so."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.serve import LLM
from plait.serve.async_llm import AsyncLLM
from plait.serve.options import EngineOptions
from plait.serve.service import EngineError
from plait.text import GenerationRequest, SamplingParams

SHAPE = {"n_heads": 4, "n_kv_heads": 2, "vocab_size": 52, "d_ff": 24}
PROMPTS = [[1, 2, 3], list(range(1, 40)), [7] * 9, [5]]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=3, max_tokens=8, ignore_eos=True, n=2, logprobs=1),
]


@pytest.fixture(scope="module")
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(**SHAPE)


@pytest.mark.parametrize(("n", "quantize"), [(2, "experts_int8"), (4, None)])
def test_the_same_tokens_as_one_process(
    folder: Path, n: int, quantize: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = {"quantize": quantize, "cache_tokens": 1024, "max_batched_tokens": 16, "max_running": 3}
    one, shared = LLM(folder, **options), LLM(folder, **options, tensor_parallel=n)  # type: ignore[arg-type]
    for params in PARAMS:
        mine, theirs = one.generate(PROMPTS, params), shared.generate(PROMPTS, params)
        assert [c.token_ids for c in theirs] == [c.token_ids for c in mine]
    assert shared.engine.stats().running == 0
    with pytest.raises(ValueError, match="shared"):
        _ = shared.model
    shared.engine.close()  # type: ignore[union-attr]


def test_a_model_that_does_not_divide_is_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(ValueError, match="3"):
        LLM(folder, tensor_parallel=3)


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
