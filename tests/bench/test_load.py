"""Loads and their figures, worked out by hand, and a load on a real socket."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from plait.bench.load import Answered, Load, figures, load_url


def test_prompts_are_the_seeds_and_share_what_they_should() -> None:
    load = Load(20, 4, 5, concurrency=2, shared_tokens=8)
    prompts = load.prompts(100)
    assert prompts == load.prompts(100)
    assert [len(p) for p in prompts] == [20] * 5
    assert len({tuple(p[:8]) for p in prompts}) == 1
    assert len({tuple(p[8:]) for p in prompts}) == 5
    assert all(16 <= t < 100 for p in prompts for t in p)


def test_arrivals_have_the_rate_in_the_mean() -> None:
    starts = Load(1, 1, 4000, rate=50.0).starts()
    assert starts is not None
    assert starts == sorted(starts)
    assert starts[-1] == pytest.approx(80, rel=0.1)
    assert Load(1, 1, 3, concurrency=1).starts() is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"concurrency": None}, "either"),
        ({"rate": 2.0}, "either"),
        ({"concurrency": 0}, "^concurrency=0 must be at least 1$"),
        ({"concurrency": None, "rate": 0.0}, r"^rate=0\.0 must be above 0$"),
        ({"concurrency": None, "rate": float("nan")}, "^rate=nan must be above 0$"),
        ({"new_tokens": 0}, "new_tokens=0"),
        ({"shared_tokens": 9}, "shared_tokens=9"),
    ],
)
def test_impossible_loads_are_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Load(**({"prompt_tokens": 8, "new_tokens": 4, "n_requests": 2, "concurrency": 1} | wrong))  # type: ignore[arg-type]


def test_figures_of_two_requests_by_hand() -> None:
    one = Answered(0.0, [(1.0, 1), (1.5, 1), (2.5, 2)])
    two = Answered(0.5, [(1.5, 1), (3.5, 1)])
    failed = Answered(0.0, error="HTTP 503: busy")
    result = figures(Load(10, 4, 3, concurrency=3), [one, two, failed])
    assert one.itl_ms == [500.0, 500.0, 500.0]
    assert (result.n_requests, result.n_failed, result.first_error) == (3, 1, "HTTP 503: busy")
    assert result.seconds == 3.5
    assert result.new_tokens_per_s == pytest.approx(6 / 3.5)
    assert result.prompt_tokens_per_s == pytest.approx(20 / 3.5)
    assert result.ttft_ms["max"] == 1000.0
    assert result.itl_ms["p50"] == 500.0
    assert result.itl_ms["max"] == 2000.0
    assert result.decode_tokens_per_s == pytest.approx(3 / 0.5)
    with pytest.raises(ValueError, match="HTTP 503"):
        figures(Load(10, 4, 1, concurrency=1), [failed])


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def sent_to(handler: Handler, load: Load) -> list[Answered]:
    async def main() -> list[Answered]:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await load_url(f"http://127.0.0.1:{port}/v1", "m", load, vocab_size=50)

    return asyncio.run(asyncio.wait_for(main(), 60))


async def request_of(reader: asyncio.StreamReader) -> dict[str, object]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    return json.loads(await reader.readexactly(length))


def test_a_load_on_a_server_counts_tokens_by_its_usage() -> None:
    seen: list[dict[str, object]] = []
    at_once, most = 0, 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal at_once, most
        seen.append(await request_of(reader))
        at_once, most = at_once + 1, max(most, at_once + 1)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for piece in ("a", "", "b"):
            await asyncio.sleep(0.01)
            writer.write(f"data: {json.dumps({'choices': [{'text': piece}]})}\n\n".encode())
            await writer.drain()
        usage = {"choices": [], "usage": {"completion_tokens": 5}}
        writer.write(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
        at_once -= 1
        writer.close()

    load = Load(7, 5, 6, concurrency=2)
    answered = sent_to(answer, load)
    assert [a.error for a in answered] == [None] * 6
    assert [a.n_tokens for a in answered] == [5] * 6
    assert all(9 <= a.ttft_ms < 5000 for a in answered)
    assert most == 2
    assert sorted(map(str, (s["prompt"] for s in seen))) == sorted(map(str, load.prompts(50)))
    assert all(s["max_tokens"] == 5 and s["ignore_eos"] and s["stream"] for s in seen)


def test_errors_and_wrong_lengths_are_failures() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy")
        writer.close()

    assert [a.error for a in sent_to(refuse, Load(3, 2, 2, concurrency=2))] == ["HTTP 503: busy"] * 2

    async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        writer.write(
            b'data: {"choices": [{"text": "x"}]}\n\ndata: {"choices": [], "usage": {"completion_tokens": 1}}\n\n'
        )
        writer.close()

    assert [a.error for a in sent_to(short, Load(3, 2, 1, concurrency=1))] == ["asked for 2 tokens, got 1"]
