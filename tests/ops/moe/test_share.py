"""Experts on several processes: what each adds sums up to the whole mixture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.dispatch import force
from plait.ops.moe import PACKED_IMPLEMENTATIONS, SHARE_IMPLEMENTATIONS, moe, moe_share, packed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def runnable(implementations: dict, dtype: torch.dtype) -> list[str]:
    probe = torch.empty(0, device=DEVICE, dtype=dtype)
    return [name for name, implementation in implementations.items() if implementation.why_not(probe) is None]


def drawn(tokens: int, n_experts: int, top_k: int, d_model: int, d_ff: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights, ids = torch.randn(tokens, n_experts, generator=generator).softmax(-1).topk(top_k, dim=-1)
    made = [torch.randn(tokens, d_model, generator=generator), weights, ids]
    made += [torch.randn(n_experts, 2 * d_ff, d_model, generator=generator) * d_model**-0.5]
    made += [torch.randn(n_experts, d_model, d_ff, generator=generator) * d_ff**-0.5]
    return [t.to(DEVICE) for t in made]


@pytest.mark.parametrize("name", runnable(SHARE_IMPLEMENTATIONS, torch.float32))
@settings(max_examples=10)
@given(tokens=st.sampled_from([1, 2, 33, 150]), cut=st.integers(0, 5), seed=st.integers(0, 9))
def test_shares_sum_up_to_the_mixture(name: str, tokens: int, cut: int, seed: int) -> None:
    x, weights, ids, gate_up, down = drawn(tokens, 6, 2, 24, 16, seed)
    with force(moe="reference"):
        whole = moe(x, weights, ids, gate_up, down)
    with force(moe=name):
        shares = [
            moe_share(x, weights, ids, gate_up[part], down[part], first_expert=part.start, n_experts=6)
            for part in (slice(0, cut), slice(cut, 6))
            if part.stop > part.start
        ]
    torch.testing.assert_close(sum(shares), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", runnable(PACKED_IMPLEMENTATIONS, torch.bfloat16))
@pytest.mark.parametrize("tokens", [1, 37])
def test_shares_of_packed_experts_sum_up(name: str, tokens: int) -> None:
    x, weights, ids, *_ = drawn(tokens, 4, 2, 256, 128, 0)
    generator = torch.Generator().manual_seed(1)
    stored = []
    for rows, width, gated in ((256, 256, True), (256, 128, False)):
        values = torch.randint(-127, 128, (4, rows, width), dtype=torch.int8, generator=generator)
        scale = torch.full((4, rows), width**-0.5 / 73)
        stored.append((packed.pack(values, gated=gated).to(DEVICE), scale.to(DEVICE)))
    (gate_up, gate_up_scale), (down, down_scale) = stored

    def share(first: int, last: int) -> torch.Tensor:
        part = slice(first, last)
        scales = {"gate_up_scale": gate_up_scale[part], "down_scale": down_scale[part]}
        with force(moe=name):
            return moe_share(
                x.bfloat16(), weights, ids, gate_up[part], down[part], first_expert=first, n_experts=4, **scales
            )

    whole = share(0, 4).float()
    assert whole.norm() > 0.1
    assert (share(0, 3).float() + share(3, 4).float() - whole).norm() <= 1e-2 * whole.norm()


def test_experts_beyond_the_last_are_refused() -> None:
    x, weights, ids, gate_up, down = drawn(2, 4, 2, 24, 16, 0)
    with pytest.raises(ValueError, match="first_expert=3: the 2 experts"):
        moe_share(x, weights, ids, gate_up[:2], down[:2], first_expert=3, n_experts=4)
