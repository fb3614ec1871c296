"""The table of measured tiles: `tuned.json`, which `plait bench ops --tune` writes.

It maps device -> op -> sizes -> tokens -> setting (what a setting is, the op's kernel says). A device is the beginning
of its name ("NVIDIA H100" stands for all its forms); the longest that fits counts. Sizes must be those measured; of the
token counts the nearest by ratio counts, if it is less than twice or more than half of what is asked. Else kernels keep
their formulas.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("tuned.json")
Table = dict[str, dict[str, dict[str, dict[str, Any]]]]


def key(*sizes: int) -> str:
    """(16, 2, 4096, 14336) -> "16x2x4096x14336"."""
    return "x".join(map(str, sizes))


@functools.cache
def table() -> Table:
    made: Table = json.loads(TABLE.read_text())["settings"]
    return made


@functools.cache
def _of_device(device: torch.device) -> dict[str, dict[str, dict[str, Any]]]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    fitting = sorted((known for known in table() if name.startswith(known)), key=len)
    return table()[fitting[-1]] if fitting else {}


@functools.lru_cache(1 << 16)
def setting(op: str, device: torch.device, sizes: tuple[int, ...], tokens: int) -> Any:
    """What was measured best for this op at the token count nearest to `tokens`, or None."""
    return nearest(_of_device(device).get(op, {}).get(key(*sizes), {}), tokens)


def nearest(measured: dict[str, Any], tokens: int) -> Any:
    """The setting of the token count nearest to `tokens` by ratio, or None if that is 2 or more, or for no tokens."""
    if tokens == 0:
        return None
    best = min((int(n) for n in measured), key=lambda n: max(n, tokens) / min(n, tokens), default=0)
    return measured[str(best)] if best and max(best, tokens) < 2 * min(best, tokens) else None


def token_counts(most: int) -> list[int]:
    """Lengths of prefills that together run every compiled variant that any prefill of up to `most` tokens needs: the
    kernels choose their forms by thresholds that have a power of two between them.
    """
    if most < 1:
        raise ValueError(f"most={most} must be at least 1")
    return [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]
