"""The chunked loss against the plain one, values and gradients, in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plait.parallel.cross_entropy import cross_entropy


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("z_weight", [0.0, 0.1])
def test_equals_the_plain_loss(chunk: int, z_weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator, dtype=torch.float64).requires_grad_() for n in (20, 33))
    labels = torch.randint(0, 33, (20,), generator=generator)
    labels[[0, 5, 19]] = -100
    logits = hidden @ weight.T
    squares = (logits.logsumexp(-1).square() * (labels != -100)).sum()
    expected = F.cross_entropy(logits, labels, reduction="sum") + z_weight * squares
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))

    total, found_squares = cross_entropy(hidden, weight, labels, z_weight=z_weight, chunk=chunk)
    torch.testing.assert_close(total, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(found_squares, squares, rtol=1e-13, atol=0)
    for found, want in zip(torch.autograd.grad(3 * total, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-13)


def test_without_labels_it_is_zero_and_so_are_its_gradients() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    total, _ = cross_entropy(hidden, weight, torch.full((3,), -100))
    total.backward()
    assert total.item() == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().max() == 0


def test_bf16_sums_in_fp32() -> None:
    hidden, weight = torch.randn(600, 16).bfloat16(), torch.randn(100, 16).bfloat16()
    labels = torch.randint(0, 100, (600,))
    total, _ = cross_entropy(hidden, weight, labels)
    assert total.dtype == torch.float32
    expected = F.cross_entropy(hidden.float() @ weight.float().T, labels, reduction="sum")
    assert total.item() == pytest.approx(expected.item(), rel=1e-2)
