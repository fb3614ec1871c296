"""Copies of states and pages between the device, host memory and disk, all exact.

On the device a pool is stacked over layers; on the host one state or page is one piece, so that it travels at once.
A file on disk is one state or page, written under a temporary name and then renamed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.model.state import State
from plait.serve.plan import Copy, Place

PARTS = {"state": ("conv", "ssm"), "page": ("k", "v", "k_scales", "v_scales")}  # scales: of int8 pages only


class Tiers:
    def __init__(self, state: State, *, host_states: int = 0, host_pages: int = 0, disk: Path | None = None) -> None:
        """Host memory for so many states and pages (pinned beside a GPU); `disk` is a folder, made if it isn't there,
        that no other engine uses: what an earlier one left in it is removed.
        """
        self.state = state
        self.is_cuda = state.ssm.is_cuda
        sizes = {"state": host_states, "page": host_pages}
        self.parts = {kind: [n for n in names if getattr(state, n) is not None] for kind, names in PARTS.items()}
        self.host = {n: self._host_pool(getattr(state, n), sizes[kind]) for kind in PARTS for n in self.parts[kind]}
        self.disk = disk
        if disk is not None:
            disk.mkdir(parents=True, exist_ok=True)
            for kind in PARTS:
                for left in (*disk.glob(f"{kind}_*.safetensors"), *disk.glob(f"{kind}_*.tmp")):
                    left.unlink()
        self._writer = ThreadPoolExecutor(1, "plait-disk") if disk is not None else None
        self._writing: dict[Path, Future[None]] = {}

    def _host_pool(self, pool: Tensor, n: int) -> Tensor:
        layers, _, *inner = pool.shape
        return torch.empty(n, layers, *inner, dtype=pool.dtype, pin_memory=self.is_cuda and n > 0)

    def run(self, copies: Sequence[Copy]) -> None:
        """In order. Raises ValueError for places there aren't, OSError if the disk fails."""
        for (kind, source, target), group in groupby(copies, lambda c: (c.kind, c.source.tier, c.target.tier)):
            waiting: list[Copy] = []
            for copy in group:  # those that need nothing of each other go together
                touched = {place for c in waiting for place in (c.source, c.target)}
                if copy.target in touched or copy.source in {c.target for c in waiting}:
                    self._run(kind, source, target, waiting)
                    waiting = []
                waiting.append(copy)
            self._run(kind, source, target, waiting)

    def _run(self, kind: str, source: str, target: str, copies: list[Copy]) -> None:
        for copy in copies:
            for place in (copy.source, copy.target):
                self._check(kind, place)
        numbers = [c.source.number for c in copies], [c.target.number for c in copies]
        if source == target == "device":
            self._within_device(kind, *numbers)
            return
        for copy in copies:
            for name, piece in self._read(kind, copy.source).items():
                if target == "device":
                    getattr(self.state, name)[:, copy.target.number].copy_(piece, non_blocking=True)
                elif target == "host":
                    self.host[name][copy.target.number].copy_(piece, non_blocking=True)
            if target == "disk":
                self._write(kind, copy)

    def _within_device(self, kind: str, sources: list[int], targets: list[int]) -> None:
        for name in self.parts[kind]:
            pool = getattr(self.state, name)
            if len(sources) == 1:
                pool[:, targets[0]] = pool[:, sources[0]]
            else:
                places = torch.tensor([sources, targets], pin_memory=self.is_cuda)
                source, target = places.to(pool.device, non_blocking=True)
                pool.index_copy_(1, target, pool.index_select(1, source))

    def _read(self, kind: str, place: Place) -> dict[str, Tensor]:
        if place.tier == "device":
            return {name: getattr(self.state, name)[:, place.number].contiguous() for name in self.parts[kind]}
        if place.tier == "host":
            return {name: self.host[name][place.number] for name in self.parts[kind]}
        path = self._path(kind, place.number)
        if path in self._writing:
            self._writing.pop(path).result()
        return load_file(path)

    def _write(self, kind: str, copy: Copy) -> None:
        """In another thread, from a copy of its own: the place it came from may change at once."""
        assert self._writer is not None
        if self.is_cuda and copy.source.tier != "disk":
            torch.cuda.current_stream().synchronize()  # what is in host memory has to have arrived
        pieces = {name: piece.to("cpu", copy=True) for name, piece in self._read(kind, copy.source).items()}
        path = self._path(kind, copy.target.number)
        self._writing = {p: w for p, w in self._writing.items() if not w.done() or w.exception()}
        self._writing[path] = self._writer.submit(_save, pieces, path)

    def _path(self, kind: str, number: int) -> Path:
        assert self.disk is not None
        return self.disk / f"{kind}_{number}.safetensors"

    def _check(self, kind: str, place: Place) -> None:
        if place.tier == "disk":
            if self.disk is None:
                raise ValueError(f"{place}: this engine keeps nothing on disk; give it a folder")
            if place.number < 0:
                raise ValueError(f"{place}: a number is at least 0")
            return
        name = self.parts[kind][0]
        pool, dim = (getattr(self.state, name), 1) if place.tier == "device" else (self.host[name], 0)
        if not 0 <= place.number < pool.shape[dim]:
            raise ValueError(f"{place}: there are {pool.shape[dim]} places for a {kind} on the {place.tier}")

    def close(self) -> None:
        """Wait for what is being written. Raises OSError if some of it failed."""
        if self._writer is not None:
            self._writer.shutdown()
            for writing in self._writing.values():
                writing.result()


def _save(pieces: dict[str, Tensor], path: Path) -> None:
    unfinished = path.with_suffix(".tmp")
    try:
        save_file(pieces, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
