"""`plait bench ops --tune`: times the tiles worth trying on shapes of real models and keeps the best of each.

A candidate is compared with the setting that runs without a table, which the op's cases test, and is kept only if it is
right and faster by MARGIN. Kernels are compiled ahead, by several processes that share Triton's cache on disk: that is
nearly all of the time.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.bench.ops import _times
from plait.ops import tuned

log = logging.getLogger(__name__)

MARGIN = 0.01
NOTE = "Written by `plait bench ops --tune`; the A100's entries are guesses by shared memory, never run."
MINI, SHARD = (16, 2, 4096, 14336), (16, 2, 8192, 3072)  # experts, top_k, d_model, d_ff; a TP8 shard of Large
DENSE = (1, 1, 4096, 14336)


@dataclass(frozen=True)
class Job:
    """One entry of the table: what to run, and the settings worth trying, the first of which is the formula's."""

    op: str
    sizes: tuple[int, ...]
    tokens: int
    candidates: tuple[Any, ...]


@dataclass(frozen=True)
class Found:
    job: Job
    setting: Any
    us: float
    formula_us: float
    tried: int


def jobs() -> list[Job]:
    return [*_packed_jobs(), *_one_token_jobs(), *_rows_jobs(), *_linear_jobs(), *_decode_jobs()]


def tune(device: torch.device, path: Path = tuned.TABLE) -> Iterator[Found]:
    """Time everything, then merge what was found into the table at `path`."""
    todo = jobs()
    _compile_ahead(todo, device)
    found = []
    for job in todo:
        if (best := _best(job, device)) is not None:
            found.append(best)
            yield best
    write(found, device, path)


def write(found: list[Found], device: torch.device, path: Path) -> None:
    """Merge into the table. Raises ValueError for a device without a name."""
    name = " ".join(torch.cuda.get_device_name(device).split()[:2])  # NVIDIA H100, for all forms of it
    settings = json.loads(path.read_text())["settings"] if path.exists() else {}
    for one in found:
        own = settings.setdefault(name, {}).setdefault(one.job.op, {}).setdefault(tuned.key(*one.job.sizes), {})
        own[str(one.job.tokens)] = one.setting
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(_text({"note": NOTE, "settings": settings}))
    os.replace(unfinished, path)


def _text(data: dict[str, Any]) -> str:
    """JSON with one entry a line: a setting is not spread over lines."""
    lines = [f'{{"note": {json.dumps(data["note"])},', '"settings": {']
    for i, (device, ops) in enumerate(data["settings"].items()):
        entries = [
            f" {json.dumps(op)}: {{\n"
            + ",\n".join(f"  {json.dumps(sizes)}: {json.dumps(measured)}" for sizes, measured in shapes.items())
            + "}"
            for op, shapes in ops.items()
        ]
        comma = "," if i + 1 < len(data["settings"]) else ""
        lines.append(f"{json.dumps(device)}: {{\n" + ",\n".join(entries) + f"}}{comma}")
    return "\n".join([*lines, "}}"]) + "\n"


def _best(job: Job, device: torch.device) -> Found | None:
    torch.cuda.empty_cache()
    with torch.no_grad():
        run = _RUNS[job.op](job, device)
        expected = None
        times: dict[int, float] = {}
        for i, candidate in enumerate(job.candidates):
            try:
                got = run(candidate).float()
                expected = got if i == 0 else expected
                if expected is None or not (got - expected).norm() <= 1e-2 * expected.norm():
                    continue
                times[i] = statistics.median(_times(partial(run, candidate), device)) * 1e6
            except Exception as error:  # such as more shared memory than there is: no candidate for this device
                log.warning("%s %s at %s tokens, %s: %s", job.op, job.sizes, job.tokens, candidate, error)
    if 0 not in times:
        return None
    best = min(times, key=lambda i: times[i])
    if best != 0:  # once more: at the power limit the first that is timed looks slow
        again = {i: statistics.median(_times(partial(run, job.candidates[i]), device)) * 1e6 for i in (0, best)}
        faster = all(t[best] < (1 - MARGIN) * t[0] for t in (times, again))
        best = best if faster else 0
    return Found(job, job.candidates[best], times[best], times[0], len(times))


def _compile_ahead(todo: list[Job], device: torch.device) -> None:
    """Each distinct kernel once, in a process of its own, on as few tokens as need it. What fails here fails again
    where it is timed.
    """
    units = {(job.op, job.sizes, json.dumps(c)): (job, c) for job in todo for c in job.candidates}
    n_processes = max(1, min(16, len(os.sched_getaffinity(0)) - 1))
    with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_compile, *zip(*units.values(), strict=True), [device.index or 0] * len(units)))


def _compile(job: Job, candidate: Any, index: int) -> None:
    try:
        with torch.no_grad():
            _RUNS[job.op](job, torch.device("cuda", index), True)(candidate)
            torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:  # reported by its absence from what is timed
        return


# ---- what is tried --------------------------------------------------------------------------------------------------


def _packed_jobs() -> Iterator[Job]:
    from plait.ops.moe.gluon import Shape, shape_for, splits_for

    pool = [
        Shape(128, 8, 2, (9, 9), 1), Shape(256, 16, 2, (5, 4), 1), Shape(128, 16, 2, (8, 8), 1),
        Shape(256, 32, 1, (9, 8), 1), Shape(128, 32, 2, (6, 6), 1), Shape(128, 64, 2, (6, 5), 1),
        Shape(256, 64, 1, (8, 7), 1, 1), Shape(128, 128, 1, (8, 6), 4), Shape(256, 128, 1, (6, 5), 1),
        Shape(256, 128, 1, (6, 5), 4), Shape(256, 128, 1, (6, 5), 8), Shape(256, 128, 1, (6, 5), 16),
    ]  # fmt: skip
    counts = {
        MINI: (8, 64, 128, 192, 256, 384, 512, 1024, 2048, 8192), SHARD: (8, 64, 192, 256, 384, 512, 4096),
        DENSE: (8, 64, 256, 512),
    }  # fmt: skip
    for sizes, tokens in counts.items():
        n_experts, top_k, d_model, d_ff = sizes
        for n in tokens:
            mean = n * top_k / n_experts
            first = shape_for(n * top_k, n_experts)
            near = [s for s in pool if min(mean, 128) / 2 <= s.tokens <= max(8 * mean, 8) and s != first]
            if mean > 96:  # many rows: large tiles
                near = [s for s in near if s.tokens == 128]
            candidates = []
            for shape in (first, *near):
                own = splits_for(n * top_k, n_experts, d_model, d_ff, shape, 132)
                more = shape == first and mean <= 20
                tried = {own, *(s for s in (1, 2, 4) if more and d_ff % (256 * s) == 0)}
                candidates += [(*shape[:3], list(shape.stages), shape.group, s) for s in (own, *(tried - {own}))]
            yield Job("moe_packed", sizes, n, tuple(list(c) for c in candidates))


def _one_token_jobs() -> Iterator[Job]:
    from plait.ops.moe.gemv import tiles_for

    for _, top_k, d_model, d_ff in (MINI, SHARD, DENSE):
        first = tiles_for(top_k, d_ff)
        changed = [first._replace(gate_up=c) for c in ((4, 4), (8, 2), (8, 4), (8, 8), (16, 4), (16, 8), (32, 8))]
        changed += [first._replace(down=c) for c in ((8, 4), (16, 4), (16, 8), (32, 4), (32, 8), (64, 8))]
        tried = [first, *(tiles for tiles in changed if tiles != first)]
        yield Job("moe_one_token", (top_k, d_model, d_ff), 1, tuple([list(own) for own in tiles] for tiles in tried))


def _rows_jobs() -> Iterator[Job]:
    from plait.ops.moe.triton import Tiles, tiles

    pool = (
        Tiles(16, 32, 128, 1, 4, 4), Tiles(16, 64, 128, 1, 4, 3), Tiles(16, 32, 256, 1, 4, 3),
        Tiles(32, 64, 128, 1, 4, 3), Tiles(32, 64, 64, 1, 4, 4), Tiles(64, 64, 64, 4, 4, 4),
        Tiles(64, 128, 64, 1, 8, 3), Tiles(128, 128, 64, 8, 8, 3),
    )  # fmt: skip
    for n in (1, 8, 64, 256):
        first = tiles(n * 2, 16, False)
        near = [t for t in pool if t != first and (n / 16 <= t.rows <= max(16, n / 2))]
        yield Job("moe_rows_bfloat16", MINI, n, tuple(list(t) for t in (first, *near)))


def _linear_jobs() -> Iterator[Job]:
    pool = ([16, 64, 128, 4, 4], [16, 32, 256, 4, 4], [32, 64, 128, 4, 4], [64, 64, 64, 4, 4], [64, 128, 64, 4, 4],
            [128, 64, 64, 4, 4], [128, 128, 64, 8, 3], [128, 256, 64, 8, 3])  # fmt: skip
    for n_out, width in ((16384, 4096), (4096, 8192), (4096, 4096)):
        for n in (4, 16, 64, 512, 2048):
            first = pool[0] if n <= 16 else pool[3] if n <= 64 else pool[6]
            near = [t for t in pool if t != first and min(n, 128) / 4 <= t[0] <= max(2 * n, 16)]
            yield Job("linear_int8", (n_out, width), n, (first, *near))


def _decode_jobs() -> Iterator[Job]:
    first = [4, 64, 4, 3]
    others = ([2, 64, 4, 3], [8, 64, 4, 3], [4, 128, 4, 3], [4, 128, 8, 2], [4, 64, 4, 2], [4, 64, 4, 4], [4, 32, 4, 4])
    for n in (1, 16, 64):
        yield Job("attention_decode", (32, 8, 128), n, (first, *others))


# ---- how it is run --------------------------------------------------------------------------------------------------

Run = Callable[[Any], Tensor]
KEYS = {1: 65536, 16: 8192, 64: 4096}  # that a decode step of so many sequences reads, each


def _experts(sizes: tuple[int, ...], tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    n_experts, top_k, d_model, _ = sizes
    x = torch.randn(tokens, d_model, device=device, dtype=torch.bfloat16)
    weights, ids = torch.randn(tokens, n_experts, device=device).softmax(-1).topk(top_k, dim=-1)
    return x, weights, ids


def _packed_weights(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Any bytes are weights."""
    n_experts, _, d_model, d_ff = sizes
    made = [
        torch.randint(0, 256, (n_experts, rows // 64, width // 64, 4096), dtype=torch.uint8, device=device)
        for rows, width in ((2 * d_ff, d_model), (d_model, d_ff))
    ]
    scales = (torch.full((n_experts, 2 * d_ff), d_model**-0.5 / 73, device=device),
              torch.full((n_experts, d_model), d_ff**-0.5 / 73, device=device))  # fmt: skip
    return (*made, *scales)


def _run_packed(job: Job, device: torch.device, small: bool = False) -> Run:
    from plait.ops.moe import gluon

    dense = job.sizes[0] == 1
    few = (2, *job.sizes[1:]) if small and not dense else job.sizes
    x, weights, ids = _experts(few, min(job.tokens, 16) if small else job.tokens, device)
    stored = _packed_weights(few, device)
    routing = (None, None) if dense else (weights, ids)
    return lambda setting: gluon.moe(x, *routing, *stored, shape=gluon.Shape.of(setting))


def _run_one_token(job: Job, device: torch.device, small: bool = False) -> Run:
    from plait.ops.moe import gemv

    top_k, d_model, d_ff = job.sizes
    sizes = (top_k if small or top_k == 1 else 16, top_k, d_model, d_ff)
    x, weights, ids = _experts(sizes, 1, device)
    stored = _packed_weights(sizes, device)
    routing = (None, None) if top_k == 1 else (weights, ids)
    return lambda setting: gemv.moe(x, *routing, *stored, tiles=gemv.Tiles(*(tuple(own) for own in setting)))


def _run_rows(job: Job, device: torch.device, small: bool = False) -> Run:
    from plait.ops.moe import triton as kernels

    _, top_k, d_model, d_ff = job.sizes
    sizes = (2, top_k, d_model, d_ff) if small else job.sizes
    x, _, ids = _experts(sizes, min(job.tokens, 16) if small else job.tokens, device)
    gate_up = torch.randn(sizes[0], 2 * d_ff, d_model, device=device, dtype=torch.bfloat16) * d_model**-0.5
    down = torch.randn(sizes[0], d_model, d_ff, device=device, dtype=torch.bfloat16) * d_ff**-0.5
    return lambda setting: kernels.expert_outputs_by_entry(
        x, ids, gate_up, down, None, None, tile=kernels.Tiles(*setting)
    )


def _run_linear(job: Job, device: torch.device, small: bool = False) -> Run:
    from plait.ops.linear import triton as kernels

    n_out, width = job.sizes
    x = torch.randn(job.tokens, width, device=device, dtype=torch.bfloat16)
    weight = torch.randint(-127, 128, (n_out, width), device=device, dtype=torch.int8)
    scale = torch.full((n_out,), width**-0.5 / 73, device=device)
    return lambda setting: kernels._many_tokens_int8(x, weight, scale, tile=tuple(setting))


def _run_decode(job: Job, device: torch.device, small: bool = False) -> Run:
    from plait.ops.attention import triton as kernels

    n_heads, n_kv, d_head = job.sizes
    n_seqs, keys = job.tokens, KEYS[job.tokens]
    n_pages = n_seqs * keys // 16
    k, v = (torch.randn(n_pages, 16, n_kv, d_head, device=device, dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(n_seqs, n_heads, d_head, device=device, dtype=torch.bfloat16)
    pages = torch.randperm(n_pages, device=device).int().view(n_seqs, -1)
    bounds = torch.arange(n_seqs + 1, device=device, dtype=torch.int32)
    context = torch.full((n_seqs,), keys - 1, device=device, dtype=torch.int32)
    return lambda setting: kernels._launch(q, k, v, bounds, pages, context, cut=kernels.Cut(*setting))


_RUNS: dict[str, Callable[..., Run]] = {
    "moe_packed": _run_packed,
    "moe_one_token": _run_one_token,
    "moe_rows_bfloat16": _run_rows,
    "linear_int8": _run_linear,
    "attention_decode": _run_decode,
}
