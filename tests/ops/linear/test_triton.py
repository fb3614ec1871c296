"""What test_ops.py does not see of the matrix-vector kernels: int8 weights with bf16 activations (which the interpreter
can't check through the contract), strided rows, parameters.

In Triton's interpreter (test_interpreted.py) or on a GPU.
"""

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="the kernels are Triton's")  # the extra `gpu` brings it

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="test_interpreted.py runs this file"
)


@pytest.mark.parametrize(("tokens", "width", "n_out"), [(1, 16, 1), (1, 1040, 9), (3, 96, 7), (4, 9008, 5)])
def test_int8_weights_with_bf16_activations(tokens: int, width: int, n_out: int) -> None:
    from plait.ops.linear.triton import _few_tokens

    generator = torch.Generator().manual_seed(width)
    x = torch.randn(tokens, 2 * width, generator=generator).bfloat16().to(DEVICE)[:, width:]
    weight = torch.randint(-128, 128, (n_out, width), generator=generator, dtype=torch.int8).to(DEVICE)
    scale = torch.rand(n_out, generator=generator).to(DEVICE) / width
    y = _few_tokens(x, torch.nn.Parameter(weight, requires_grad=False), scale)
    expected = x.double() @ (weight.double() * scale.double()[:, None]).T
    assert (y.double() - expected).abs().max() <= 4e-3 * expected.abs().max() + 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 5, 63, 200])
def test_every_number_of_tokens(tokens: int, int8: bool) -> None:
    from plait.ops.linear.triton import linear

    x = torch.randn(tokens, 1024, device="cuda").bfloat16()
    weight = torch.randn(1000, 1024, device="cuda").bfloat16() / 32
    scale = None
    if int8:
        weight, scale = (
            torch.randint(-127, 128, (1000, 1024), device="cuda").to(torch.int8),
            torch.rand(1000, device="cuda"),
        )
    expected = x.double() @ (weight.double() * (1 if scale is None else scale.double()[:, None])).T
    y = linear(x, weight, scale)
    assert (y.double() - expected).norm() <= 4e-3 * expected.norm()
    assert torch.equal(linear(x, weight, scale), y)
