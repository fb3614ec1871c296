"""States out of their pool's slots and back: zeros for a sequence that begins, whatever its slot held before."""

import torch
from torch import Tensor

from plait.ops.dispatch import Implementation, anywhere, lazily, pick, why_not_triton
from plait.ops.slots import native, reference


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.float32, torch.bfloat16, torch.float16))


TAKE_IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.slots.triton", "take"), _why_not_triton),
    "native": Implementation(native.take, native.why_not),
    "reference": Implementation(reference.take, anywhere),
}
PUT_IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.slots.triton", "put"), _why_not_triton),
    "native": Implementation(native.put, native.why_not),
    "reference": Implementation(reference.put, anywhere),
}


def take(pool: Tensor, slots: Tensor, fresh: Tensor) -> Tensor:
    """What the slots of a pool [n_slots, ..., a, b] hold: [n, ..., a, b] for slots [n], zeros where fresh [n] (bool).

    The last two dims may lie the other way round in memory, b outermost: so the convolution's kernel reads them.
    """
    return pick("slots", TAKE_IMPLEMENTATIONS, pool)(pool, slots, fresh)


def put(pool: Tensor, slots: Tensor, rows: Tensor) -> None:
    """pool[slots] = rows, in the pool's dtype; slots differ. Mutates pool."""
    expected = [*slots.shape, *pool.shape[1:]]
    if list(rows.shape) != expected:
        raise ValueError(f"put: rows has shape {list(rows.shape)}; it must be {expected}, a row of the pool a slot")
    pick("slots", PUT_IMPLEMENTATIONS, pool)(pool, slots, rows)
