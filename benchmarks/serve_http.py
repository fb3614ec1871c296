"""What the HTTP layer alone costs: requests a second, and the time to a stream's first byte, the engine stubbed.

    python benchmarks/serve_http.py [--seconds 5] [--connections 64] [--loop uvloop] [--http httptools] [--json]

The server is one process bound to two cores; the client, this process on bare protocols, is bound to the others
if there are any. The stub answers at once with one piece, so everything measured is the layer's own: reading and
checking the body, the queue, the answer object, metrics, and a log line a request (written to /dev/null).
Beside requests a second it gives the server's CPU time per request, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
CHAT = {
    "model": "demo",
    "messages": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Tell me how the tide knows when to turn. " * 4},
    ],
    "max_tokens": 64,
    "temperature": 0.7,
}


def serve(port: int, loop: str, http: str) -> None:
    """The server's side, in its own process."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    import plait
    from plait.config import presets
    from plait.serve.http import ServerSettings, log_json_lines, slow_clients
    from plait.serve.http import serve as serve_http
    from plait.serve.service import Delta, EngineStats
    from plait.text import ChatTemplate, Tokenizer

    folder = Path(plait.__file__).parent / "demo"

    class Stub:
        name, config, max_context = "demo", presets["jamba-1.5-mini"], 4096
        tokenizer, chat_template = Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder)

        async def answers(self, request: Any, **_: Any) -> AsyncGenerator[Delta, None]:
            yield Delta(0, " The moon pulls, and the water follows.", (5, 6, 7, 8, 9, 10, 11, 2), None, "stop", 64)

        async def stats(self) -> EngineStats:
            return EngineStats()

        async def is_ready(self) -> bool:
            return True

        async def embed(self, token_ids: list[int]) -> list[float]:
            return [0.0]

    if http == "h11":
        slow_clients.AutoHTTPProtocol = H11Protocol
    log_json_lines()
    run(serve_http(Stub(), ServerSettings(port=port)), loop)


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it was answered, until `may_ask` says no. As little as a client can do:
    it shares the machine with what it measures.
    """

    def __init__(self, raw: bytes, may_ask: Callable[[], bool]) -> None:
        self.raw, self.may_ask = raw, may_ask
        self.first_s: list[float] = []  # of each answer: until its first byte
        self.over = asyncio.get_running_loop().create_future()
        self._got = b""
        self._began = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        if not self.may_ask():
            self._transport.close()
            self.over.set_result(None)
            return
        self._got, self._began = b"", time.perf_counter()
        self._transport.write(self.raw)

    def data_received(self, data: bytes) -> None:
        if not self._got:
            self.first_s.append(time.perf_counter() - self._began)
        self._got += data
        head, _, body = self._got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), self._got
        _, found, length = head.partition(b"content-length: ")
        if len(body) == int(length.partition(b"\r\n")[0]) if found else body.endswith(b"0\r\n\r\n"):
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(error or ConnectionError("the server closed the connection"))


def raw_request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def load(port: int, body: dict[str, Any], connections: int, seconds: float) -> int:
    """How many requests were answered in `seconds` over so many connections."""
    end = time.perf_counter() + seconds
    clients = await asyncio.gather(
        *(connect(port, body, lambda: time.perf_counter() < end) for _ in range(connections))
    )
    await asyncio.gather(*(client.over for client in clients))
    return sum(len(client.first_s) for client in clients)


async def connect(port: int, body: dict[str, Any], may_ask: Callable[[], bool]) -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(raw_request(body), may_ask), "127.0.0.1", port)
    return client


async def first_bytes(port: int, body: dict[str, Any], n: int) -> list[float]:
    left = itertools.count(n + 50, -1)
    client = await connect(port, body, lambda: next(left) > 0)
    await client.over
    return client.first_s[50:]


def run(work: Coroutine[Any, Any, T], loop: str) -> T:
    factory = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, pid: int, args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"loop": args.loop, "http": args.http, "connections": args.connections}
    run(load(port, CHAT, args.connections, 1.0), args.loop)
    for name, body in (("whole", CHAT), ("streamed", CHAT | {"stream": True})):
        rates, costs = [], []
        for _ in range(args.repeats):
            before, began = cpu_s(pid), time.perf_counter()
            n = run(load(port, body, args.connections, args.seconds), args.loop)
            rates.append(n / (time.perf_counter() - began))
            costs.append(1e6 * (cpu_s(pid) - before) / n)
        found[name] = {
            "requests_per_s": round(statistics.median(rates)),
            "least_and_most": [round(min(rates)), round(max(rates))],
            "server_cpu_us_per_request": round(statistics.median(costs)),
        }
    times = sorted(run(first_bytes(port, CHAT | {"stream": True}, 1000), args.loop))
    found["first_byte_ms"] = {"median": round(1e3 * times[500], 3), "p99": round(1e3 * times[990], 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--http", choices=("h11", "httptools"), default="httptools")
    parser.add_argument("--port", type=int, default=8899)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.port, args.loop, args.http)
        return
    cores = sorted(os.sched_getaffinity(0))
    with open(os.devnull, "w") as nowhere:
        command = [sys.executable, __file__, "--serve", "--port", str(args.port), "--loop", args.loop]
        command += ["--http", args.http]
        child = subprocess.Popen(command, stderr=nowhere)
    try:
        os.sched_setaffinity(child.pid, cores[:2])
        os.sched_setaffinity(0, cores[2:] or cores)
        for _ in range(600):
            time.sleep(0.1)
            try:
                run(first_bytes(args.port, CHAT, 1), args.loop)
                break
            except OSError:
                continue
        found = measure(args.port, child.pid, args)
        print(json.dumps(found | {"server_cores": cores[:2], "client_cores": cores[2:] or cores}, indent=2))
    finally:
        child.terminate()
        child.wait()


if __name__ == "__main__":
    main()
