"""Packed sequences, and chunks and decode rows over pages, through FlashInfer: where it is installed and asked for
(`PLAIT_OPS=attention=flashinfer`).

A decode row is a chunk of one query, so one kernel takes a whole step, and it reads the pages where they lie. How the
work is cut over the GPU is planned on the host from the lengths: once for all layers of a step, since a plan is kept
until the lengths change. The first use of a type and head size compiles for about a minute.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plait.ops.attention.reference import OnHost, lengths

BACKEND = "fa2"  # for every GPU since Ampere
DTYPES = (torch.bfloat16, torch.float16)
D_HEADS = (64, 128, 256)
WORKSPACE_BYTES = 1 << 28  # parts of results on 132 multiprocessors: 17 MB for each query head of a KV head


@functools.cache
def _is_installed() -> bool:
    return find_spec("flashinfer") is not None


def why_not(probe: Tensor) -> str | None:
    if not _is_installed():
        return "FlashInfer is not installed: pip install flashinfer-python"
    if not probe.is_cuda:
        return f"needs a CUDA tensor, got one on {probe.device}"
    if torch.is_grad_enabled() and probe.requires_grad:
        return "has no gradient"
    return None if probe.dtype in DTYPES else f"computes in bfloat16 and float16, got {probe.dtype}"


def why_not_these(inputs: Mapping[str, Any]) -> str | None:
    """The same of the inputs of `attention` or `paged_attention`, by name."""
    q, pages = inputs["q"], "k_pages" in inputs
    if q.shape[2] not in D_HEADS:
        return f"takes heads of {', '.join(map(str, D_HEADS))}, got d_head={q.shape[2]}"
    for given in (inputs[name] for name in (("k_pages", "v_pages") if pages else ("k", "v"))):
        if given.dtype != q.dtype:
            return f"takes keys and values of q's type, {q.dtype}, got {given.dtype}"
        if pages and not given.is_contiguous():
            return "takes contiguous pages only: a copy of the cache at every call would be slow"
    return None


class Chunks(NamedTuple):
    """The sequences that have queries, as FlashInfer counts them."""

    rows: list[int]  # their numbers in the page table
    bounds: list[int]  # of their queries
    page_bounds: list[int]
    in_last_page: list[int]  # tokens


def chunks(bounds: Sequence[int], context: Sequence[int], page_size: int) -> Chunks:
    rows = [i for i, (a, b) in enumerate(pairwise(bounds)) if a < b]
    totals = [context[i] + bounds[i + 1] - bounds[i] for i in rows]
    page_bounds = [0, *accumulate(-(-total // page_size) for total in totals)]
    return Chunks(rows, [0, *(bounds[i + 1] for i in rows)], page_bounds, [(t - 1) % page_size + 1 for t in totals])


def places(part: Chunks, max_pages: int, device: torch.device | str) -> Tensor:
    """Where the numbers of their pages stand in a flattened page table, in order: [pages]. What travels to the device
    grows with the sequences, not with their pages.
    """
    n_pages = [b - a for a, b in pairwise(part.page_bounds)]
    if (longest := max(n_pages)) > max_pages:
        raise ValueError(f"attention: a sequence has {longest} pages and its row of the page table {max_pages}")
    shifts = [row * max_pages - start for row, start in zip(part.rows, part.page_bounds, strict=False)]
    here = torch.tensor([shifts, n_pages]).to(device, non_blocking=True)
    total = part.page_bounds[-1]
    return torch.repeat_interleave(here[0], here[1], output_size=total) + torch.arange(total, device=device)


class _Planned:
    """A wrapper of FlashInfer's and what it planned last.

    A plan travels from memory that the next plan writes over, so the next one waits until it has arrived.
    """

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        self.key: object = None
        self.arrived = torch.cuda.Event()
        self.places = self.page_ids = torch.empty(0)

    def plan(self, key: object, make: Callable[[], None]) -> None:
        """`make` plans what `key` says, unless that is planned already."""
        if key == self.key:
            return
        self.arrived.synchronize()
        self.key = None
        with torch.inference_mode(False):  # it is written over in either mode
            make()
        self.arrived.record()
        self.key = key


class _Device:
    """FlashInfer's wrappers on one device, in one workspace. `lock` is held from a plan to the launch that reads it."""

    def __init__(self, device: torch.device) -> None:
        flashinfer: Any = import_module("flashinfer")
        paged, packed = flashinfer.BatchPrefillWithPagedKVCacheWrapper, flashinfer.BatchPrefillWithRaggedKVCacheWrapper
        with torch.inference_mode(False):
            workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
            self.paged, self.packed = (_Planned(one(workspace, "NHD", backend=BACKEND)) for one in (paged, packed))
        self.lock = threading.Lock()
        self.stream = torch.cuda.current_stream(device)

    def enter_stream(self, device: torch.device) -> None:
        """What the last call launched comes before what this one will, on whichever streams."""
        here = torch.cuda.current_stream(device)
        if here != self.stream:
            here.wait_stream(self.stream)
            self.stream = here
            self.paged.key = self.packed.key = None


_device = functools.cache(_Device)


def _enter(q: Tensor, inputs: Mapping[str, Any]) -> _Device:
    if (reason := why_not_these(inputs)) is not None:
        raise ValueError(f"attention: 'flashinfer' was asked for and can't run: {reason}")
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("FlashInfer plans each step's lengths on the host, which a CUDA graph can't hold")
    return _device(q.device)


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, bounds: list[int] | None = None) -> Tensor:
    device = _enter(q, {"q": q, "k": k, "v": v})
    bounds = cu_seqlens.tolist() if bounds is None else list(bounds)
    if not q.shape[0]:
        return q.new_empty(q.shape)
    heads = q.shape[1], k.shape[1], q.shape[2]
    with device.lock, torch.cuda.device(q.device):
        device.enter_stream(q.device)
        planned = device.packed

        def make() -> None:
            here = torch.tensor(chunks(bounds, [0] * len(bounds), 1).bounds, dtype=torch.int32)
            planned.wrapper.plan(here, here, *heads, causal=True, q_data_type=q.dtype)

        planned.plan((bounds, heads, q.dtype), make)
        return planned.wrapper.run(q.contiguous(), k.contiguous(), v.contiguous())


def paged_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, cu_seqlens: Tensor, context_lens: Tensor,
    k_scales: Tensor | None = None, v_scales: Tensor | None = None, on_host: OnHost | None = None,
) -> Tensor:  # fmt: skip
    """Without `on_host` a GPU is waited for. Page numbers are read on the device at each call, and only lengths are
    planned: a table may be written over between calls.
    """
    device = _enter(q, {"q": q, "k_pages": k_pages, "v_pages": v_pages})
    bounds, context = map(list, lengths(cu_seqlens, context_lens, on_host))
    if not q.shape[0]:
        return q.new_empty(q.shape)
    page_size, n_kv_heads = k_pages.shape[1:3]
    heads = q.shape[1], n_kv_heads, q.shape[2]
    with device.lock, torch.cuda.device(q.device):
        device.enter_stream(q.device)
        planned = device.paged

        def make() -> None:
            part = chunks(bounds, context, page_size)
            planned.places = places(part, page_table.shape[1], q.device)
            planned.page_ids = torch.empty(len(planned.places), dtype=torch.int32, device=q.device)
            counts = [torch.tensor(n, dtype=torch.int32) for n in (part.bounds, part.page_bounds, part.in_last_page)]
            planned.wrapper.plan(
                *counts[:2], planned.page_ids, counts[2], *heads, page_size, causal=True, q_data_type=q.dtype
            )  # which keeps `page_ids` itself, as it lies on the device already

        planned.plan((bounds, context, heads, page_size, page_table.shape[1], q.dtype), make)
        torch.index_select(page_table.flatten().int(), 0, planned.places, out=planned.page_ids)
        return planned.wrapper.run(q.contiguous(), (k_pages, v_pages))
