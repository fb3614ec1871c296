"""Kernels that follow indices look at them first."""

import pytest
import torch

from plait import native
from plait.ops.attention import native as attention
from plait.ops.causal_conv1d import native as conv
from plait.ops.linear import native as products
from plait.ops.moe import native as experts
from plait.ops.selective_scan import native as scan

if native.why_not(torch.empty(0)) is not None:
    pytest.skip("needs a C compiler", allow_module_level=True)


@pytest.mark.parametrize("slot", [-1, 3])
def test_slots(slot: int) -> None:
    slots, x, pool = torch.tensor([1, slot]), torch.randn(2, 8), torch.zeros(3, 8, 3)
    with pytest.raises(IndexError, match="conv_forward: a state slot"):
        conv.causal_conv1d_update(x, torch.randn(8, 4), None, pool, slots)
    states, rows, d = torch.zeros(3, 8, 16), torch.randn(2, 16), torch.randn(8)
    with pytest.raises(IndexError, match="scan_forward: a state slot"):
        scan.selective_scan_update(x, x, -torch.rand(8, 16), rows, rows, d, x, d, states, slots)
    assert not pool.any()
    assert not states.any()


@pytest.mark.parametrize("expert", [-1, 4])
@pytest.mark.parametrize("tokens", [2, 20])
def test_experts(expert: int, tokens: int) -> None:
    ids = torch.zeros(tokens, 2, dtype=torch.int64)
    ids[1, 1] = expert
    with pytest.raises((IndexError, RuntimeError)):
        experts.expert_outputs(torch.randn(tokens, 8), ids, torch.randn(4, 12, 8), torch.randn(4, 8, 6), None, None)


def test_tokens() -> None:
    table = torch.randn(5, 8)
    assert torch.equal(products.look_up(torch.tensor([4, 0]), table, None, torch.float32), table[[4, 0]])
    for bad in (-1, 5):
        with pytest.raises(IndexError, match="a token id"):
            products.look_up(torch.tensor([0, bad]), table, None, torch.float32)


@pytest.mark.parametrize("page", [-1, 4])
def test_pages(page: int) -> None:
    pages, one = torch.randn(2, 4, 16, 2, 8), torch.tensor([0, 1])
    table, context = torch.tensor([[2, page]]), torch.tensor([20])
    q, kv = torch.randn(1, 4, 8), torch.randn(1, 2, 8)
    with pytest.raises(IndexError, match="a page number"):
        attention.paged_attention(q, *pages, table, one, context)
    with pytest.raises(IndexError, match="a page number"):
        attention.write_pages(kv, kv, *pages, table, one, context)
    beyond = torch.tensor([32])  # the table has two pages of 16
    with pytest.raises(IndexError, match="a page number"):
        attention.paged_attention(q, *pages, torch.tensor([[2, 3]]), one, beyond)


def test_pages_are_written_where_they_lie() -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 5, 2, 8, generator=generator)
    pools = torch.zeros(2, 6, 4, 2, 8, dtype=torch.bfloat16)
    table, bounds, context = torch.tensor([[3, 1], [0, 5]]), torch.tensor([0, 3, 5]), torch.tensor([2, 4])
    attention.write_pages(k, v, *pools, table, bounds, context)
    flat = pools.flatten(1, 2)
    places = [3 * 4 + 2, 3 * 4 + 3, 1 * 4, 5 * 4, 5 * 4 + 1]
    assert torch.equal(flat[0, places], k.bfloat16())
    assert torch.equal(flat[1, places], v.bfloat16())
    assert int(pools.any(-1).any(-1).sum()) == 2 * len(places)
