"""Rounding to nearest: bounds, safe rows, and the same bits however a matrix is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plait.model.quantized import WeightFormat, column_scales, pack_int4
from plait.ops.group_linear.reference import of_words
from plait.quant import rows
from plait.quant.rows import dequantize_rows, quantize_rows, round_to, row_errors, row_maxima, scales_from

FORMS = [WeightFormat(), WeightFormat("fp8"), WeightFormat("int8", 16), WeightFormat("int4", 16), WeightFormat("int4")]


def heavy_tailed(n_rows: int, columns: int, seed: int = 0) -> Tensor:
    """Student's t with two degrees of freedom: in most rows one weight is many times the others."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n_rows, columns, generator=generator)
    chi = torch.randn(n_rows, columns, 2, generator=generator).square().sum(-1)
    return normal / (chi / 2).sqrt()


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_cut_along_columns_the_bits_are_those_of_the_whole(form: WeightFormat, parts: int) -> None:
    weight = heavy_tailed(6, 16 * 8 * 2).bfloat16()
    whole, scale = quantize_rows(weight, form)
    shards = weight.chunk(parts, dim=-1)
    maxima = [row_maxima(shard, form) for shard in shards]
    if form.group is None:
        reduced = torch.stack(maxima).amax(0)  # what an all-reduce of maxima gives each process
        scales = [scales_from(reduced, form)] * parts
        assert torch.equal(scales[0], scale)
    else:
        scales = [scales_from(own, form) for own in maxima]
        assert torch.equal(torch.cat(scales, -1), scale)
    values = [quantize_rows(s, form, scale=own)[0] for s, own in zip(shards, scales, strict=True)]
    assert torch.equal(torch.cat(values, -1).view(torch.uint8), bits(whole))
    assert torch.equal(bits(round_to(weight, scale, form)), bits(whole))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_cut_along_rows_the_bits_are_those_of_the_whole(form: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy_tailed(12, 64).view(2, 6, 64)
    whole, scale = quantize_rows(weight, form)
    for expert, cut in ((0, slice(0, 4)), (1, slice(5, 6))):
        values, own = quantize_rows(weight[expert, cut], form)
        assert torch.equal(bits(values), bits(whole[expert, cut]))
        assert torch.equal(own, scale[expert, cut])
    monkeypatch.setitem(rows.CHUNK, "cpu", 200)  # three rows at a time
    values, own = quantize_rows(weight, form)
    assert torch.equal(bits(values), bits(whole))
    assert torch.equal(own, scale)


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]))
def test_heavy_tailed_rows_stay_within_a_step(form: WeightFormat, seed: int, size: float) -> None:
    weight = heavy_tailed(5, 64, seed) * size
    values, scale = quantize_rows(weight, form)
    restored = dequantize_rows(values, scale)
    if form.kind == "fp8":  # three bits of mantissa; below 2^-6 of the scale, steps of 2^-9
        bound = weight.abs() * (2.0**-4 + 1e-6) + scale[:, None] * 2.0**-10 * 1.001
    else:
        steps = scale if form.group is None else scale.repeat_interleave(form.group, -1)
        bound = (steps[:, None] if form.group is None else steps) * 0.5001
    assert ((restored - weight).abs() <= bound).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-40, 1e-38])
def test_zeros_and_denormals_are_safe(form: WeightFormat, tiny: float) -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    weight[1] = tiny
    values, scale = quantize_rows(weight, form)
    restored = dequantize_rows(values, scale)
    assert torch.isfinite(restored).all()
    assert (scale > 0).all()
    assert (restored[1] - weight[1]).abs().max() <= 1.2e-38
    plain, _ = quantize_rows(weight[[0, 2]], form)
    assert torch.equal(bits(values[[0, 2]]), bits(plain))


def relative_error(weight: Tensor, form: WeightFormat, *, clip: bool = False) -> float:
    values, scale = quantize_rows(weight, form, clip=clip)
    errors, sizes = row_errors(weight, values, scale)
    exact = (dequantize_rows(values, scale) - weight).double().square().sum(-1)
    torch.testing.assert_close(errors.double(), exact, rtol=1e-5, atol=0)
    return (errors.sum() / sizes.sum()).sqrt().item()


def test_errors_by_method_on_normal_and_heavy_tailed_weights() -> None:
    """The reference's figures for 2048 x 4096: 0.87 % of normal weights by row, 0.65 % in groups of 128."""
    normal = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    assert relative_error(normal, WeightFormat()) == pytest.approx(0.0087, abs=0.0002)
    assert relative_error(normal, WeightFormat("int8", 128)) == pytest.approx(0.0065, abs=0.0002)
    assert relative_error(normal, WeightFormat("fp8")) == pytest.approx(0.026, abs=0.001)
    heavy = heavy_tailed(64, 1024)
    by_row, clipped = (
        relative_error(heavy, WeightFormat("int4")),
        relative_error(heavy, WeightFormat("int4"), clip=True),
    )
    assert clipped < 0.97 * by_row
    for form in (WeightFormat(), WeightFormat("int8", 128), WeightFormat("int4", 128)):
        assert relative_error(heavy, form, clip=True) <= relative_error(heavy, form)


@given(st.lists(st.integers(-8, 7), min_size=8, max_size=8))
def test_int4_words_hold_what_they_were_given(numbers: list[int]) -> None:
    values = torch.tensor([numbers, numbers[::-1]], dtype=torch.int8)
    packed = pack_int4(values)
    assert packed.shape == (2, 1)
    assert int(packed[0, 0]) & 15 == numbers[0] + 8  # the first in the lowest bits
    assert torch.equal(of_words(packed), values)


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="group=24 does not divide 64 columns"):
        quantize_rows(torch.zeros(2, 64), WeightFormat("int8", 24))
    with pytest.raises(ValueError, match="group=7 must be None"):
        WeightFormat("int8", 7)
    with pytest.raises(ValueError, match="int4 packs 8 columns to a word; 12 is no multiple"):
        quantize_rows(torch.zeros(2, 12), WeightFormat("int4"))


@given(st.sampled_from(FORMS), st.integers(0, 2**31), st.sampled_from([0.0, 1e-42, 1e-30, 1.0, 1e30]), st.booleans())
@settings(max_examples=40)
def test_scales_that_bf16_has_survive_it_and_round_as_well(
    form: WeightFormat, seed: int, size: float, clip: bool
) -> None:
    """A reader that keeps scales in bf16 then has the same weights. No weight moves by more than half a step."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 64, generator=generator) ** 3 * size
    values, scale = quantize_rows(weight, form, bf16_scales=True, clip=clip)
    assert torch.equal(scale.bfloat16().float(), scale)
    restored = dequantize_rows(values, scale)
    assert torch.equal(dequantize_rows(values, scale.bfloat16().float()), restored)
    if not clip and form.kind != "fp8":
        steps = column_scales(scale, weight.shape)
        assert ((restored - weight).abs() <= 0.5001 * steps).all()
    plain = (dequantize_rows(*quantize_rows(weight, form, clip=clip)) - weight).norm()
    assert (restored - weight).norm() <= 1.1 * plain + 1e-38
