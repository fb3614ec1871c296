"""In C (plait/native/src/slots.c): fewer passes than indexing, and steps of few tokens can be kept on a tape."""

from __future__ import annotations

import torch
from torch import Tensor

from plait import native
from plait.native import why_not as why_not  # for IMPLEMENTATIONS
from plait.ops.dispatch import outside_graphs
from plait.ops.slots import reference


class SlotsArgs(native.Arguments):
    """slots_args of src/slots.c, in its order."""

    _fields_ = native.fields(("n", "row_bytes", "n_slots", "n_threads"), ("slots", "fresh", "pool", "rows"))


@outside_graphs
def take(pool: Tensor, slots: Tensor, fresh: Tensor) -> Tensor:
    if not pool.is_contiguous():
        return reference.take(pool, slots, fresh)
    out = torch.empty((len(slots), *pool.shape[1:]), dtype=pool.dtype)
    _call("take_slots", pool, slots, native.dense(fresh, torch.bool), out)
    return out


@outside_graphs
def put(pool: Tensor, slots: Tensor, rows: Tensor) -> None:
    if not pool.is_contiguous():
        reference.put(pool, slots, rows)
        return
    _call("put_slots", pool, slots, None, native.dense(rows, pool.dtype))


def _call(name: str, pool: Tensor, slots: Tensor, fresh: Tensor | None, rows: Tensor) -> None:
    slots = native.dense(slots, torch.int64)
    args = SlotsArgs(
        len(slots), pool[0].numel() * pool.element_size(), len(pool), torch.get_num_threads(),
        slots.data_ptr(), native.pointer(fresh), pool.data_ptr(), rows.data_ptr(),
    )  # fmt: skip
    native.call(name, args)
