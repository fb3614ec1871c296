"""By indexing."""

from torch import Tensor


def take(pool: Tensor, slots: Tensor, fresh: Tensor) -> Tensor:
    return pool[slots].masked_fill(fresh.view(-1, *[1] * (pool.dim() - 1)), 0)


def put(pool: Tensor, slots: Tensor, rows: Tensor) -> None:
    pool[slots] = rows.to(pool.dtype)
