"""`plait serve` as a process with its engine process: killed, left by its clients, and scored by lm-eval."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from plait.serve import LLM
from plait.text import ScoreRequest

PATH = "/v1/completions"
BODY: dict[str, Any] = {"model": "m", "prompt": "It was", "temperature": 0, "ignore_eos": True}


class Served:
    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log
        self.url = self.wait_for("serving")["url"].removesuffix("/v1")

    def wait_for(self, event: str, seconds: float = 120) -> dict[str, Any]:
        """The first line of the log with this event."""
        deadline = time.monotonic() + seconds
        while True:
            lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
            found = [line for line in lines if line["event"] == event]
            if found:
                return found[0]
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"no {event} in {self.log.read_text()}"
            time.sleep(0.05)

    def engine(self) -> int:
        """The id of the engine process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        by_name = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        (engine,) = [pid for pid, name in by_name.items() if b"engine_process" in name]
        return engine

    def post(self, **fields: Any) -> httpx.Response:
        return httpx.post(self.url + PATH, json=BODY | fields, timeout=120)

    def stats(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/stats", timeout=60).json()

    def check_nothing_is_left(self) -> dict[str, Any]:
        """Soon no request holds a place, and all pages in use are the prefix cache's; returns the engine's figures."""
        deadline = time.monotonic() + 30
        while True:
            found = self.stats()
            engine = found["engine"]
            left = [engine["running"], engine["waiting"], engine["slots_used"], len(engine["batch"])]
            left += [engine["pages_used"] - engine["pages_cached"]]
            left += [found["requests"]["running"], found["requests"]["waiting"]]
            if not any(left):
                return engine
            assert time.monotonic() < deadline, found
            time.sleep(0.1)


@contextmanager
def served(model: str, log: Path, *options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "plait", "serve", model, "--port", "0", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as file, subprocess.Popen(command, stderr=file, text=True, env=environment) as process:
        try:
            yield Served(process, log)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(make_folder: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests of this file that ask for it: a start takes seconds."""
    folder = str(make_folder(with_tokenizer=True, max_context=4096))
    log = tmp_path_factory.mktemp("server") / "log"
    with served(folder, log, "--served-name", "m", "--cache-tokens", "16384") as server:
        yield server


def test_a_killed_engine_ends_requests_cleanly_and_is_started_again(server: Served) -> None:
    before = server.post(max_tokens=10).json()["choices"][0]["text"]
    body = BODY | {"max_tokens": 4000, "stream": True}
    with httpx.stream("POST", server.url + PATH, json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        killed = server.engine()
        os.kill(killed, signal.SIGKILL)
        rest = [line for line in lines if line]
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert error["code"] == "engine_failed"
    assert "signal 9" in error["message"]

    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/metrics", timeout=5).status_code == 200  # waits for nobody
    again = server.post(max_tokens=10)  # waits for the new engine
    assert again.json()["choices"][0]["text"] == before
    assert httpx.get(f"{server.url}/ready").status_code == 200
    assert server.engine() != killed
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'plait:requests_broken_total{outcome="failed"} 1.0' in metrics
    server.check_nothing_is_left()


def test_each_answer_echoes_the_prompts_scores(server: Served) -> None:
    for max_tokens in (0, 3):
        choices = server.post(max_tokens=max_tokens, n=2, echo=True, logprobs=1).json()["choices"]
        scored = [choice["logprobs"]["token_logprobs"] for choice in choices]
        assert len(scored[0]) == len(scored[1]) > 2 + max_tokens
        assert scored[0][0] is None
        n_prompt = len(scored[0]) - max_tokens
        assert scored[0][1:n_prompt] == pytest.approx(scored[1][1:n_prompt], abs=1e-5)


async def _crowd(url: str, n_clients: int, max_tokens: int) -> list[int | None]:
    """Streams at once, 30 % of which leave behind a random piece: how many tokens each got, None for those who left."""
    draws = random.Random(0)

    async def ask(client: httpx.AsyncClient, n: int, leave_after: int | None) -> int | None:
        body = BODY | {"model": "m", "prompt": f"{n % 20} is a number", "max_tokens": max_tokens, "stream": True}
        body["stream_options"] = {"include_usage": True}
        async with client.stream("POST", PATH, json=body) as answer:
            assert answer.status_code == 200
            n_pieces, n_tokens = 0, 0
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    n_pieces += 1
                    n_tokens = (event.get("usage") or {}).get("completion_tokens", 0)
                    if leave_after is not None and n_pieces >= leave_after:
                        return None
        assert line == "" or line == "data: [DONE]"
        return n_tokens

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=540) as client:
        leave = [draws.randint(1, max_tokens // 2) if draws.random() < 0.3 else None for _ in range(n_clients)]
        return list(await asyncio.gather(*(ask(client, n, after) for n, after in enumerate(leave))))


def test_clients_that_leave(server: Served) -> None:
    got = asyncio.run(_crowd(server.url, 40, 24))
    assert {n for n in got if n is not None} == {24}
    assert 20 <= sum(n is not None for n in got) <= 35
    server.check_nothing_is_left()


def test_a_long_prompt_keeps_nobody_else_waiting(server: Served) -> None:
    """It is cut into tokens beside the event loop; here it then turns out too long for the model."""
    waits: list[float] = []
    with ThreadPoolExecutor(1) as other, httpx.Client(base_url=server.url) as client:
        began = time.monotonic()
        asked = other.submit(server.post, prompt="Emma Woodhouse, handsome, clever, and rich. " * 40_000)
        while not asked.done():
            sent = time.monotonic()
            client.get("/health")
            waits.append(time.monotonic() - sent)
        took = time.monotonic() - began
    assert asked.result().status_code == 400
    assert "tokens" in asked.result().json()["error"]["message"]
    assert max(waits) < took / 3


@pytest.mark.slow  # minutes on a busy machine
def test_200_clients_of_the_demo_model(tmp_path: Path) -> None:
    with served("demo", tmp_path / "log", "--served-name", "m") as server:
        began = time.monotonic()
        got = asyncio.run(_crowd(server.url, 200, 64))
        stayed = [n for n in got if n is not None]
        assert set(stayed) == {64}
        assert 120 <= len(stayed) <= 160
        figures = server.check_nothing_is_left()
        seconds = time.monotonic() - began
        print(f"{len(stayed)} whole, {200 - len(stayed)} left, {seconds:.1f} s, {figures}")


def test_scores_over_http_are_those_offline(server: Served, make_folder: Callable) -> None:
    """What lm-eval asks (token ids, `echo`, `logprobs`, one token more) against the same engine in this process."""
    pairs = [([1, 20, 30], [40, 50]), ([1, 7], [9]), ([1, 300, 200, 100], [5, 6, 7, 8])]
    asked = [[*context, *continuation] for context, continuation in pairs]
    choices = server.post(prompt=asked, max_tokens=1, echo=True, logprobs=1).json()["choices"]
    folder = make_folder(with_tokenizer=True, max_context=4096)
    offline = LLM(str(folder), cache_tokens=2048).loglikelihood([ScoreRequest(*pair) for pair in pairs])
    for (context, continuation), choice, score in zip(pairs, choices, offline, strict=True):
        noted = choice["logprobs"]
        here = slice(len(context), len(context) + len(continuation))
        assert sum(noted["token_logprobs"][here]) == pytest.approx(score.logprob, abs=1e-4)
        is_greedy = all(
            logprob == max(top.values())
            for logprob, top in zip(noted["token_logprobs"][here], noted["top_logprobs"][here], strict=True)
        )
        assert is_greedy == score.is_greedy


@pytest.mark.slow  # transformers alone takes as long to import as all tests above
def test_lm_eval_scores_as_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """local-completions of lm-evaluation-harness against the server, and the same engine in this process."""
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    pytest.importorskip("tenacity", reason="lm-eval[api] is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    import plait

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    demo = Path(plait.__file__).parent / "demo"
    pairs = [
        ("It is a truth universally acknowledged, that a single man", " must be in want of a wife"),
        ("Emma Woodhouse, handsome, clever,", " and rich"),
        ("Emma Woodhouse, handsome, clever,", " and poor"),
        ("She was the youngest of the two daughters of a most", " affectionate"),
        ("xyz\n\n", "0123 ÿ 語"),
    ]
    with served("demo", tmp_path / "log", "--served-name", "m", "--cache-tokens", "8192") as server:
        asked = LocalCompletionsAPI(
            base_url=server.url + PATH, model="m", tokenizer=str(demo), tokenizer_backend="huggingface",
            num_concurrent=3, batch_size=2,
        )  # fmt: skip
        instances = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
        over_http = asked.loglikelihood(instances, disable_tqdm=True)
        ids = [asked._encode_pair(*pair) for pair in pairs]
    offline = LLM("demo", cache_tokens=8192).loglikelihood([ScoreRequest(*pair) for pair in ids])
    assert [score for score, _ in over_http] == pytest.approx([score.logprob for score in offline], abs=1e-4)
    assert [greedy for _, greedy in over_http] == [score.is_greedy for score in offline]
    assert len({round(score, 3) for score, _ in over_http}) == len(pairs)
