"""GPTQ beats rounding to nearest where it should: in the error of the products, on inputs like the calibration's."""

import pytest
import torch
from torch import Tensor

from plait.model.network import LanguageModel
from plait.model.quantized import WeightFormat
from plait.quant import Scheme, quantize
from plait.quant.gptq import gptq
from plait.quant.parts import hessian_of
from plait.quant.rows import dequantize_rows, quantize_rows


def correlated(n: int, columns: int, seed: int) -> Tensor:
    """Inputs as layers see them: few directions carry most of the variance, and some columns are much larger."""
    mix = torch.randn(16, columns, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 16, generator=generator) @ mix + 0.3 * torch.randn(n, columns, generator=generator)
    x[:, ::17] *= 8
    return x


def product_error(weight: Tensor, quantized: tuple[Tensor, Tensor], x: Tensor) -> float:
    exact = x @ weight.T
    return ((x @ dequantize_rows(*quantized).T - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("form", [WeightFormat("int4", 32), WeightFormat("int4"), WeightFormat("int8")], ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_it_beats_rounding_to_nearest_on_other_inputs(form: WeightFormat, act_order: bool) -> None:
    columns = 160  # more than one block, and the last one shorter
    weight = torch.randn(48, columns, generator=torch.Generator().manual_seed(0))
    seen, others = correlated(2000, columns, 1), correlated(500, columns, 2)
    nearest = product_error(weight, quantize_rows(weight, form), others)
    corrected = product_error(weight, gptq(weight, hessian_of(seen), form, act_order=act_order), others)
    assert corrected < 0.6 * nearest


def test_without_correlation_it_rounds_to_nearest() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    values, scale = gptq(weight, torch.eye(64), WeightFormat())
    nearest, same_scale = quantize_rows(weight)
    assert torch.equal(values, nearest)
    assert torch.equal(scale, same_scale)


def test_inputs_that_are_always_zero_are_safe() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    x = correlated(500, 64, 1)
    x[:, 10:20] = 0
    values, scale = gptq(weight, hessian_of(x), WeightFormat())
    assert (dequantize_rows(values, scale) - weight)[:, 10:20].abs().max() <= scale.max() * 0.51
    assert product_error(weight, (values, scale), x) < 0.01
    gptq(weight, torch.zeros(64, 64), WeightFormat())


def test_whole_models_come_closer_than_rounding_to_nearest(model: LanguageModel, token_ids: Tensor) -> None:
    """int4 is coarse enough to tell; the model sees other tokens than the calibration."""
    from copy import deepcopy

    from plait.model.quantized import set_quantized
    from plait.quant.parts import model_parts

    scheme = Scheme("gptq", bits=4, group=16, level="experts+mlp+mixers", head=True)
    calibration = torch.randint(1, 64, (24, 40), generator=torch.Generator().manual_seed(2))
    full = model(token_ids).logits
    nearest = deepcopy(model)
    for name, part in model_parts(nearest):
        for m in list(scheme.chosen(part, name, tied=False)):
            set_quantized(m.module, m.parameter, *quantize_rows(m.values, scheme.form))
    corrected = quantize(deepcopy(model), scheme, calibration=calibration)

    def error(other: LanguageModel) -> float:
        return ((other(token_ids).logits - full).norm() / full.norm()).item()

    assert error(corrected) < error(nearest)
    assert {p.dtype for n, p in corrected.named_parameters() if n.endswith(("gate_up", "down"))} == {torch.int32}


def test_what_it_needs_is_asked_for(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="needs calibration: token ids"):
        quantize(model, "gptq")
    with pytest.raises(ValueError, match="hold inf or nan"):
        gptq(torch.full((8, 8), torch.nan), torch.eye(8), WeightFormat())
