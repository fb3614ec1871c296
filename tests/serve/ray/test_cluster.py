"""Two replicas of the demo model on this machine, behind Ray's own proxy and the prefix-aware router."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow  # about a minute: a cluster is started
ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

PORT = 18_517
BODY: dict[str, Any] = {"model": "demo", "temperature": 0}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from plait.serve.http import ServerSettings
    from plait.serve.options import EngineOptions
    from plait.serve.ray import Fleet, start, stop

    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=4)
    options = EngineOptions("demo", cache_tokens=16_384)
    start(options, ServerSettings(port=PORT, request_timeout_s=120), Fleet(replicas=2, cpus=0.5))
    yield f"http://127.0.0.1:{PORT}"
    stop()


def asked(url: str, text: str, **fields: Any) -> dict[str, Any]:
    body = BODY | {"messages": [{"role": "user", "content": text}], "max_tokens": 8} | fields
    found = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert found.status_code == 200, found.text
    return found.json()


def test_prompts_go_where_they_were_read_before(url: str) -> None:
    cached = {}
    for turn in range(3):
        for n in range(6):
            usage = asked(url, f"{n} is the number. " * 100 + f"Turn {turn}")["usage"]
            cached[n, turn] = usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"]
    assert all(cached[n, 0] < 0.1 for n in range(6))
    assert all(cached[n, turn] > 0.9 for n in range(6) for turn in (1, 2)), cached


def test_the_rest_of_the_server_is_there(url: str) -> None:
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "demo"
    assert "plait" in httpx.get(url).text
    wrong = httpx.post(f"{url}/v1/chat/completions", json={"model": "demo", "messages": [], "nonsense": 1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "messages")
    too_long = httpx.post(f"{url}/v1/completions", json={"model": "demo", "prompt": [1] * 100_000}, timeout=60)
    assert (too_long.status_code, too_long.json()["error"]["type"]) == (400, "invalid_request_error")
    vector = httpx.post(f"{url}/v1/embeddings", json={"model": "demo", "input": "a"}, timeout=60).json()
    assert len(vector["data"][0]["embedding"]) > 8
    deadline = time.monotonic() + 30
    while (stats := httpx.get(f"{url}/stats").json()["engine"])["pages"] != 2 * 16_384 // 16:
        assert time.monotonic() < deadline, stats
        time.sleep(0.5)


def test_a_replica_is_killed_mid_stream(url: str) -> None:
    n_streams = 8
    said: list[list[str]] = [[] for _ in range(n_streams)]
    has_begun = [threading.Event() for _ in range(n_streams)]

    def stream(n: int) -> None:
        body = BODY | {"prompt": f"{n} " * 300, "stream": True, "max_tokens": 1000, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    said[n].append(line[6:])
                    has_begun[n].set()

    threads = [threading.Thread(target=stream, args=(n,), daemon=True) for n in range(n_streams)]
    for thread in threads:
        thread.start()
    assert all(event.wait(60) for event in has_begun)
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    engines = [name for name in names if "#Engine#" in name]
    assert len(engines) == 2
    ray.kill(ray.get_actor(engines[0], namespace="serve"), no_restart=True)

    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)  # nothing hangs
    n_whole = sum(lines[-1] == "[DONE]" for lines in said)
    broken = [json.loads(lines[-1]) for lines in said if lines[-1] != "[DONE]"]
    assert n_whole > 0
    assert len(broken) > 0
    assert {error["error"]["code"] for error in broken} == {"engine_failed"}

    assert asked(url, "and then?")["choices"][0]["finish_reason"] in ("length", "stop")  # by the other replica
    deadline = time.monotonic() + 60
    while sum("#Engine#" in actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)) != 2:
        assert time.monotonic() < deadline
        time.sleep(0.5)
