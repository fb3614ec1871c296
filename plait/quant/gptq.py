"""GPTQ (Frantar et al. 2022), to compare with: rounding that makes up, column by column, for its own errors.

Of a weight W and its inputs X, rounding to nearest minimises |W - Q|; this seeks a small |(W - Q) X^T|. Columns are
rounded in order. The error of each is spread over the columns not yet rounded by the upper Cholesky factor of the
inverse of H = X^T X, in blocks, so that most of the work is matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.model.quantized import WeightFormat, column_scales, pack_int4
from plait.quant.rows import clipped_scales, round_columns, row_maxima, scales_from

DAMPING = 0.01  # of the mean of H's diagonal, added to it
BLOCK = 128


def gptq(
    weight: Tensor,
    hessian: Tensor,
    form: WeightFormat,
    *,
    clip: bool = False,
    act_order: bool = False,
    bf16_scales: bool = False,
) -> tuple[Tensor, Tensor]:
    """weight [rows, columns] and H = X^T X [columns, columns] of its inputs -> (values, fp32 scales).

    Scales are those of the weight itself, as rounding to nearest would take them. act_order: columns with the largest
    inputs first, when most others are left to make up for them. ValueError for a weight or inputs not finite.
    """
    wide = weight.detach().float().clone()
    if not (bool(torch.isfinite(wide).all()) and bool(torch.isfinite(hessian).all())):
        raise ValueError("the weight or its calibration inputs hold inf or nan")
    scale = scales_from(row_maxima(wide, form), form, bf16=bf16_scales)
    scale = clipped_scales(wide, scale, form, bf16=bf16_scales) if clip else scale
    columns = column_scales(scale, wide.shape).expand(wide.shape)
    order = hessian.diagonal().argsort(descending=True) if act_order else None
    if order is not None:
        wide, columns, hessian = wide[:, order], columns[:, order], hessian[order][:, order]
    values = _round_in_order(wide, columns, _upper_factor(hessian), form)
    if order is not None:
        values = values[:, order.argsort()]
    return (pack_int4(values) if form.kind == "int4" else values.contiguous()), scale


def _upper_factor(hessian: Tensor) -> Tensor:
    """U, upper triangular, with U^T U the inverse of the damped H. Inputs that are always 0 count as the mean one."""
    damped = hessian.float().clone()
    diagonal = damped.diagonal()
    mean = diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny)
    diagonal += torch.where(diagonal == 0, mean, DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _round_in_order(wide: Tensor, columns: Tensor, upper: Tensor, form: WeightFormat) -> Tensor:
    """Mutates wide. Returns values not yet packed, [rows, columns]."""
    values = torch.empty(
        wide.shape, dtype=torch.float8_e4m3fn if form.kind == "fp8" else torch.int8, device=wide.device
    )
    for first in range(0, wide.shape[1], BLOCK):
        last = min(first + BLOCK, wide.shape[1])
        errors = torch.empty(wide.shape[0], last - first, device=wide.device)
        for i in range(first, last):
            values[:, i] = round_columns(wide[:, i], columns[:, i], form)
            error = (wide[:, i] - values[:, i].float() * columns[:, i]) / upper[i, i]
            wide[:, i:last] -= error[:, None] * upper[i, i:last]
            errors[:, i - first] = error
        wide[:, last:] -= errors @ upper[first:last, last:]
    return values
