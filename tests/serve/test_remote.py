"""An engine in another process, used as one in this: interrupted, it goes on; dead, it says how to whoever asks."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plait.serve import LLM
from plait.serve.options import EngineOptions
from plait.serve.remote import RemoteEngine
from plait.serve.service import EngineError
from plait.text import SamplingParams

LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPTS = [[1, 2, 3], [4, 5]]


@pytest.fixture(scope="module")
def llm(make_folder: Callable[..., Path]) -> Iterator[LLM]:
    """One whose engine was put out, as tensor parallelism does, with a process of its own."""
    folder = make_folder()
    llm = LLM(folder, cache_tokens=2048)
    llm.engine = RemoteEngine(EngineOptions(str(folder), cache_tokens=2048))
    yield llm
    llm.engine.close()


def test_an_interrupt_ends_what_was_asked_and_nothing_else(llm: LLM, bare: LLM) -> None:
    """Wherever it falls: while a message comes, its length or its body, and between messages."""
    engine = llm.engine
    assert isinstance(engine, RemoteEngine)
    expected = [one.token_ids for one in bare.generate(PROMPTS, SHORT)]
    real, calls = engine._channel._socket, 0

    class Interrupted:
        """A socket that gives few bytes at once, and after some calls Ctrl-C."""

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def recv(self, n: int) -> bytes:
            nonlocal calls
            calls -= 1
            if calls == 0:
                raise KeyboardInterrupt
            return real.recv(min(n, 5))

    engine._channel._socket = Interrupted()  # type: ignore[assignment]
    for after in (1, 2, 3, 40):
        calls = after
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, LONG)
        assert [one.token_ids for one in llm.generate(PROMPTS, SHORT)] == expected
    engine._channel._socket = real
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.slots_used) == (0, 0, 0)
    assert stats.generated_tokens_total < 4 * 2 * 400


def test_a_dead_engine_says_how_it_died_every_time(llm: LLM) -> None:
    engine = llm.engine
    assert isinstance(engine, RemoteEngine)
    threading.Timer(0.2, os.kill, (engine._child.pid, signal.SIGKILL)).start()
    with pytest.raises(EngineError, match="signal 9"):
        llm.generate([[1, 2, 3]] * 200, LONG)
    for _ in range(2):
        with pytest.raises(EngineError, match="signal 9"):
            llm.generate(PROMPTS, SHORT)
    with pytest.raises(EngineError, match="signal 9"):
        engine.stats()
    assert engine.is_idle
