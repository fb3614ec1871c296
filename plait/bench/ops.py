"""`plait bench ops`: each implementation of each op on the shapes of real models, beside the floor the device sets.

An implementation is timed only after it passed its small cases on this device in this dtype. Times are medians after
warm-up, on a GPU between two events on the stream, so with the gaps that the host leaves. The floor is the larger of
the bytes that must move over the bandwidth of a copy and the operations over the rate of a large matrix product, both
measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from plait.ops.case import Case, Cost, Inputs, OpCases, all_op_cases
from plait.ops.dispatch import force

CPU_BYTES = 1 << 29  # of a case's inputs as they are made: larger ones are for GPUs
SECONDS, REPEATS = 0.5, 50  # an implementation is repeated until either is reached


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
    for ops in all_op_cases():
        if only and ops.op not in only:
            continue
        for name in _implementations(ops, device, dtype, with_reference):
            failure = _failure(ops, name, device, dtype)
            for case in ops.cases:
                if not case.large or _is_for_gpus(case, device):
                    continue
                if failure is not None:
                    yield Row(ops.op, case.name, name, None, note=f"not timed: {failure}")
                else:
                    yield _timed(ops, case, name, device, dtype, ceilings)


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


def _failure(ops: OpCases, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The first small case on which the implementation is wrong, or None."""
    if dtype not in ops.tolerance:
        return f"no tolerance is stated for {dtype}"
    for case in ops.cases:
        if case.large:
            continue
        for what, error in ops.errors(name, case, device, dtype).items():
            limit = (ops.grad_tolerance if what.startswith("grad_") else ops.tolerance)[dtype]
            if not error <= limit:
                return f"{what} of {case.name!r} is off by {error:.1e}, allowed {limit:.0e}"
    return None


def _input_bytes(case: Case) -> float:
    """Bytes of a case's inputs as they are made, without making them; infinite if that can't be told."""
    try:
        with FakeTensorMode():
            made = case.inputs(torch.Generator())
    except Exception:  # whatever a case does that fakes can't follow: then it is taken for too large
        return float("inf")
    return sum(t.numel() * t.element_size() for t in made.values() if isinstance(t, torch.Tensor))


def _timed(
    ops: OpCases, case: Case, name: str, device: torch.device, dtype: torch.dtype, ceilings: tuple[float, float]
) -> Row:
    inputs = ops.cast(case.inputs(torch.Generator().manual_seed(0)), device, dtype)
    cost = case.cost(inputs) if case.cost is not None else Cost()
    with torch.no_grad(), force(**{ops.op: name}):
        times = sorted(_times(lambda: _call(ops, inputs), device))
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
    )


def _call(ops: OpCases, inputs: Inputs) -> None:
    ops.call(**inputs)


def _times(run: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each repeat, after one that warms up; something slow is repeated once only."""
    at_least = 1 if _once(run, device) > SECONDS else 3
    times: list[float] = []
    while len(times) < at_least or (sum(times) < SECONDS and len(times) < REPEATS):
        times.append(_once(run, device))
    return times


def _once(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
