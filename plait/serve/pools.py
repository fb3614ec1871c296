"""Pools of numbered places: state slots and pages, on the device, on the host, on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plait.serve.plan import Place, Tier

Kind = Literal["state", "page"]

KINDS: tuple[Kind, ...] = ("page", "state")
TIERS: tuple[Tier, ...] = ("device", "host", "disk")


class Pool:
    """The numbers 0 to size - 1, each either free or taken. Who took it keeps the books; none has two owners."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size - 1, -1, -1))  # the one freed last is taken first: it is the warmest

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def free(self) -> list[int]:
        return list(self._free)

    def take(self, n: int) -> list[int]:
        """n numbers; there must be as many."""
        assert n <= len(self._free)
        if n == 0:
            return []
        taken = self._free[-n:][::-1]
        del self._free[-n:]
        return taken

    def give(self, numbers: list[int]) -> None:
        self._free.extend(reversed(numbers))


@dataclass(frozen=True)
class PoolSizes:
    """How many places there are. A tier of size 0 does not exist. Raises ValueError for sizes no engine can run on."""

    slots: int  # on the device: running sequences and cached states together
    pages: int
    host_slots: int = 0
    host_pages: int = 0
    disk_slots: int = 0
    disk_pages: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low = 1 if name in ("slots", "pages") else 0
            if value < low:
                raise ValueError(f"{name}={value} must be at least {low}")

    def of(self, kind: Kind, tier: Tier) -> int:
        prefix = "" if tier == "device" else f"{tier}_"
        return getattr(self, f"{prefix}{'slots' if kind == 'state' else 'pages'}")


class Pools:
    """One pool for each kind and tier."""

    def __init__(self, sizes: PoolSizes) -> None:
        self._pools = {(kind, tier): Pool(sizes.of(kind, tier)) for kind in KINDS for tier in TIERS}

    def __getitem__(self, key: tuple[Kind, Tier]) -> Pool:
        return self._pools[key]

    def items(self) -> list[tuple[tuple[Kind, Tier], Pool]]:
        return list(self._pools.items())

    def below(self, kind: Kind, tier: Tier) -> Tier | None:
        """The next tier that exists for a kind, if any."""
        lower = TIERS[TIERS.index(tier) + 1 :]
        return next((t for t in lower if self._pools[kind, t].size), None)

    def give(self, kind: Kind, places: list[Place]) -> None:
        for place in places:
            self._pools[kind, place.tier].give([place.number])
