"""Which implementation runs where a gradient is wanted."""

import pytest
import torch

from plait.ops.attention import attention
from plait.ops.dispatch import force


@pytest.mark.parametrize("wanted", ["q", "k", "v"])
def test_kernels_without_a_gradient_are_refused_whichever_tensor_wants_one(wanted: str) -> None:
    """An adapter on k_proj or v_proj of the first layer: queries want no gradient there."""
    qkv = {"q": torch.randn(3, 2, 4), "k": torch.randn(3, 1, 4), "v": torch.randn(3, 1, 4)}
    qkv[wanted].requires_grad_()
    bounds = torch.tensor([0, 3], dtype=torch.int32)
    with force(attention="triton"), pytest.raises(ValueError, match=r"'triton' was asked for .* has no gradient"):
        attention(**qkv, cu_seqlens=bounds)
    assert torch.autograd.grad(attention(**qkv, cu_seqlens=bounds).sum(), qkv[wanted])[0].isfinite().all()
