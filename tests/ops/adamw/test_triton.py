"""Rounding at random: right on average, and the kernel's bits are the reference's."""

import pytest
import torch

from plait.ops.adamw import IMPLEMENTATIONS, Numbers, adamw_step
from plait.ops.adamw.reference import rounded_at_random
from plait.ops.dispatch import force

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_it_is_right_on_average() -> None:
    low, high = 1.0, 1.0 + 2**-7  # neighbours in bf16
    x = torch.full((40_000,), low + 0.3 * (high - low))
    found = torch.stack([rounded_at_random(x, seed).float() for seed in range(5)])
    assert set(found.unique().tolist()) == {low, high}
    assert (found == high).float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert not found[0].equal(found[1])
    edge = torch.tensor([0.0, -1.5, float("inf"), float("-inf"), 3.0e38])
    assert rounded_at_random(edge, 7)[:4].float().equal(edge[:4])
    assert rounded_at_random(torch.tensor([float("nan")]), 7).isnan().all()


def test_small_updates_add_up() -> None:
    """A hundred steps of a thousandth of what bf16 can tell from 1 are lost, or come to a tenth of it on average."""
    size = 2**-8 / 1000
    ends = {}
    for stochastic in (False, True):
        p, m, v = torch.ones(20_000, dtype=torch.bfloat16), torch.ones(20_000), torch.ones(20_000)
        for step in range(100):
            numbers = Numbers(
                torch.tensor(size), torch.tensor(1e6 + step), torch.tensor(1.0), eps=0.0, stochastic=stochastic
            )
            with force(adamw="reference"):  # m and v stay at 1, so that a step is lr
                adamw_step([p], [torch.ones_like(p)], [m], [v], numbers)
        ends[stochastic] = 1 - p.float().mean().item()
    assert ends[False] == 0
    assert ends[True] == pytest.approx(100 * size, rel=0.15)


@pytest.mark.gpu
def test_the_kernel_rounds_at_random_as_the_reference_does() -> None:
    def stepped(name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        p, g, m, v = (torch.randn(3000, generator=generator).bfloat16().to(DEVICE) for _ in range(4))
        scalars = [torch.tensor(x, device=DEVICE) for x in (1e-2, 41.0, 0.5)]
        with force(adamw=name):
            adamw_step([p], [g], [m], [v.abs()], Numbers(*scalars, weight_decay=0.1, stochastic=True))
        return p

    assert IMPLEMENTATIONS["triton"].why_not(torch.empty(0, device=DEVICE, dtype=torch.bfloat16)) is None
    ours, theirs = stepped("triton"), stepped("reference")
    assert (ours != theirs).float().mean().item() < 0.002  # where fp32 sums differ in the last bit
