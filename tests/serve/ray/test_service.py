"""What `RayService` makes of replicas that refuse, fail and die, without a cluster."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

from plait.serve.options import EngineOptions  # noqa: E402
from plait.serve.ray.application import Fleet, _read, app  # noqa: E402
from plait.serve.ray.service import Failure, RayService, summed  # noqa: E402
from plait.serve.service import Delta, EngineError, EngineStats, RunningAnswer  # noqa: E402
from plait.text import GenerationRequest  # noqa: E402

ASKED = GenerationRequest(prompt="x" * 1500)
GONE = ray.exceptions.ActorDiedError()


class Stream:
    def __init__(self, script: list[Any]) -> None:
        self.script, self.is_cancelled = script, False

    async def __aiter__(self) -> AsyncIterator[Any]:
        for piece in self.script:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """A handle whose n-th request gets the n-th script."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.streams = [Stream(script) for script in scripts]
        self.keys: list[tuple[int, ...]] = []

    def options(self, stream: bool) -> "Handle":
        return self

    @property
    def answers(self) -> "Handle":
        return self

    def remote(self, request: GenerationRequest, priority: int, grammar: Any, *, keys: tuple[int, ...]) -> Stream:
        self.keys.append(keys)
        return self.streams[len(self.keys) - 1]


def answered(*scripts: list[Any]) -> tuple[list[str], Handle, Exception | None]:
    handle = Handle(*scripts)

    async def collect() -> tuple[list[str], Exception | None]:
        texts: list[str] = []
        try:
            async for piece in RayService(handle, EngineOptions("demo"), "demo").answers(ASKED):  # type: ignore[arg-type]
                texts.append(piece.text)  # noqa: PERF401
        except (ValueError, EngineError) as error:
            return texts, error
        return texts, None

    texts, error = asyncio.run(collect())
    return texts, handle, error


def piece(text: str) -> Delta:
    return Delta(0, text, (1,))


def test_the_router_is_given_the_keys_of_the_prompt() -> None:
    texts, handle, error = answered([piece("a"), piece("b")])
    assert (texts, error) == (["a", "b"], None)
    assert [len(keys) for keys in handle.keys] == [2]
    assert handle.streams[0].is_cancelled


def test_nothing_said_yet_goes_to_another_replica() -> None:
    texts, handle, error = answered([GONE], [GONE], [piece("a")])
    assert (texts, error, len(handle.keys)) == (["a"], None, 3)


def test_some_said_is_an_error_and_is_not_said_twice() -> None:
    texts, handle, error = answered([piece("a"), GONE], [piece("a")])
    assert (texts, len(handle.keys)) == (["a"], 1)
    assert isinstance(error, EngineError)
    assert "gone" in str(error)


def test_not_for_ever() -> None:
    _, handle, error = answered([GONE], [GONE], [GONE], [piece("a")])
    assert isinstance(error, EngineError)
    assert len(handle.keys) == 3


@pytest.mark.parametrize(("is_refusal", "kind"), [(True, ValueError), (False, EngineError)])
def test_errors_keep_their_kind_and_are_not_tried_again(is_refusal: bool, kind: type) -> None:
    """A request that ended one engine must not be carried to the next."""
    _, handle, error = answered([Failure("so it is", is_refusal)], [piece("a")])
    assert type(error) is kind
    assert str(error) == "so it is"
    assert len(handle.keys) == 1


def test_figures_of_several_engines() -> None:
    row = RunningAnswer(1, 0, 1, 0)
    both = summed([EngineStats(running=1, pages=10, step_ms=2.0, batch=(row,)), EngineStats(pages=5, step_ms=3.5)])
    assert (both.running, both.pages, both.step_ms, both.batch) == (1, 15, 3.5, (row,))
    assert summed([]) == EngineStats()


def test_replicas_share_no_folder() -> None:
    with pytest.raises(ValueError, match="replicas can't share one"):
        app({"model": "demo", "allow_no_key": True, "batch_folder": "kept"})


def test_args_of_a_config_file() -> None:
    with pytest.raises(ValueError, match="replica is not known"):
        app({"model": "demo", "replica": 2})
    with pytest.raises(ValueError, match="model is missing"):
        app({"replicas": 2})
    with pytest.raises(ValueError, match="API key"):  # others reach Ray's proxies
        app({"model": "demo"})
    with pytest.raises(ValueError, match="max_replicas=1 must be at least replicas=2"):
        Fleet(replicas=2, max_replicas=1)
    with pytest.raises(ValueError, match="tp=2 must divide"):
        app({"model": "demo", "api_keys": ["k"], "tensor_parallel": 2})
    with pytest.raises(ValueError, match="no model"):
        app({"model": "nowhere", "api_keys": ["k"]})
    assert app({"model": "demo", "api_keys": ["k"], "replicas": "2", "prefix_cache": "false"})
    assert [_read("3", "int | None"), _read("0.5", "float"), _read("a,b", "tuple[str, ...]")] == [3, 0.5, ("a", "b")]
