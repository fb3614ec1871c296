"""Perplexity, agreement and divergence against a plain computation; fp16 overflow found where it was planted."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.model.checkpoint import save_model
from plait.model.network import LanguageModel
from plait.model.quantized import WeightFormat
from plait.ops.moe import fp8
from plait.quant import Scheme, quantize, use_fp8_activations
from plait.quant.quality import check_fp16, compare
from plait.quant.rows import dequantize_rows, quantize_rows


def test_a_model_against_itself(model: LanguageModel, token_ids: Tensor) -> None:
    q = compare(model, model, token_ids)
    assert (q.perplexity_change, q.greedy_agreement, q.kl_mean, q.kl_max) == (0.0, 1.0, 0.0, 0.0)
    assert q.positions == 3 * 39


@torch.no_grad()
def test_the_numbers_are_those_of_whole_logits(model: LanguageModel, token_ids: Tensor) -> None:
    other = quantize(deepcopy(model), Scheme("fp8", level="experts+mlp+mixers"))
    q = compare(model, other, token_ids)
    p, r = (m(token_ids).logits[:, :-1].log_softmax(-1) for m in (model, other))
    labels = token_ids[:, 1:]
    assert q.loss_before == pytest.approx(F.nll_loss(p.flatten(0, 1), labels.flatten()).item(), rel=1e-5)
    assert q.loss_after == pytest.approx(F.nll_loss(r.flatten(0, 1), labels.flatten()).item(), rel=1e-5)
    kl = F.kl_div(r, p, log_target=True, reduction="none").sum(-1)
    assert q.kl_mean == pytest.approx(kl.mean().item(), rel=1e-3)
    assert q.kl_max == pytest.approx(kl.max().item(), rel=1e-3)
    assert q.greedy_agreement == pytest.approx((p.argmax(-1) == r.argmax(-1)).float().mean().item())
    assert q.perplexity_change == pytest.approx(q.perplexity_after / q.perplexity_before - 1)
    assert 0 < q.kl_mean <= q.kl_p99 <= q.kl_max


def test_fp16_runs_a_small_model_like_fp32(folder: Path, token_ids: Tensor) -> None:
    report = check_fp16(folder, token_ids)
    assert report.overflowing == ()
    assert report.weights_not_finite == ()
    assert abs(report.quality.perplexity_change) < 1e-3
    assert {"layers.1.ffn.experts", "layers.1.ffn.gated", "layers.0.mixer.out_proj", "final_norm"} <= {
        site.name for site in report.sites
    }


def test_fp16_overflow_is_told_by_site(model: LanguageModel, token_ids: Tensor, tmp_path: Path) -> None:
    model.layers[1].ffn.gate_up.data[2] *= 300  # one expert of one layer: products of gate and up grow by 90,000
    save_model(model, tmp_path / "large")
    report = check_fp16(tmp_path / "large", token_ids)
    first = report.overflowing[0]
    assert first.name == "layers.1.ffn.gated"
    assert first.max_abs > 65504
    assert first.not_finite_in_fp16 > 0
    assert not any(site.name.startswith("layers.0") for site in report.overflowing)
    told = report.as_json()
    assert told["overflowing"][0]["name"] == "layers.1.ffn.gated"
    assert told["quality"]["perplexity_after"] is None
    json.dumps(told, allow_nan=False)


def test_weights_that_fp16_cannot_hold_are_named(model: LanguageModel, token_ids: Tensor, tmp_path: Path) -> None:
    model.layers[3].mixer.in_proj.weight.data[0, 0] = 1e5
    save_model(model, tmp_path / "large")
    assert check_fp16(tmp_path / "large", token_ids).weights_not_finite == ("layers.3.mixer.in_proj.weight",)


@torch.no_grad()
def test_fp8_activations_are_coarser_and_only_where_many_tokens_are(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="has no fp8 experts or MLPs"):
        use_fp8_activations(model)
    ids = torch.randint(1, 64, (1, 300), generator=torch.Generator().manual_seed(3))
    full = model(ids).logits
    quantize(model, "fp8")
    weights_only, few = model(ids).logits, model(ids[:, :100]).logits
    both = use_fp8_activations(model)(ids).logits
    assert torch.equal(model(ids[:, :100]).logits, few)
    errors = [((logits - full).norm() / full.norm()).item() for logits in (weights_only, both)]
    assert errors[0] < errors[1] < 2.5 * errors[0]


@torch.no_grad()
def test_fp8_products_are_those_of_the_rounded_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 32, generator=generator)
    x[3] = 0
    x[4] *= 1e6
    values, scale = quantize_rows(torch.randn(4, 96, 32, generator=generator), WeightFormat("fp8"))
    rounded, token_scale = fp8.rounded(x)
    assert ((rounded.float() * token_scale - x).abs() <= x.abs() * 0.0626 + token_scale * 2.0**-10).all()
    exact = (rounded.float() * token_scale) @ dequantize_rows(values[1], scale[1]).T
    torch.testing.assert_close(fp8.product(x, values[1], scale[1]).float(), exact, rtol=8e-3, atol=1e-3)
    down, down_scale = quantize_rows(torch.randn(4, 32, 48, generator=generator), WeightFormat("fp8"))
    ids = torch.randint(0, 3, (20, 2), generator=generator)  # nobody chose the last expert
    shares = torch.rand(20, 2, generator=generator)
    found = fp8.moe(x, shares, ids, values, down, scale, down_scale)
    for token in (0, 3, 7):
        own = [
            fp8.swiglu(x[token : token + 1], values[e], down[e], scale[e], down_scale[e]) for e in ids[token].tolist()
        ]
        expected = sum(share * y[0] for share, y in zip(shares[token], own, strict=True))
        torch.testing.assert_close(found[token], expected, rtol=8e-3, atol=1e-2)
