"""Experts of many tokens on the CPU: few different numbers of rows, and rows added behind change nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait import native
from plait.ops.dispatch import force
from plait.ops.moe import moe
from plait.ops.moe.native import FEW_TOKENS, _few_sizes

if native.why_not(torch.empty(0)) is not None:
    pytest.skip("needs a C compiler", allow_module_level=True)


@given(st.integers(1, 10**6))
def test_a_size_is_little_more_than_asked(n: int) -> None:
    assert n <= _few_sizes(n) <= max(n + 15, n * 9 / 8)
    assert _few_sizes(_few_sizes(n)) == _few_sizes(n)


def test_sizes_are_few() -> None:
    assert len({_few_sizes(n) for n in range(1, 4097)}) < 60


def test_rows_of_one_expert_do_not_reach_another() -> None:
    """Tokens without a number go to the first expert; the others' rows stand where theirs stood."""
    g = torch.Generator().manual_seed(0)
    x, gate_up, down = torch.randn(90, 16, generator=g), torch.randn(3, 48, 16, generator=g), torch.randn(3, 16, 24)
    ids = torch.arange(90)[:, None] % 3
    ids[:40] = 0
    weights = torch.ones(90, 1)
    assert len(x) > FEW_TOKENS
    with force(moe="native"):
        expected = moe(x, weights, ids, gate_up, down)
        x[ids[:, 0] == 0] = torch.nan
        found = moe(x, weights, ids, gate_up, down)
    assert bool(found[ids[:, 0] == 0].isnan().all())
    assert torch.equal(found[ids[:, 0] != 0], expected[ids[:, 0] != 0])
