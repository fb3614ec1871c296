"""Experts on several processes: what each adds sums up to the whole mixture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.dispatch import force
from plait.ops.moe import PACKED_IMPLEMENTATIONS, SHARE_IMPLEMENTATIONS, moe, moe_share, native, packed

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


@pytest.mark.parametrize("name", runnable(SHARE_IMPLEMENTATIONS, torch.float32))
@pytest.mark.parametrize("tokens", [1, 5, 150])
def test_nothing_is_read_for_choices_of_other_processes(name: str, tokens: int) -> None:
    """Of experts 2 and 3, tokens choose 3 or others: tokens without 3 and the weights of 2 are NaN, and nothing is."""
    x, weights, _, gate_up, down = drawn(tokens, 6, 2, 24, 16, 1)
    ids = torch.tensor([[0, 5], [3, 1], [4, 3]], device=DEVICE).repeat(tokens // 3 + 1, 1)[:tokens]
    chose = (ids == 3).any(1)
    with force(moe=name):
        clean = moe_share(x, weights, ids, gate_up[2:4], down[2:4], first_expert=2, n_experts=6)
        x[~chose], gate_up[2], down[2] = torch.nan, torch.nan, torch.nan
        got = moe_share(x, weights, ids, gate_up[2:4], down[2:4], first_expert=2, n_experts=6)
    assert torch.equal(got, clean)
    assert (got[~chose] == 0).all()
    assert (got[chose] != 0).any(1).all()


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


@pytest.mark.skipif(DEVICE != "cpu", reason="int8 activations are the CPU kernels'")
@pytest.mark.parametrize("tokens", [3, 40])
def test_shares_with_int8_activations_are_those_of_the_mixture(tokens: int) -> None:
    if native.why_not(torch.empty(0)) is not None:
        pytest.skip("there is no compiler here, so no native kernels")
    x, weights, ids, gate_up, down = drawn(tokens, 4, 2, 64, 32, 0)
    scales = {"gate_up_scale": torch.full((4, 64), 0.02), "down_scale": torch.full((4, 64), 0.02)}
    gate_up, down = (weight.mul(40).round().clamp(-127, 127).to(torch.int8) for weight in (gate_up, down))
    with force(moe="int8_activations"):
        whole = moe(x, weights, ids, gate_up, down, **scales)
        parts = [(part, {name: scale[part] for name, scale in scales.items()}) for part in (slice(0, 3), slice(3, 4))]
        shares = [
            moe_share(x, weights, ids, gate_up[part], down[part], first_expert=part.start, n_experts=4, **own)
            for part, own in parts
        ]
    torch.testing.assert_close(sum(shares), whole, rtol=1e-4, atol=1e-4)


def test_experts_beyond_the_last_are_refused() -> None:
    x, weights, ids, gate_up, down = drawn(2, 4, 2, 24, 16, 0)
    with pytest.raises(ValueError, match="first_expert=3: the 2 experts"):
        moe_share(x, weights, ids, gate_up[:2], down[:2], first_expert=3, n_experts=4)
