"""What the HTTP layer alone costs: requests a second, and the time to a stream's first byte, the engine stubbed.

    python benchmarks/serve_http.py [--seconds 5] [--connections 64] [--loop uvloop] [--http httptools] [--json]

The server is one process bound to two cores; the client, a plain socket loop in this process, is bound to the others
if there are any. The stub answers at once with one piece, so everything measured is the layer's own: reading and
checking the body, the queue, the answer object, metrics, and a log line a request (written to /dev/null).
Beside requests a second it gives the server's CPU time per request, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

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
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    import plait
    from plait.config import presets
    from plait.serve.http import slow_clients
    from plait.serve.http.logs import log_json_lines
    from plait.serve.http.run import uvicorn_config
    from plait.serve.http.server import Server
    from plait.serve.http.settings import ServerSettings
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
    config = uvicorn_config(Server(Stub(), ServerSettings(port=port)))
    config.loop = loop
    uvicorn.Server(config).run()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes) -> float:
    """One request on an open connection; returns the seconds to the first byte."""
    began = time.perf_counter()
    writer.write(raw)
    head = await reader.readuntil(b"\r\n\r\n")
    first = time.perf_counter() - began
    assert head.startswith(b"HTTP/1.1 200"), head
    if b"content-length: " in head:
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    else:
        while await reader.readline() != b"0\r\n":
            pass
        await reader.readline()
    return first


def raw_request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def load(port: int, body: dict[str, Any], connections: int, seconds: float) -> int:
    """How many requests were answered in `seconds` over so many connections."""
    raw, end, n_done = raw_request(body), time.perf_counter() + seconds, 0

    async def client() -> None:
        nonlocal n_done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            await ask(reader, writer, raw)
            n_done += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return n_done


async def first_bytes(port: int, body: dict[str, Any], n: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = [await ask(reader, writer, raw_request(body)) for _ in range(n + 50)]
    writer.close()
    return found[50:]


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, pid: int, args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"loop": args.loop, "http": args.http, "connections": args.connections}
    asyncio.run(load(port, CHAT, args.connections, 1.0))
    for name, body in (("whole", CHAT), ("streamed", CHAT | {"stream": True})):
        rates, costs = [], []
        for _ in range(args.repeats):
            before, began = cpu_s(pid), time.perf_counter()
            n = asyncio.run(load(port, body, args.connections, args.seconds))
            rates.append(n / (time.perf_counter() - began))
            costs.append(1e6 * (cpu_s(pid) - before) / n)
        found[name] = {
            "requests_per_s": round(statistics.median(rates)),
            "least_and_most": [round(min(rates)), round(max(rates))],
            "server_cpu_us_per_request": round(statistics.median(costs)),
        }
    times = sorted(asyncio.run(first_bytes(port, CHAT | {"stream": True}, 1000)))
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
                asyncio.run(first_bytes(args.port, CHAT, 1))
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
