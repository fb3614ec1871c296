"""Rounding weights to nearest: scales from each row (or group of columns) alone, no calibration (paper section 3.1).

A row w becomes round(w / s) with an fp32 scale s = max|w| / largest, computed in fp32 whatever the model's dtype. Every
row is rounded by itself, so cutting a matrix along its rows changes no bit. Cut along its columns, the parts take the
scale of the whole row: `row_maxima` of each part, their maximum, `scales_from`, then `round_to`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.model.quantized import LARGEST, WeightFormat, column_scales, dequantized, pack_int4

CHUNK = {"cpu": 2**20, "cuda": 2**24}  # weights rounded at a time: in the cache; small beside a layer of a large model
CLIPS = tuple(1 - step / 40 for step in range(21))  # shares of max|w| that the search for the least error tries


def row_maxima(weight: Tensor, form: WeightFormat) -> Tensor:
    """Greatest magnitudes, fp32: [..., rows, columns] -> [..., rows], or [..., rows, groups]."""
    form.check(weight.shape[-1])
    wide = weight.detach().float().abs()
    return wide.amax(-1) if form.group is None else wide.unflatten(-1, (-1, form.group)).amax(-1)


def scales_from(maxima: Tensor, form: WeightFormat, *, bf16: bool = False) -> Tensor:
    """fp32 scales under which the greatest magnitude is the format's largest value. Zeros, and what is too small to
    divide, get the smallest normal number: never a division by zero. bf16: the nearest numbers that bf16 has too, 0.2 %
    away at most; the greatest magnitude, then up to 127.25 scales, is still rounded by less than half a step.
    """
    scales = (maxima.float() / LARGEST[form.kind]).clamp_min(torch.finfo(torch.float32).tiny)
    return scales.bfloat16().float() if bf16 else scales


def round_to(weight: Tensor, scale: Tensor, form: WeightFormat) -> Tensor:
    """The values of a weight under given scales, as they lie in memory (int4 packed)."""
    values = round_columns(weight.detach().float(), column_scales(scale, weight.shape), form)
    return pack_int4(values) if form.kind == "int4" else values


def round_columns(wide: Tensor, scale: Tensor, form: WeightFormat) -> Tensor:
    """fp32 weights over scales that broadcast -> int8 (int4 too, not packed), or fp8."""
    largest = LARGEST[form.kind]
    scaled = (wide / scale).clamp_(-largest, largest)
    return scaled.to(torch.float8_e4m3fn) if form.kind == "fp8" else scaled.round_().to(torch.int8)


def clipped_scales(weight: Tensor, scale: Tensor, form: WeightFormat, *, bf16: bool = False) -> Tensor:
    """Of each row (or group), the scale among CLIPS shares of `scale` whose squared error is least. It helps where a
    few weights of a row are far larger than the others. bf16: among what bf16 has.
    """
    wide = weight.detach().float()
    best, least = scale, torch.full_like(scale, torch.inf)
    for share in CLIPS:
        tried = (scale * share).clamp_min(torch.finfo(torch.float32).tiny)
        tried = tried.bfloat16().float() if bf16 else tried
        columns = column_scales(tried, wide.shape)
        squares = (round_columns(wide, columns, form).float() * columns - wide).square_()
        error = squares.sum(-1) if form.group is None else squares.unflatten(-1, (-1, form.group)).sum(-1)
        best = torch.where(error < least, tried, best)
        least = torch.minimum(error, least)
    return best


def quantize_rows(
    weight: Tensor,
    form: WeightFormat | None = None,
    *,
    clip: bool = False,
    bf16_scales: bool = False,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """weight [..., rows, columns] -> (values, fp32 scales), as `model.quantized` has them; int8 rows by default.

    Works on some rows at a time, so that fp32 copies stay small. clip: search the scales of least error. bf16_scales:
    take only scales that bf16 has too. scale: take these. Raises ValueError for weights that are not finite, and for
    columns that a group does not divide.
    """
    form = form or WeightFormat()
    values, scales = (torch.empty_like(t, device=weight.device) for t in form.empty(weight.shape))
    rows = weight.detach().reshape(-1, weight.shape[-1])
    flat_values, flat_scales = values.view(len(rows), -1), scales.view(len(rows), *scales.shape[weight.dim() - 1 :])
    if scale is not None:
        flat_scales.copy_(scale.view_as(flat_scales))
    finite = round_into(rows, flat_values, flat_scales, form, clip=clip, bf16=bf16_scales, given=scale is not None)
    check_finite(finite, form)
    return values, scales


def round_into(
    rows: Tensor, values: Tensor, scale: Tensor, form: WeightFormat, *, clip: bool, bf16: bool, given: bool = False
) -> Tensor:
    """rows [n, columns] rounded into values [n, ...] and scale [n] or [n, groups]; with `given`, under the scale there.
    Mutates these two. Returns whether all were finite, a bool on their device, which is not waited for.
    """
    finite = torch.ones((), dtype=torch.bool, device=rows.device)
    step = _rows_at_a_time(rows)
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        maxima = row_maxima(rows[part], form)
        finite &= torch.isfinite(maxima).all()
        if not given:
            found = scales_from(maxima, form, bf16=bf16)
            scale[part] = clipped_scales(rows[part], found, form, bf16=bf16) if clip else found
        values[part] = round_to(rows[part], scale[part], form)
    return finite


def check_finite(finite: Tensor, form: WeightFormat) -> None:
    """ValueError unless `finite`."""
    if not bool(finite):
        raise ValueError(f"the weight holds inf or nan, which {form.kind} can't represent")


def _rows_at_a_time(weight: Tensor) -> int:
    return max(1, CHUNK.get(weight.device.type, CHUNK["cuda"]) // weight.shape[-1])


def dequantize_rows(values: Tensor, scale: Tensor) -> Tensor:
    """The fp32 weights that the values stand for."""
    return dequantized(values, scale, torch.float32)


def row_errors(weight: Tensor, values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Squares of the error and of the weight, summed over each row: fp32 [rows] each, rows of all leading dims."""
    rows, flat = weight.detach().reshape(-1, weight.shape[-1]), values.view(-1, values.shape[-1])
    scales = scale.view(len(rows), *scale.shape[values.dim() - 1 :])
    errors, sizes = [], []
    for part in torch.arange(len(rows), device="cpu").split(_rows_at_a_time(weight)):
        where = slice(int(part[0]), int(part[-1]) + 1)
        wide = rows[where].float()
        sizes.append(wide.square().sum(-1))
        errors.append((dequantize_rows(flat[where], scales[where]) - wide).square_().sum(-1))
    return torch.cat(errors), torch.cat(sizes)
