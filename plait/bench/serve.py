"""`plait bench serve`: an engine in this process, or any OpenAI-compatible server, at batch sizes and contexts.

Every point has its floor: the bytes a decode step must read over this device's bandwidth, and the operations of a
prompt over its peak, both measured in the same run. Prompts are random tokens, so nothing is found in a cache.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plait.accounting import prefill_flops
from plait.bench.load import Answered, Figures, Load, figures, load_url
from plait.bench.ops import _times, copy_bandwidth
from plait.bench.step_bytes import step_bytes
from plait.config import ModelConfig
from plait.model import quantization_config
from plait.model.quantized import DTYPES
from plait.serve.request import Request
from plait.text import SamplingParams

if TYPE_CHECKING:
    from plait.model.network import LanguageModel
    from plait.serve.engine import Engine
    from plait.serve.remote import RemoteEngine


AT_ONCE = 32
"""Answers that an engine of this process writes at once where a rate decides how many there are."""


@dataclass(frozen=True)
class Machine:
    """What the device gives, measured: bytes a second of a copy, operations a second of a large matrix product."""

    bandwidth: float
    flops: float

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        n = 8192 if device.type == "cuda" else 1024
        a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
        return cls(copy_bandwidth(device), 2 * n**3 / statistics.median(_times(lambda: a @ b, device)))


@dataclass(frozen=True)
class Point:
    """One load and what came of it. Shares are of the floor: 1 would be as fast as the device allows."""

    load: Load
    figures: Figures
    prefill_share: float | None = None
    decode_share: float | None = None
    peak_bytes: int | None = None  # of device memory; of the process on a CPU
    planning_share: float | None = None  # of a step's time, that planning and bookkeeping take


def bench_engine(engine: Engine | RemoteEngine, load: Load, vocab_size: int) -> list[Answered]:
    """Run a load through an engine that this process steps. A request of a load with a rate counts as sent when it is
    due, also where a step is then under way.
    """
    params = SamplingParams(temperature=0, max_tokens=load.new_tokens, ignore_eos=True)
    starts = load.starts()
    waiting = deque(zip(starts or [0.0] * load.n_requests, load.prompts(vocab_size), strict=True))
    most = load.concurrency or load.n_requests
    under_way: dict[int, Answered] = {}
    ended: list[Answered] = []
    begin = time.perf_counter()
    while waiting or under_way:
        now = time.perf_counter()
        while waiting and len(under_way) < most and begin + waiting[0][0] <= now:
            start, prompt = waiting.popleft()
            sent = time.perf_counter() if starts is None else begin + start
            under_way[engine.add(Request(tuple(prompt), params, is_private=True))] = Answered(sent)
        if not under_way:
            time.sleep(begin + waiting[0][0] - now)
            continue
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            answered = under_way[output.request]
            if output.token_ids:
                answered.pieces.append((now, len(output.token_ids)))
            answered.error = output.error
            if output.finish_reason is not None:
                ended.append(under_way.pop(output.request))
    return ended


def bench_points(
    engine: Engine, model: LanguageModel, loads: Sequence[Load], *, machine: Machine, device: torch.device
) -> Iterator[Point]:
    """A point for each load of the engine that runs the model, each after a short run of the same shape that warms
    up.
    """
    config = model.config
    for load in loads:
        _warm_up(engine, load, config.vocab_size)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clock = PlanningClock(engine)
        result = figures(load, bench_engine(engine, load, config.vocab_size))
        clock.stop()
        yield Point(
            load,
            result,
            prefill_share=_prefill_share(config, load, result, machine),
            decode_share=_decode_share(model, load, result, machine),
            peak_bytes=_peak_bytes(device),
            planning_share=clock.share,
        )


def bench_shared(engine: RemoteEngine, loads: Sequence[Load], vocab_size: int) -> Iterator[Point]:
    """A point for each load of an engine in other processes, which share the model: times only."""
    for load in loads:
        _warm_up(engine, load, vocab_size)
        yield Point(load, figures(load, bench_engine(engine, load, vocab_size)))


def _warm_up(engine: Engine | RemoteEngine, load: Load, vocab_size: int) -> None:
    n_warm = min(load.n_requests, load.concurrency or AT_ONCE)
    warm = replace(load, n_requests=n_warm, new_tokens=min(4, load.new_tokens), seed=-1, concurrency=n_warm, rate=None)
    bench_engine(engine, warm, vocab_size)


def weights_of(model: LanguageModel) -> str:
    """How a model's weights are kept: the dtype, or format and level as accounting calls them (int8_experts_mlp)."""
    level = quantization_config.level_of(model)
    if level is None:
        return str(model.dtype).removeprefix("torch.")
    values = next(m.values for m in quantization_config.matrices(model) if m.scale is not None)
    kinds = {dtype: kind for kind, dtype in DTYPES.items()} | {torch.uint8: "int8"}  # uint8: laid out for a kernel
    head = model.embed if model.head is None else model.head
    parts = (kinds[values.dtype], *level.split("+"), *(["head"] if head.weight_scale is not None else []))
    return "_".join(parts)


class PlanningClock:
    """Times an engine's planning and commits, beside its steps as a whole."""

    def __init__(self, engine: Engine) -> None:
        self.share = 0.0
        self._busy, self._begin = 0.0, time.perf_counter()
        self._originals: list[tuple[Any, str]] = []
        for owner, name in ((engine.scheduler, "plan"), (engine, "_commit")):
            self._originals.append((owner, name))
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **named)
            finally:
                self._busy += time.perf_counter() - begin

        return run

    def stop(self) -> None:
        self.share = self._busy / (time.perf_counter() - self._begin)
        for owner, name in self._originals:
            delattr(owner, name)


def _prefill_share(config: ModelConfig, load: Load, result: Figures, machine: Machine) -> float | None:
    """Of the first answer of a batch: only then nothing but prompts has run. One request at a time: of the median."""
    if load.concurrency != 1:
        return None
    return (
        prefill_flops(config, load.prompt_tokens) * load.prompt_tokens / machine.flops / (result.ttft_ms["p50"] / 1e3)
    )


def _decode_share(model: LanguageModel, load: Load, result: Figures, machine: Machine) -> float | None:
    if not result.decode_tokens_per_s or load.concurrency is None:
        return None
    batch = min(load.concurrency, load.n_requests)
    context = load.prompt_tokens + load.new_tokens // 2
    floor = step_bytes(model, context, batch) / machine.bandwidth
    return floor * result.decode_tokens_per_s / batch


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bench_server(
    url: str, model: str, loads: Sequence[Load], *, vocab_size: int, api_key: str | None = None
) -> Iterator[Point]:
    """A point for each load on a server."""
    for load in loads:
        answered = asyncio.run(load_url(url, model, load, vocab_size=vocab_size, api_key=api_key))
        yield Point(load, figures(load, answered))


def as_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [asdict(point) for point in points]


def plot(points: Sequence[Point], path: Path, title: str) -> None:
    """Tokens a second and latencies over concurrency (or rate), a line for each context, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = (
        ("new tokens per second", lambda p: p.figures.decode_tokens_per_s or p.figures.new_tokens_per_s),
        ("time to first token, ms (median)", lambda p: p.figures.ttft_ms["p50"]),
        ("between tokens, ms (median, to p99)", lambda p: p.figures.itl_ms.get("p50", math.nan)),
    )
    by_context: dict[int, list[Point]] = {}
    for point in points:
        by_context.setdefault(point.load.prompt_tokens, []).append(point)
    for ax, (label, value) in zip(axes, panels, strict=True):
        for context, series in by_context.items():
            xs = [p.load.concurrency or p.load.rate for p in series]
            ax.plot(xs, [value(p) for p in series], marker="o", label=f"{context:,} tokens in")
            if "p99" in label:
                tops = [p.figures.itl_ms.get("p99", math.nan) for p in series]
                ax.fill_between(xs, [value(p) for p in series], tops, alpha=0.15)
        ax.set_xlabel("requests at once" if points[0].load.concurrency else "requests per second")
        ax.set_title(label, fontsize=10)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        if len(points) > 1 and points[0].load.concurrency:
            ax.set_xscale("log", base=2)
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format=path.suffix[1:] or "png", dpi=140)
    os.replace(unfinished, path)
