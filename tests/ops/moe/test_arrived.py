"""Experts on several processes, rows brought by an all-to-all: sorted by sender and expert, with their counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.dispatch import force
from plait.ops.moe import IMPLEMENTATIONS, PACKED_IMPLEMENTATIONS, arrived_outputs, expert_outputs, packed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N_EXPERTS, D_MODEL, D_FF = 3, 24, 16


def runnable(implementations: dict, dtype: torch.dtype) -> list[str]:
    probe = torch.empty(0, device=DEVICE, dtype=dtype)
    return [name for name, implementation in implementations.items() if implementation.why_not(probe) is None]


def sender_by_sender(counts: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.arange(counts.shape[1]).repeat_interleave(row) for row in counts.cpu()]).to(DEVICE)


@pytest.mark.parametrize("name", runnable(IMPLEMENTATIONS, torch.float32))
@settings(max_examples=15)
@given(counts=st.lists(st.lists(st.integers(0, 9), min_size=N_EXPERTS, max_size=N_EXPERTS), min_size=1, max_size=4))
def test_every_row_goes_through_the_expert_it_came_for(name: str, counts: list[list[int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    came = torch.tensor(counts, device=DEVICE)
    rows = torch.randn(int(came.sum()), D_MODEL, generator=generator).to(DEVICE).requires_grad_()
    gate_up = torch.randn(N_EXPERTS, 2 * D_FF, D_MODEL, generator=generator).to(DEVICE).requires_grad_()
    down = torch.randn(N_EXPERTS, D_MODEL, D_FF, generator=generator).to(DEVICE).requires_grad_()
    wanted = (rows, gate_up, down)
    with force(moe="reference"):
        expected = expert_outputs(rows, sender_by_sender(came)[:, None], gate_up, down)[:, 0]
    with force(moe=name):
        got = arrived_outputs(rows, came, gate_up, down)
    assert got.shape == rows.shape
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(got.sum(), wanted)  # none is missing, with no rows either
    if len(rows):
        for one, other in zip(grads, torch.autograd.grad(expected.sum(), wanted), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", runnable(PACKED_IMPLEMENTATIONS, torch.bfloat16))
def test_packed_experts_take_them_too(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    stored, plain = [], []
    for rows, width, gated in ((256, 256, True), (256, 128, False)):
        values = torch.randint(-127, 128, (2, rows, width), dtype=torch.int8, generator=generator)
        scale = torch.full((2, rows), width**-0.5 / 73)
        stored += [packed.pack(values, gated=gated).to(DEVICE), scale.to(DEVICE)]
        plain.append((values * scale[..., None]).to(DEVICE))
    counts = torch.tensor([[3, 0], [1, 5]], device=DEVICE)
    x = torch.randn(9, 256, generator=generator).to(DEVICE)
    with force(moe="reference"):
        expected = expert_outputs(x, sender_by_sender(counts)[:, None], *plain)[:, 0]
    with force(moe=name), torch.no_grad():
        scales = {"gate_up_scale": stored[1], "down_scale": stored[3]}
        got = arrived_outputs(x.bfloat16(), counts, stored[0], stored[2], **scales)
    assert (got.float() - expected).norm() <= 2e-2 * expected.norm()
