"""The parts of the Triton kernels that test_ops.py sees only together."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

triton = pytest.importorskip("triton", reason="the kernels are Triton's")  # the extra `gpu` brings it

from plait.ops.dispatch import force  # noqa: E402
from plait.ops.moe import gemv, packed, reference, swiglu  # noqa: E402
from plait.ops.moe import triton as kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU or Triton's interpreter, where test_interpreted.py runs this",
)


@settings(max_examples=15)
@given(
    tokens=st.integers(1, 40), n_experts=st.integers(1, 9), align=st.sampled_from([8, 16, 24]), seed=st.integers(0, 99)
)
def test_order_sorts_stably_and_pads_every_expert(tokens: int, n_experts: int, align: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, n_experts, (tokens, 2), generator=generator)
    check_order(kernels.order(ids.to(DEVICE), n_experts, align), ids, n_experts, align)


def test_order_over_several_chunks() -> None:
    ids = torch.randint(0, 20, (700, 3), generator=torch.Generator().manual_seed(0))
    check_order(kernels.order(ids.to(DEVICE), 20, 16), ids, 20, 16)


def check_order(by: kernels.Order, ids: torch.Tensor, n_experts: int, align: int) -> None:
    counts = torch.bincount(ids.flatten(), minlength=n_experts)
    padded = (counts + align - 1) // align * align
    n_blocks = int(by.n_blocks)
    assert torch.equal(by.ends.cpu().long(), padded.cumsum(0))
    assert n_blocks * align == padded.sum()
    assert torch.equal(by.expert_of[:n_blocks].cpu().long(), torch.repeat_interleave(padded // align))
    entry_of = by.entry_of[: n_blocks * align].cpu().long()
    assert torch.equal(entry_of[entry_of >= 0], ids.flatten().sort(stable=True).indices)
    assert torch.equal(by.row_of.cpu().long()[entry_of[entry_of >= 0]], (entry_of >= 0).nonzero()[:, 0])


def test_gather_then_combine_is_a_weighted_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    x, ids = (
        torch.randn(13, 37, generator=generator).to(DEVICE),
        torch.randint(0, 5, (13, 3), generator=generator).to(DEVICE),
    )
    by = kernels.order(ids, 5, 8)
    rows = kernels.gather(x, by, 2.0)
    end = int(by.ends[-1])
    assert torch.equal(rows[:end][by.entry_of[:end] < 0], torch.zeros(end - 39, 37, device=DEVICE))
    weights = torch.rand(13, 3, generator=generator).to(DEVICE)
    torch.testing.assert_close(kernels.combine(rows[None], weights, by, x.dtype), 2 * x * weights.sum(1, keepdim=True))


def test_route_ranks_equal_experts_by_number() -> None:
    weights, ids = kernels.route(torch.zeros(3, 5, device=DEVICE), 3)
    assert ids.tolist() == [[0, 1, 2]] * 3
    torch.testing.assert_close(weights, torch.full((3, 3), 0.2, device=DEVICE))


@pytest.mark.parametrize("dense", [True, False])
def test_one_token_through_packed_weights(dense: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def int8(*shape: int) -> torch.Tensor:
        return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)

    n_experts = 1 if dense else 4
    gate_up, down = int8(n_experts, 384, 128), int8(n_experts, 128, 192)
    scales = (
        torch.rand(n_experts, 384, generator=generator) / 500,
        torch.rand(n_experts, 128, generator=generator) / 500,
    )
    x = torch.randn(1, 128, generator=generator).bfloat16()
    ids = torch.tensor([[0]] if dense else [[3, 1]])
    weights = torch.tensor([[1.0]] if dense else [[0.6, 0.3]])
    expected = reference.moe(x.double(), weights, ids, gate_up, down, *(s.double() for s in scales))
    stored = packed.pack(gate_up, gated=True), packed.pack(down, gated=False)
    arguments = [None if dense else weights, None if dense else ids, *stored, *scales]
    out = gemv.moe(*(a if a is None else a.to(DEVICE) for a in [x, *arguments]))
    error = (out.double().cpu() - expected).abs().max() / expected.abs().max()
    assert error < 1e-2  # h and the result are rounded to bf16


def test_the_mlp_in_training_is_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((37, 24), (40, 24), (24, 20))
    inputs = [torch.randn(shape, generator=generator).to(DEVICE).requires_grad_() for shape in shapes]
    found = {}
    for name in ("triton", "grouped"):
        with force(moe=name):
            y = swiglu(*inputs)
        found[name] = [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]
    assert all(torch.isfinite(t).all() for t in found["triton"])
    for ours, expected in zip(found["triton"], found["grouped"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_no_tokens_give_no_rows() -> None:
    weights, ids = kernels.route(torch.zeros(0, 3, device=DEVICE), 2)
    assert weights.shape == ids.shape == (0, 2)
    by = kernels.order(ids, 3, 8)
    assert by.ends.tolist() == [0, 0, 0]
    assert int(by.n_blocks) == 0
    gate_up, down = torch.ones(3, 32, 16, device=DEVICE), torch.ones(3, 16, 16, device=DEVICE)
    assert kernels.moe(torch.zeros(0, 16, device=DEVICE), weights, ids, gate_up, down, None, None).shape == (0, 16)


def test_scales_and_inputs_may_have_any_strides() -> None:
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randint(-127, 128, (3, 32, 16), generator=generator, dtype=torch.int8).to(DEVICE)
    down = torch.randint(-127, 128, (3, 16, 16), generator=generator, dtype=torch.int8).to(DEVICE)
    scales = [torch.rand(3, n, generator=generator).to(DEVICE) / 100 for n in (32, 16)]
    x, ids = torch.randn(16, 7, generator=generator).to(DEVICE).T, torch.tensor([[0, 2]] * 7, device=DEVICE)
    weights = torch.rand(7, 2, generator=generator).to(DEVICE)
    strided = [scale.T.contiguous().T for scale in scales]
    assert not strided[0].is_contiguous()
    out = kernels.moe(x, weights, ids, gate_up, down, *strided)
    assert torch.equal(out, kernels.moe(x.contiguous(), weights, ids, gate_up, down, *scales))
