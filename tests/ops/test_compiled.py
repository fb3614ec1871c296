"""torch.compile sees through every op: no graph break in a whole model, and the same values and gradients."""

import pytest
import torch

from plait.config import ModelConfig
from plait.model.init import init_weights
from plait.model.layout import Layout
from plait.model.network import LanguageModel
from plait.ops.dispatch import force

CONFIG = {
    "vocab_size": 64, "d_model": 32, "n_layers": 4, "d_ff": 48, "n_heads": 4, "n_kv_heads": 2, "n_experts": 3,
    "top_k": 2, "attn_period": 2, "attn_offset": 1, "moe_period": 2, "moe_offset": 1,
}  # fmt: skip
SLOW = {
    "selective_scan": "chunked", "causal_conv1d": "lagged", "rms_norm": "reference", "moe": "grouped",
    "linear": "matmul", "attention": "sdpa",
}  # fmt: skip


def loss_and_gradients(run: object, model: LanguageModel, ids: torch.Tensor) -> list[torch.Tensor]:
    layout = Layout.dense(*ids.shape, ids.device)  # made outside of the graph, as the training loop does
    logits = run(ids, layout).logits  # type: ignore[operator]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
    return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("choices", [{}, SLOW], ids=["best", "plain"])
def test_a_model_compiles_whole_and_trains_alike(kind: str, choices: dict[str, str]) -> None:
    """fullgraph=True raises at the first graph break."""
    torch._dynamo.reset()
    model = init_weights(LanguageModel(ModelConfig(**CONFIG, mamba_kind=kind)), seed=0)
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    with force(**choices):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        expected, got = (loss_and_gradients(run, model, ids) for run in (model, compiled))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_model_compiles_whole_on_a_gpu(kind: str) -> None:
    torch._dynamo.reset()
    model = init_weights(LanguageModel(ModelConfig(**CONFIG, mamba_kind=kind)), seed=0).cuda().bfloat16()
    ids = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(0)).cuda()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, got = (loss_and_gradients(run, model, ids) for run in (model, compiled))
    for a, b in zip(got, expected, strict=True):
        assert (a - b).float().norm() <= 2e-2 * b.float().norm() + 1e-4
