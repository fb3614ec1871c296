"""Copies of states and pages between the device, host memory and disk: exact, or of states, if that is asked for, with
the SSM part in int8.

On the device a pool is stacked over layers; on the host one state or page is one piece, so that it travels at once.
A file on disk is one state or page, written under a temporary name and then renamed. int8 is made before a state leaves
the device, and what left it stays as it is between host and disk.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, groupby
from pathlib import Path
from typing import IO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.model.state import State
from plait.serve.plan import Copy, Place, Tier

PARTS = {"state": ("conv", "ssm"), "page": ("k", "v", "k_scales", "v_scales")}  # scales: of int8 pages only
MOST_AT_ONCE = {"state": 1, "page": 64}  # between the device and elsewhere: what travels lies in one piece meanwhile
Parts = dict[str, Tensor]  # of n states or pages: [n, layers, ...] each


class Tiers:
    def __init__(
        self,
        state: State,
        *,
        host_states: int = 0,
        host_pages: int = 0,
        disk: Path | None = None,
        int8_states: bool = False,
    ) -> None:
        """Host memory for so many states and pages (pinned beside a GPU); in `disk`, made if it isn't there, each
        process that is given it has a folder of its own (`_own_folder`). int8_states: a state outside the device has
        its SSM part as int8, with a scale a channel (`int8_state`), its convolution columns as they are.
        """
        self.state, self.int8_states = state, int8_states
        self.is_cuda = state.ssm.is_cuda
        sizes = {"state": host_states, "page": host_pages}
        self.parts = {kind: [n for n in names if getattr(state, n) is not None] for kind, names in PARTS.items()}
        none = {kind: self._leaving(kind, {n: getattr(state, n)[:, :0] for n in self.parts[kind]}) for kind in PARTS}
        self.kept = {kind: list(parts) for kind, parts in none.items()}  # of one state or page outside the device
        self.host = {n: self._host_pool(like, sizes[kind]) for kind in PARTS for n, like in none[kind].items()}
        self.disk: Path | None = None
        self._lock: IO[bytes] | None = None
        if disk is not None:
            self.disk, self._lock = _own_folder(disk)
        self._writer = ThreadPoolExecutor(1, "plait-disk") if disk is not None else None
        self._writing: dict[Path, Future[None]] = {}

    def _host_pool(self, like: Tensor, n: int) -> Tensor:
        layers, _, *inner = like.shape
        return torch.empty(n, layers, *inner, dtype=like.dtype, pin_memory=self.is_cuda and n > 0)

    def run(self, copies: Sequence[Copy]) -> None:
        """In order. Raises ValueError for places there aren't, OSError if the disk fails."""
        for (kind, source, target), group in groupby(copies, lambda c: (c.kind, c.source.tier, c.target.tier)):
            most = None if source == target == "device" else MOST_AT_ONCE[kind]
            for sources, targets in _independent(group, most):
                self._run(kind, source, target, sources, targets)

    def _run(self, kind: str, source: Tier, target: Tier, sources: list[int], targets: list[int]) -> None:
        self._check(kind, source, sources)
        self._check(kind, target, targets)
        if source == "device":
            parts = {name: self._taken(name, sources) for name in self.parts[kind]}
            parts = parts if target == "device" else self._leaving(kind, parts)
        else:
            if self.is_cuda and source == "host" and target != "device":
                torch.cuda.current_stream().synchronize()  # what is in host memory has to have arrived
            blocks = self._kept_at(kind, source, sources)
            parts = {name: self._joined(those, target) for name, those in blocks.items()}
            parts = self._arriving(kind, parts) if target == "device" else parts
        for name, pieces in parts.items():
            if target == "device":
                self._put(name, targets, pieces)
            elif target == "host":
                for at, first, n in _runs(targets):
                    self.host[name][first : first + n].copy_(pieces[at : at + n], non_blocking=True)
        if target == "disk":
            for i, n in enumerate(targets):
                self._write(kind, n, {name: pieces[i] for name, pieces in parts.items()})

    def _taken(self, name: str, numbers: list[int]) -> Tensor:
        """Of a pool on the device [n, layers, ...], in one call."""
        pool = getattr(self.state, name).transpose(0, 1)
        if len(numbers) == 1:
            return pool[numbers[0] : numbers[0] + 1].contiguous()
        return pool.index_select(0, self._index(numbers))

    def _put(self, name: str, numbers: list[int], pieces: Tensor) -> None:
        pool = getattr(self.state, name).transpose(0, 1)
        if len(numbers) == 1:
            pool[numbers[0]] = pieces[0]
        else:
            pool.index_copy_(0, self._index(numbers), pieces)

    def _index(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, pin_memory=self.is_cuda).to(self.state.ssm.device, non_blocking=True)

    def _leaving(self, kind: str, parts: Parts) -> Parts:
        """Parts on the device as they are kept elsewhere."""
        if kind == "page" or not self.int8_states:
            return parts
        ssm, scales = int8_state(parts["ssm"])
        return parts | {"ssm": ssm, "ssm_scales": scales}

    def _arriving(self, kind: str, kept: Parts) -> Parts:
        """The other way round."""
        if kind == "page" or not self.int8_states:
            return kept
        ssm = kept["ssm"].to(self.state.ssm.dtype) * kept["ssm_scales"][..., None]
        return {"conv": kept["conv"], "ssm": ssm}

    def _kept_at(self, kind: str, tier: Tier, numbers: list[int]) -> dict[str, list[Tensor]]:
        """What lies on the host, where neighbours are one block [n, layers, ...], or on disk."""
        if tier == "host":
            runs = _runs(numbers)
            return {name: [self.host[name][first : first + n] for _, first, n in runs] for name in self.kept[kind]}
        loaded = [self._load(kind, number) for number in numbers]
        return {name: [one[name][None] for one in loaded] for name in self.kept[kind]}

    def _joined(self, blocks: list[Tensor], target: Tier) -> Tensor:
        """Blocks in one tensor, on the device if they go there."""
        if len(blocks) == 1 and not (self.is_cuda and target == "device"):
            return blocks[0]
        device = self.state.ssm.device if target == "device" else "cpu"
        sizes = [len(block) for block in blocks]
        joined = torch.empty(sum(sizes), *blocks[0].shape[1:], dtype=blocks[0].dtype, device=device)
        for place, block in zip(joined.split(sizes), blocks, strict=True):
            place.copy_(block, non_blocking=True)
        return joined

    def _load(self, kind: str, number: int) -> dict[str, Tensor]:
        path = self._path(kind, number)
        if path in self._writing:
            self._writing.pop(path).result()
        return load_file(path)

    def _write(self, kind: str, number: int, pieces: dict[str, Tensor]) -> None:
        """In another thread, from a copy of its own: the place it came from may change at once."""
        assert self._writer is not None
        pieces = {name: piece.to("cpu", copy=True) for name, piece in pieces.items()}
        path = self._path(kind, number)
        self._writing = {p: w for p, w in self._writing.items() if not w.done() or w.exception()}
        self._writing[path] = self._writer.submit(_save, pieces, path)

    def _path(self, kind: str, number: int) -> Path:
        assert self.disk is not None
        return self.disk / f"{kind}_{number}.safetensors"

    def _check(self, kind: str, tier: Tier, numbers: list[int]) -> None:
        if tier == "disk" and self.disk is None:
            raise ValueError(f"{Place(tier, numbers[0])}: this engine keeps nothing on disk; give it a folder")
        name = self.parts[kind][0]
        n = getattr(self.state, name).shape[1] if tier == "device" else len(self.host[name])
        for number in (min(numbers), max(numbers)):
            if number < 0 or (number >= n and tier != "disk"):
                raise ValueError(f"{Place(tier, number)}: there are {n} places for a {kind} on the {tier}")

    def close(self) -> None:
        """Wait for what is being written. Raises OSError if some of it failed."""
        if self._writer is not None:
            self._writer.shutdown()
            for writing in self._writing.values():
                writing.result()
        if self._lock is not None:
            self._lock.close()


def _own_folder(disk: Path) -> tuple[Path, IO[bytes]]:
    """engine_0, or the first such folder of `disk` that no engine uses now, and its open lock, which holds as long as
    this process lives. What engines that are gone left in any of them is removed.
    """
    if disk.exists() and not disk.is_dir():
        raise ValueError(f"disk={str(disk)!r} is a file; states and pages need a folder")
    own: tuple[Path, IO[bytes]] | None = None
    for n in count():
        folder = disk / f"engine_{n}"
        if own is not None and not folder.exists():
            return own
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        for kind in PARTS:
            for left in (*folder.glob(f"{kind}_*.safetensors"), *folder.glob(f"{kind}_*.tmp")):
                left.unlink()
        if own is None:
            own = folder, lock
        else:
            lock.close()
    raise AssertionError


def _independent(copies: Iterable[Copy], most: int | None) -> Iterator[tuple[list[int], list[int]]]:
    """Numbers of sources and targets of copies that may go together: none needs, or overwrites, what another moves."""
    sources: list[int] = []
    targets: list[int] = []
    read: set[Place] = set()
    written: set[Place] = set()
    for copy in copies:
        if copy.source in written or copy.target in written or copy.target in read or len(sources) == most:
            yield sources, targets
            sources, targets, read, written = [], [], set(), set()
        sources.append(copy.source.number)
        targets.append(copy.target.number)
        read.add(copy.source)
        written.add(copy.target)
    yield sources, targets


def _runs(numbers: list[int]) -> list[tuple[int, int, int]]:
    """Numbers as runs of neighbours: (place in the list, first number, how many)."""
    runs: list[tuple[int, int, int]] = []
    for at, number in enumerate(numbers):
        if runs and number == runs[-1][1] + runs[-1][2]:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((at, number, 1))
    return runs


def int8_state(ssm: Tensor) -> tuple[Tensor, Tensor]:
    """An SSM state [..., d_state] as int8 and a scale a channel, bf16 [...]: 18 bytes for 64 with d_state 16. Off by at
    most half a step, 1/254 of the channel's greatest value; done again it changes nothing. A channel with a value that
    isn't finite has a scale that isn't.
    """
    scales = (ssm.abs().amax(-1) / 127).bfloat16()
    steps = scales.to(ssm.dtype).clamp_min(torch.finfo(torch.float32).tiny)  # of zeros, not 0
    return (ssm / steps[..., None]).round_().clamp_(-127, 127).to(torch.int8), scales


def _save(pieces: dict[str, Tensor], path: Path) -> None:
    unfinished = path.with_suffix(".tmp")
    try:
        save_file(pieces, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
