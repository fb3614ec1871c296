"""`plait bench ops`: each implementation of each op on the shapes of real models, beside the floor the device sets.

An implementation is timed only after it passed its small cases on this device in this dtype; so is a rival
(`rivals.py`), of those it can take. Times are medians after warm-up, of the forward. On a GPU they lie between two
events on the stream; the L2 cache is written over before, and the stream held up until the host has launched, so what
the host needs shows only where an implementation waits for the device or launches for longer than LEAD. The floor is
the larger of the bytes that must move over the bandwidth of a copy and the operations over the rate of a large matrix
product, both measured in the same run.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from plait.bench.rivals import Rival, rivals_of
from plait.ops.case import Case, Cost, Inputs, OpCases, all_op_cases, error_of
from plait.ops.dispatch import force

CPU_BYTES = 1 << 29  # of a case's inputs as they are made: larger ones are for GPUs
SECONDS, REPEATS = {"cpu": 0.5, "cuda": 0.1}, 50  # an implementation is repeated until either is reached
LEAD = 1_000_000  # cycles of a GPU, about 0.6 ms
L2_BYTES = 1 << 28  # more than any


@dataclass(frozen=True)
class Row:
    op: str
    case: str
    implementation: str
    ms: float | None  # None: not timed, and `note` says why
    spread_ms: float | None = None  # between the 10th and the 90th percentile
    gb_per_s: float | None = None
    gflop_per_s: float | None = None
    floor_share: float | None = None  # the floor's time over the time
    flops_per_byte: float | None = None
    note: str = ""


def bench_ops(
    device: torch.device, dtype: torch.dtype, *, only: Collection[str] = (), with_reference: bool = False
) -> Iterator[Row]:
    """A row for each op (all, or `only` those named), large case and implementation that can run here."""
    ceilings = copy_bandwidth(device), product_rate(device, dtype)
    lists = [(i, ops) for i, ops in enumerate(all_op_cases()) if not only or ops.op in only]
    able = {i: _implementations(ops, device, dtype, with_reference) for i, ops in lists}
    found = _failures([(i, name) for i, _ in lists for name in able[i]], device, dtype)
    for i, ops in lists:
        large = [case for case in ops.cases if case.large and not _is_for_gpus(case, device)]
        names = able[i]
        rivals = {rival.name: rival for rival in rivals_of(ops)}
        failures = {name: found[i, name] for name in names}
        failures |= {name: _rival_failure(rival, device, dtype) for name, rival in rivals.items()} if large else {}
        for case in large:
            inputs = made(ops, case, device, dtype)
            for name in (*names, *rivals):
                if (failure := failures[name]) is not None:
                    yield Row(ops.op, case.name, name, None, note=f"not timed: {failure}")
                elif name in names and not ops.takes(name, case, dtype):
                    continue
                elif (row := _row(ops, case, name, rivals, inputs, device, ceilings)) is not None:
                    yield row


def left_out(device: torch.device, only: Collection[str] = ()) -> list[str]:
    """The large cases that are not timed on this device, because their inputs are for GPUs."""
    return [
        f"{ops.op}, {case.name}"
        for ops in all_op_cases()
        if not only or ops.op in only
        for case in ops.cases
        if case.large and _is_for_gpus(case, device)
    ]


def _is_for_gpus(case: Case, device: torch.device) -> bool:
    return device.type == "cpu" and _input_bytes(case) > CPU_BYTES


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy, read and written bytes both counted."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(_times(lambda: target.copy_(source), device))


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / statistics.median(_times(lambda: a @ b, device))


def _implementations(ops: OpCases, device: torch.device, dtype: torch.dtype, with_reference: bool) -> list[str]:
    probe = torch.empty(0, dtype=dtype, device=device)
    able = [name for name, implementation in ops.implementations.items() if implementation.why_not(probe) is None]
    return able if with_reference else [name for name in able if name != "reference"]


def _failures(
    jobs: list[tuple[int, str]], device: torch.device, dtype: torch.dtype
) -> dict[tuple[int, str], str | None]:
    """For each (number of a list of cases, implementation). On a GPU in several processes: what takes time is to
    compile each kernel for each small case, and what they compile stays on the disk.
    """
    if device.type == "cpu":
        everything = all_op_cases()
        return {(i, name): _failure(everything[i], name, device, dtype) for i, name in jobs}
    n_processes = max(1, min(16, len(os.sched_getaffinity(0)) - 1))
    with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
        return dict(zip(jobs, pool.map(partial(_numbered_failure, device=device, dtype=dtype), jobs), strict=True))


def _numbered_failure(job: tuple[int, str], device: torch.device, dtype: torch.dtype) -> str | None:
    return _failure(all_op_cases()[job[0]], job[1], device, dtype)


def _failure(ops: OpCases, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The first small case on which the implementation is wrong, or None."""
    if dtype not in ops.tolerance:
        return f"no tolerance is stated for {dtype}"
    for case in ops.cases:
        if case.large or not ops.takes(name, case, dtype):
            continue
        for what, error in ops.errors(name, replace(case, grads=()), device, dtype).items():
            if not error <= ops.tolerance[dtype]:
                return f"{what} of {case.name!r} is off by {error:.1e}, allowed {ops.tolerance[dtype]:.0e}"
    return None


def made(ops: OpCases, case: Case, device: torch.device, dtype: torch.dtype) -> Inputs:
    """A case's inputs, drawn on the device itself: real sizes take minutes on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with device:
        return ops.cast(case.inputs(torch.Generator(device).manual_seed(0)), device, dtype)


def _rival_failure(rival: Rival, device: torch.device, dtype: torch.dtype) -> str | None:
    taken = 0
    for case in rival.ops.cases:
        if case.large or dtype not in rival.ops.tolerance:
            continue
        inputs = made(rival.ops, case, device, dtype)
        try:
            with torch.no_grad():
                if (run := rival.build(inputs, False)) is None:
                    continue
                outputs = run()
        except Exception:  # whatever a foreign kernel raises for a size or a type it does not take
            continue
        wide = rival.ops.cast(rival.ops.cast(inputs, "cpu", dtype), "cpu", torch.float64)
        expected = rival.ops.run("reference", wide)
        for (what, reference), got in zip(expected.items(), outputs, strict=False):
            if not (error := error_of(got, reference)) <= rival.ops.tolerance[dtype]:
                return f"{what} of {case.name!r} is off by {error:.1e}, allowed {rival.ops.tolerance[dtype]:.0e}"
        taken += 1
    return None if taken else "it took none of the small cases, so nothing says that it is right"


def _input_bytes(case: Case) -> float:
    """Bytes of a case's inputs as they are made, without making them; infinite if that can't be told."""
    try:
        with FakeTensorMode():
            made = case.inputs(torch.Generator())
    except Exception:  # whatever a case does that fakes can't follow: then it is taken for too large
        return float("inf")
    return sum(t.numel() * t.element_size() for t in made.values() if isinstance(t, torch.Tensor))


def _row(
    ops: OpCases, case: Case, name: str, rivals: Mapping[str, Rival], inputs: Inputs, device: torch.device,
    ceilings: tuple[float, float],
) -> Row | None:  # fmt: skip
    """None: a rival that can't take these inputs."""
    cost = case.cost(inputs) if case.cost is not None else Cost()
    try:
        with torch.no_grad():
            if name in rivals:
                if (run := rivals[name].build(inputs, True)) is None:
                    return None
                times = sorted(_times(run, device))
            else:
                with force(**{ops.op: name}):
                    times = sorted(_times(lambda: ops.call(**inputs), device))
    except torch.OutOfMemoryError:
        return Row(ops.op, case.name, name, None, note="not timed: it needs more memory than there is")
    except Exception as error:
        if name not in rivals:
            raise
        return Row(ops.op, case.name, name, None, note=f"not timed: {type(error).__name__}: {error}"[:200])
    median = statistics.median(times)
    floor = max(cost.bytes / ceilings[0], cost.flops / ceilings[1])
    return Row(
        ops.op,
        case.name,
        name,
        ms=median * 1e3,
        spread_ms=(times[int(0.9 * (len(times) - 1))] - times[int(0.1 * (len(times) - 1))]) * 1e3,
        gb_per_s=cost.bytes / median / 1e9 or None,
        gflop_per_s=cost.flops / median / 1e9 or None,
        floor_share=floor / median or None,
        flops_per_byte=cost.flops / cost.bytes if cost.bytes and cost.flops else None,
        note=rivals[name].note if name in rivals else "",
    )


def _times(run: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each repeat, after one that warms up; something slow is repeated once only."""
    seconds = SECONDS[device.type]
    at_least = 1 if _once(run, device) > seconds else 3
    times: list[float] = []
    while len(times) < at_least or (sum(times) < seconds and len(times) < REPEATS):
        times.append(_once(run, device))
    return times


@functools.cache
def _l2_filler(device: torch.device) -> torch.Tensor:
    return torch.empty(L2_BYTES, dtype=torch.uint8, device=device)


def _once(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        _l2_filler(device).zero_()
        torch.cuda._sleep(LEAD)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
