"""int4 and groups through the kernels of few rows, as widening the weights first has it."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import nn

from plait.config import ModelConfig
from plait.model.feed_forward import MLP, MoE
from plait.model.linear import Linear
from plait.model.quantization_config import matrices
from plait.model.quantized import WeightFormat, set_quantized
from plait.ops.dispatch import force
from plait.quant.rows import quantize_rows

CONFIG = ModelConfig(vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2, n_experts=4, top_k=2)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU, or TRITON_INTERPRET=1"
)
MODULES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(CONFIG),
    "moe": lambda: MoE(CONFIG),
    "linear": lambda: Linear(32, 40, bias=False),
}


@torch.no_grad()
@pytest.mark.parametrize("form", [WeightFormat("int4", 16), WeightFormat("int4"), WeightFormat("int8", 16)], ids=str)
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("n_tokens", [1, 5, 40])
def test_few_tokens_come_out_as_of_widened_weights(form: WeightFormat, module: str, n_tokens: int) -> None:
    generator = torch.Generator().manual_seed(1)
    made = MODULES[module]()
    for parameter in made.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    for matrix in list(matrices(made)):
        if "router" not in matrix.name:
            set_quantized(matrix.module, matrix.parameter, *quantize_rows(matrix.values, form))
    x = torch.randn(n_tokens, 32, generator=generator).to(DEVICE)
    made.to(DEVICE)
    got = made(x)
    with force(group_linear="reference"):
        expected = made(x)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    if n_tokens <= 5 and module != "linear":
        assert not torch.equal(got, expected)  # another order of summing: the kernels did run
