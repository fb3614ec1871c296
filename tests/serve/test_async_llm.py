"""The engine in a process of its own: the same answers, and a clean end of everything when it dies."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from plait.serve import LLM
from plait.serve.async_llm import AsyncLLM
from plait.serve.options import EngineOptions
from plait.serve.service import EngineError, Grammar
from plait.text import Completion, GenerationRequest, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(with_tokenizer=True)


Run = Callable[[Callable[[AsyncLLM], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def run(folder: Path) -> Iterator[Run]:
    """Tests of one engine, one after another: a start is an import of torch."""
    with asyncio.Runner() as runner:
        llm = runner.run(asyncio.wait_for(AsyncLLM.start(EngineOptions(str(folder), cache_tokens=2048)), 120))
        yield lambda test: runner.run(asyncio.wait_for(test(llm), 120))
        runner.run(llm.close())


async def gathered(llm: AsyncLLM, request: GenerationRequest, **more: object) -> list[tuple[str, tuple[int, ...], str]]:
    answers: dict[int, list] = {n: [] for n in range(request.sampling.n)}
    async for piece in llm.answers(request, **more):  # type: ignore[arg-type]
        assert not answers[piece.answer] or answers[piece.answer][-1].finish_reason is None
        answers[piece.answer].append(piece)
    return [
        ("".join(p.text for p in pieces), tuple(t for p in pieces for t in p.token_ids), pieces[-1].finish_reason)
        for pieces in answers.values()
    ]


async def drained(answers: AsyncIterator[object]) -> None:
    async for _ in answers:
        pass


def as_completions(done: list[Completion]) -> list[tuple[str, tuple[int, ...], str]]:
    return [(c.text, c.token_ids, c.finish_reason) for c in done]


def test_answers_are_those_of_the_engine_in_this_process(folder: Path, run: Run) -> None:
    here = LLM(folder, cache_tokens=2048)
    requests = [
        GenerationRequest(prompt="It was a truth", sampling=GREEDY),
        GenerationRequest(token_ids=[1, 2, 3], sampling=SamplingParams(seed=5, max_tokens=9, n=3)),
        GenerationRequest(prompt="Emma", sampling=SamplingParams(temperature=0, max_tokens=30, stop=["e"])),
    ]
    expected = [as_completions(here.generate([request])) for request in requests]

    async def test(llm: AsyncLLM) -> None:
        got = await asyncio.gather(*(gathered(llm, request) for request in requests * 3))
        assert got == expected * 3
        stats = await llm.stats()
        assert (stats.running, stats.waiting, stats.slots_used) == (0, 0, 0)
        assert await llm.embed([1, 2, 3]) == pytest.approx(here.engine.executor.embed([1, 2, 3]), abs=1e-5)

    run(test)


def test_wrong_requests_are_refused_and_the_rest_goes_on(run: Run) -> None:
    async def test(llm: AsyncLLM) -> None:
        for request, grammar in [
            (GenerationRequest(token_ids=[10**6]), None),
            (GenerationRequest(prompt="a", sampling=GREEDY), Grammar("json_schema", "{")),
            (GenerationRequest(token_ids=[1] * 600), None),
        ]:
            with pytest.raises(ValueError, match=r"."):
                await gathered(llm, request, grammar=grammar)
        with pytest.raises(ValueError, match="at least one"):
            await llm.embed([])
        assert (await gathered(llm, GenerationRequest(prompt="a", sampling=GREEDY)))[0][2] == "length"

    run(test)


def test_whoever_stops_listening_cancels(run: Run) -> None:
    async def test(llm: AsyncLLM) -> None:
        long = GenerationRequest(prompt="a", sampling=SamplingParams(temperature=0, max_tokens=400, ignore_eos=True))
        before = (await llm.stats()).generated_tokens_total
        answers = llm.answers(long)
        await anext(answers)
        await answers.aclose()  # type: ignore[attr-defined]
        while (stats := await llm.stats()).running:
            await asyncio.sleep(0.01)
        assert stats.generated_tokens_total - before < 400

    run(test)


def test_a_killed_engine_ends_what_is_under_way_and_starts_again(run: Run) -> None:
    async def test(llm: AsyncLLM) -> None:
        long = GenerationRequest(prompt="a", sampling=SamplingParams(temperature=0, max_tokens=400, ignore_eos=True))
        answers, n_restarts = llm.answers(long), llm.n_restarts
        await anext(answers)
        assert llm._child is not None
        os.kill(llm._child.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="signal 9"):
            await drained(answers)
        assert (await gathered(llm, GenerationRequest(prompt="a", sampling=GREEDY)))[0][2] == "length"
        assert llm.n_restarts == n_restarts + 1

    run(test)


def test_an_engine_that_cannot_be_built_says_why(folder: Path) -> None:
    with pytest.raises(ValueError, match="max_context=100000"):
        asyncio.run(AsyncLLM.start(EngineOptions(str(folder), max_context=100_000, cache_tokens=1)))


def test_the_engine_ends_with_its_parent(folder: Path) -> None:
    async def test() -> int:
        llm = await AsyncLLM.start(EngineOptions(str(folder), cache_tokens=2048), restart=False)
        assert llm._channel is not None
        assert llm._child is not None
        llm._channel.close()  # as when this process dies
        return await asyncio.to_thread(llm._child.wait, 30)

    assert asyncio.run(test()) != 0
