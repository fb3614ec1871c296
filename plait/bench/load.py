"""Load on a server or an engine: what is sent, when each piece of each answer came, and the figures made of that.

Times are of the client: `ttft_ms` from sending a request to its first token, `itl_ms` between tokens that follow.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Load:
    """Requests of `prompt_tokens` random tokens, each answered by exactly `new_tokens`.

    Either `concurrency` requests are always under way, or they arrive at random times, `rate` a second in the mean
    (a Poisson process). The first `shared_tokens` of all prompts are the same. Raises ValueError for an impossible one.
    """

    prompt_tokens: int
    new_tokens: int
    n_requests: int
    concurrency: int | None = None
    rate: float | None = None
    shared_tokens: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "n_requests"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError(f"give either concurrency or rate, not concurrency={self.concurrency}, rate={self.rate}")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency} must be at least 1")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate={self.rate} must be above 0")
        if not 0 <= self.shared_tokens <= self.prompt_tokens:
            raise ValueError(f"shared_tokens={self.shared_tokens} must be between 0 and {self.prompt_tokens}")

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Token ids, the same for a seed; ids under 16 are left out, since some of them are control tokens."""
        draws = random.Random(self.seed)
        low = min(16, vocab_size - 1)
        shared = [draws.randrange(low, vocab_size) for _ in range(self.shared_tokens)]
        own = self.prompt_tokens - self.shared_tokens
        return [shared + [draws.randrange(low, vocab_size) for _ in range(own)] for _ in range(self.n_requests)]

    def starts(self) -> list[float] | None:
        """Seconds after the beginning at which each request is sent; None if concurrency decides."""
        if self.rate is None:
            return None
        draws, now, starts = random.Random(self.seed + 1), 0.0, []
        for _ in range(self.n_requests):
            starts.append(now)
            now += draws.expovariate(self.rate)
        return starts


@dataclass
class Answered:
    """One request as its client saw it; times are of time.perf_counter."""

    sent: float
    pieces: list[tuple[float, int]] = field(default_factory=list)  # when, and how many tokens came
    error: str | None = None

    @property
    def n_tokens(self) -> int:
        return sum(n for _, n in self.pieces)

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.pieces[0][0] - self.sent)

    @property
    def itl_ms(self) -> list[float]:
        """One value a token after the first piece; tokens that came together share their time."""
        gaps = []
        for (before, _), (now, n) in zip(self.pieces, self.pieces[1:], strict=False):
            gaps += [1e3 * (now - before) / n] * n
        return gaps


@dataclass(frozen=True)
class Figures:
    """What a load came to. Rates are over the time from the first request sent to the last token received."""

    n_requests: int
    n_failed: int
    seconds: float
    requests_per_s: float
    prompt_tokens_per_s: float
    new_tokens_per_s: float
    decode_tokens_per_s: float | None  # of all requests at once, at the median time between tokens
    ttft_ms: dict[str, float]  # p50, p90, p99, max
    itl_ms: dict[str, float]
    first_error: str | None = None


def figures(load: Load, answered: Sequence[Answered]) -> Figures:
    """Raises ValueError if not one request was answered, with the first error."""
    good = [a for a in answered if a.error is None and a.pieces]
    failed = [a for a in answered if a.error is not None or not a.pieces]
    first_error = failed[0].error or "an answer without tokens" if failed else None
    if not good:
        raise ValueError(f"none of {len(answered)} requests was answered; the first failed with: {first_error}")
    begin, end = min(a.sent for a in good), max(a.pieces[-1][0] for a in good)
    seconds = end - begin
    gaps = [gap for a in good for gap in a.itl_ms]
    n_at_once = None if load.concurrency is None else min(load.concurrency, load.n_requests)
    return Figures(
        n_requests=len(answered),
        n_failed=len(failed),
        seconds=seconds,
        requests_per_s=len(good) / seconds,
        prompt_tokens_per_s=len(good) * load.prompt_tokens / seconds,
        new_tokens_per_s=sum(a.n_tokens for a in good) / seconds,
        decode_tokens_per_s=1e3 * n_at_once / statistics.median(gaps) if gaps and n_at_once else None,
        ttft_ms=_spread([a.ttft_ms for a in good]),
        itl_ms=_spread(gaps),
        first_error=first_error,
    )


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    if len(values) == 1:
        return {f"p{p}": values[0] for p in PERCENTILES} | {"max": values[0]}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{p}": cuts[p - 1] for p in PERCENTILES} | {"max": max(values)}


async def load_url(
    url: str,
    model: str,
    load: Load,
    *,
    vocab_size: int,
    api_key: str | None = None,
    timeout: float = 600.0,
    done: Callable[[int], None] = lambda _: None,
) -> list[Answered]:
    """Send a load to an OpenAI-compatible server as streamed completions of token ids that ignore end tokens.

    `url` ends before /v1 or with it. `done` is told how many requests have ended. What fails is in the result, never
    raised.
    """
    url = url.rstrip("/").removesuffix("/v1") + "/v1"
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    prompts, starts = load.prompts(vocab_size), load.starts()
    turns = asyncio.Semaphore(load.concurrency or load.n_requests)
    begin = time.perf_counter()
    n_done = 0
    async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, trust_env=False) as client:

        async def one(i: int) -> Answered:
            nonlocal n_done
            if starts is not None:
                await asyncio.sleep(max(0.0, begin + starts[i] - time.perf_counter()))
            async with turns:
                answered = await _answered(client, url, model, prompts[i], load.new_tokens)
            n_done += 1
            done(n_done)
            return answered

        return list(await asyncio.gather(*(one(i) for i in range(load.n_requests))))


async def _answered(client: httpx.AsyncClient, url: str, model: str, prompt: list[int], new_tokens: int) -> Answered:
    body = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True,
            "ignore_eos": True, "stream_options": {"include_usage": True}}  # fmt: skip
    answered = Answered(time.perf_counter())
    try:
        async with client.stream("POST", url + "/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                answered.error = f"HTTP {response.status_code}: {text[:300]}"
                return answered
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    _note(answered, json.loads(line[6:]), new_tokens)
    except (httpx.HTTPError, ValueError) as error:
        answered.error = f"{type(error).__name__}: {error}"
    return answered


def _note(answered: Answered, event: dict[str, object], new_tokens: int) -> None:
    if error := event.get("error"):
        answered.error = str(error)
    usage = event.get("usage")
    if event.get("choices"):
        answered.pieces.append((time.perf_counter(), 1))
    elif isinstance(usage, dict) and answered.pieces:  # pieces may hold several tokens, or a part of a character
        extra = int(usage["completion_tokens"]) - answered.n_tokens
        when, n = answered.pieces[-1]
        answered.pieces[-1] = (when, n + extra)
        if usage["completion_tokens"] != new_tokens:
            answered.error = f"asked for {new_tokens} tokens, got {usage['completion_tokens']}"
