import pytest
import torch

from plait import native
from plait.ops.slots import native as in_c
from plait.ops.slots import reference

pytestmark = pytest.mark.skipif(native.why_not(torch.zeros(1)) is not None, reason="needs the native library")


@pytest.mark.parametrize("inner", [(3, 5), (70_001, 4), (2, 3, 7)])  # the second in several pieces
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_indexing_does(inner: tuple[int, ...], dtype: torch.dtype) -> None:
    pool = torch.randn(5, *inner).to(dtype)
    pool[2] = torch.nan  # nobody wrote it: a fresh row must not see it
    slots, fresh = torch.tensor([3, 2, 0]), torch.tensor([False, True, False])
    taken = in_c.take(pool, slots, fresh)
    assert torch.equal(taken, reference.take(pool, slots, fresh))
    assert torch.isfinite(taken).all()
    expected = pool.clone()
    rows = torch.randn(3, *inner)  # cast to the pool's dtype
    reference.put(expected, slots, rows)
    in_c.put(pool, slots, rows)
    assert torch.equal(pool, expected) or torch.equal(pool.nan_to_num(9), expected.nan_to_num(9))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_a_slot_that_is_not_there_is_refused_before_anything_is_written(wrong: int) -> None:
    pool = torch.zeros(5, 4)
    with pytest.raises(IndexError, match="a state slot is out of range"):
        in_c.put(pool, torch.tensor([0, wrong]), torch.ones(2, 4))
    assert not pool.any()
    with pytest.raises(IndexError):
        in_c.take(pool, torch.tensor([wrong]), torch.tensor([False]))
