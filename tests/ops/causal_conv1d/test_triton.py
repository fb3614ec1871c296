"""What test_ops.py does not see of the convolution's Triton kernels: decode steps, strided rows, registration.

In Triton's interpreter (test_interpreted.py) or on a GPU.
"""

import os

import pytest
import torch

from plait.ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from plait.ops.dispatch import force

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="test_interpreted.py runs this file"
)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


@pytest.mark.parametrize("d_conv", [2, 4])
def test_tokens_one_by_one_are_the_whole(d_conv: int) -> None:
    x, weight, bias = normal(2 * 5, 12), normal(12, d_conv), normal(12)
    bounds = torch.tensor([0, 5, 10], device=DEVICE)
    columns, slots = normal(2, 12, d_conv - 1), torch.tensor([3, 0], device=DEVICE)
    pool = torch.full((5, 12, d_conv - 1), 7.0, device=DEVICE)
    pool[slots] = columns
    with force(causal_conv1d="triton"):
        out, final = causal_conv1d(x, weight, bias, cu_seqlens=bounds, initial_columns=columns)
        steps = [
            causal_conv1d_update(x.view(2, 5, 12)[:, t], weight, bias, columns=pool, slots=slots) for t in range(5)
        ]
    torch.testing.assert_close(torch.stack(steps, 1).flatten(0, 1), out, rtol=1e-5, atol=1e-5)
    assert torch.equal(pool[slots], final)
    assert (pool[[1, 2, 4]] == 7.0).all()


def test_a_sequence_without_tokens_keeps_its_columns() -> None:
    columns = normal(3, 6, 3).requires_grad_()
    bounds = torch.tensor([0, 2, 2, 9], device=DEVICE)
    with force(causal_conv1d="triton"):
        _, final = causal_conv1d(normal(9, 6), normal(6, 4), None, cu_seqlens=bounds, initial_columns=columns)
    assert torch.equal(final[1], columns[1])
    (gradient,) = torch.autograd.grad(final[1].sum(), columns)
    assert torch.equal(gradient, torch.tensor([0.0, 1.0, 0.0], device=DEVICE)[:, None, None].expand_as(gradient))


def test_half_of_a_projection_gives_the_same_bits() -> None:
    wide, weight = normal(21, 20), normal(10, 4)
    bounds = torch.tensor([0, 21], device=DEVICE)
    with force(causal_conv1d="triton"):
        strided, _ = causal_conv1d(wide[:, :10], weight, None, cu_seqlens=bounds)
        packed, _ = causal_conv1d(wide[:, :10].contiguous(), weight, None, cu_seqlens=bounds)
    assert torch.equal(strided, packed)


def test_a_step_takes_inputs_and_a_bias_of_any_strides_and_only_a_contiguous_pool() -> None:
    x, weight, bias = normal(5, 3).T, normal(5, 4), normal(10)[::2]
    pools = [normal(4, 5, 3) for _ in range(2)]
    slots = torch.tensor([2, 0, 1], device=DEVICE)
    with force(causal_conv1d="triton"):
        strided = causal_conv1d_update(x, weight, bias, columns=pools[0], slots=slots)
        packed = causal_conv1d_update(x.contiguous(), weight, bias.contiguous(), columns=pools[1], slots=slots)
        assert torch.equal(strided, packed)
        assert torch.equal(*pools)
        with pytest.raises(ValueError, match="contiguous"):
            causal_conv1d_update(x, weight, bias, columns=pools[0].mT.contiguous().mT, slots=slots)


def test_weight_gradients_are_summed_over_many_programs() -> None:
    x, weight, bias = normal(700, 6), normal(6, 4).requires_grad_(), normal(6).requires_grad_()
    bounds, dout = torch.tensor([0, 3, 700], device=DEVICE), normal(700, 6)
    grads = []
    for name in ("triton", "reference"):
        with force(causal_conv1d=name):
            out, _ = causal_conv1d(x, weight, bias, cu_seqlens=bounds)
            grads.append(torch.autograd.grad(out, (weight, bias), dout))
    for mine, expected in zip(*grads, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tokens", "tile"), [(0, 64), (5, 64), (2048, 64), (2049, 128), (16384, 512), (1 << 20, 512)])
def test_tiles_of_the_backward_grow_with_the_tokens(tokens: int, tile: int) -> None:
    from plait.ops.causal_conv1d.triton import backward_cut

    assert backward_cut(tokens).tile == tile


def test_registered_for_torch_compile() -> None:
    x, weight, bias = normal(7, 6).requires_grad_(), normal(6, 4).requires_grad_(), normal(6).requires_grad_()
    bounds = torch.tensor([0, 3, 7], device=DEVICE)
    with force(causal_conv1d="triton"):
        causal_conv1d(x, weight, bias, cu_seqlens=bounds)  # registers the operator
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    operator = torch.ops.plait.causal_conv1d_triton.default
    results = torch.library.opcheck(
        operator, (x, weight, bias, bounds, normal(2, 6, 3).requires_grad_()), test_utils=tests
    )
    assert set(results.values()) == {"SUCCESS"}
