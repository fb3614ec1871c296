"""Which weights a scheme takes, and what does not go together."""

from pathlib import Path

import pytest
import torch

from plait.config import ModelConfig
from plait.model.checkpoint import read_quantization
from plait.model.network import LanguageModel
from plait.model.quantization_config import level_of, matrices
from plait.model.quantized import WeightFormat
from plait.quant import Scheme, load, quantize
from plait.quant.checkpoint import quantize_checkpoint

FFN = {"gate_up", "down"}
MIXERS = {"q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj"}


def quantized(model: LanguageModel) -> set[str]:
    """The last names of the quantized weights, `moe.` before those of experts."""
    names = set()
    for m in matrices(model):
        if m.scale is not None:
            last = m.name.removesuffix(".weight").rsplit(".", 1)[-1]
            names.add(f"moe.{last}" if m.values.dim() == 3 else last)
    return names


@pytest.mark.parametrize(
    ("level", "head", "expected"),
    [
        ("experts", False, {"moe.gate_up", "moe.down"}),
        ("experts+mlp", False, {"moe.gate_up", "moe.down", *FFN}),
        ("experts+mlp", True, {"moe.gate_up", "moe.down", *FFN, "head"}),
        ("experts+mlp+mixers", False, {"moe.gate_up", "moe.down", *FFN, *MIXERS}),
    ],
)
@pytest.mark.parametrize("method", ["experts_int8", "fp8"])
def test_levels(model: LanguageModel, method: str, level: str, head: bool, expected: set[str]) -> None:
    scheme = Scheme(method, level, head)  # type: ignore[arg-type]
    assert quantized(quantize(model, scheme)) == expected
    assert level_of(model) == level


def test_a_tied_head_is_the_embedding(token_ids: torch.Tensor) -> None:
    from plait.model.init import init_weights

    config = ModelConfig(
        vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2, n_experts=1, top_k=1,
        attn_period=2, attn_offset=0, tie_embeddings=True, dtype="float32", init_std=0.2,
    )  # fmt: skip
    model = init_weights(LanguageModel(config), seed=0).to_dtype(torch.bfloat16).eval()
    full = model(token_ids).logits.float()
    quantize(model, Scheme(head=True))
    assert model.embed.weight.dtype == torch.int8
    assert model.dtype == torch.bfloat16
    close = model(token_ids).logits
    assert close.dtype == torch.bfloat16
    assert 0 < (close.float() - full).norm() / full.norm() < 0.03
    assert level_of(model) == "experts+mlp"


def test_quantizing_again_goes_on_from_there(model: LanguageModel) -> None:
    quantize(model, level="experts")
    before = model.layers[1].ffn.down.clone()
    quantize(model, level="experts+mlp+mixers")
    assert torch.equal(model.layers[1].ffn.down, before)
    assert level_of(model) == "experts+mlp+mixers"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"method": "int4"}, "method='int4' must be one of experts_int8, fp8, gptq, bf16"),
        ({"level": "all"}, "level='all' must be one of experts, experts"),
        ({"bits": 4}, "bits=4 must be 8, or 4 with method='gptq'"),
        ({"method": "gptq", "bits": 3}, "bits=3 must be 8, or 4"),
        ({"act_order": True}, "act_order goes with method='gptq'"),
        ({"method": "fp8", "group": 16}, "fp8 has a scale per row"),
        ({"group": 12}, "group=12 must be None"),
    ],
)
def test_what_does_not_go_together(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Scheme(**given)  # type: ignore[arg-type]


def test_a_scheme_in_one_word(model: LanguageModel) -> None:
    assert Scheme.named("fp8") == Scheme("fp8")
    assert Scheme.named("experts_int8:experts") == Scheme(level="experts")
    assert Scheme.named("experts_int8:experts+mlp+mixers+head") == Scheme(level="experts+mlp+mixers", head=True)
    for wrong in ("experts_int8:", "experts_int8:head", "int4", "experts_int8:experts:mlp", ""):
        with pytest.raises(ValueError, match=r"(method|level)=.* must be one of experts"):
            Scheme.named(wrong)
    assert level_of(quantize(model, "experts_int8:experts")) == "experts"


@pytest.mark.parametrize(
    "scheme",
    [Scheme("fp8"), Scheme("bf16"), Scheme("gptq"), Scheme(group=8), Scheme(clip=True), Scheme("gptq", bits=4)],
)
def test_weights_in_int8_become_nothing_else(
    scheme: Scheme, model: LanguageModel, folder: Path, token_ids: torch.Tensor
) -> None:
    """In memory, while loading and from folder to folder; the same format again changes no bit."""
    quantize_checkpoint(folder, folder.parent / "int8", Scheme())
    quantize(model)
    ways = (
        lambda: quantize(model, scheme, calibration=token_ids),
        lambda: load(folder.parent / "int8", quantize=scheme, calibration=token_ids),
        lambda: quantize_checkpoint(folder.parent / "int8", folder.parent / "again", scheme, calibration=token_ids),
    )
    for way in ways:
        with pytest.raises(ValueError, match=r"quantized already .int8, a scale per row"):
            way()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantize(model, Scheme())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_keeps_the_method_that_made_its_weights(folder: Path, token_ids: torch.Tensor) -> None:
    there = folder.parent
    quantize_checkpoint(folder, there / "gptq", Scheme("gptq"), calibration=token_ids)
    report = quantize_checkpoint(there / "gptq", there / "again", Scheme())
    assert report.was_quantized
    assert report.matrices == ()
    assert read_quantization(there / "again") == (WeightFormat("int8"), "gptq")
    assert read_quantization(folder) is None
