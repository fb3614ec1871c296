"""States out of slots and back in one launch are what indexing gives."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")  # the extra `gpu` brings it

from plait.ops.dispatch import force
from plait.ops.slots import put, take

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="test_interpreted.py runs this file"
)


@pytest.mark.parametrize("inner", [(5, 3), (1000, 3), (700, 16), (3, 20, 16)])
def test_taking_and_putting_are_indexing(inner: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(6, *inner, generator=generator).to(DEVICE)
    pool[2] = torch.nan  # what was left in the slot of a sequence that begins
    slots, fresh = torch.tensor([4, 2, 0], device=DEVICE), torch.tensor([False, True, False], device=DEVICE)
    found = {}
    for name in ("triton", "reference"):
        own = pool.clone()
        with force(slots=name):
            rows = take(own, slots, fresh)
            put(own, slots.flip(0), rows * 2)
            put(own, slots[:1] + 1, rows.transpose(-1, -2).contiguous().transpose(-1, -2)[1:2])
        found[name] = rows, own
    for got, expected in zip(found["triton"], found["reference"], strict=True):
        assert torch.equal(got, expected)
    assert not found["triton"][1].isnan().any()


def test_a_pool_in_pieces_is_refused() -> None:
    pool = torch.zeros(4, 16, 6, device=DEVICE)[:, :, ::2]
    with force(slots="triton"), pytest.raises(ValueError, match="contiguous"):
        take(pool, torch.tensor([1], device=DEVICE), torch.tensor([False], device=DEVICE))
