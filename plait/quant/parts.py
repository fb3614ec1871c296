"""Quantizing one part of a model (its embedding, a layer, its head) in place, and what that cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model.network import LanguageModel
from plait.model.quantization_config import Matrix
from plait.model.quantized import set_quantized
from plait.quant.gptq import gptq
from plait.quant.rows import check_finite, quantize_rows, round_into, row_errors
from plait.quant.scheme import Scheme
from plait.quant.walk import Walk, matrix_inputs

WORST = 3


@dataclass(frozen=True)
class MatrixReport:
    """What rounding did to one weight (a stack of experts counts as one)."""

    name: str
    shape: tuple[int, ...]
    relative_error: float  # ||dequantized - weight|| / ||weight||
    worst_rows: tuple[tuple[int, float], ...]  # (row, counted through the stack; its own relative error), worst first


def model_parts(model: LanguageModel) -> Iterator[tuple[str, nn.Module]]:
    """What `load_model(on_part=...)` hands over, of a model that is there: embed, layers.0, …, final_norm, head."""
    for name, part in model.named_children():
        if isinstance(part, nn.ModuleList):
            yield from ((f"{name}.{index}", one) for index, one in part.named_children())
        else:
            yield name, part


def cast_part(part: nn.Module, dtype: torch.dtype) -> None:
    """Cast as `LanguageModel.to_dtype` does. Mutates the part."""
    LanguageModel.to_dtype(part, dtype)  # type: ignore[arg-type]  # any module will do


@torch.no_grad()
def quantize_part(
    name: str, part: nn.Module, scheme: Scheme, *, tied: bool, walk: Walk | None = None, measure: bool = False
) -> list[MatrixReport]:
    """Quantize in place, one matrix at a time, so that full precision goes as values come. walk: calibration sequences
    standing before this part, for gptq. measure: report errors. ValueError, naming the weight, if it isn't finite.
    """
    chosen = list(scheme.chosen(part, name, tied=tied))
    inputs: dict[nn.Module, Tensor] = {}
    if scheme.method == "gptq" and chosen:
        assert walk is not None
        modules = {m.module for m in chosen}
        inputs = walk.inputs(part, modules) if name.startswith("layers.") else dict.fromkeys(modules, torch.cat(walk.x))
    reports = []
    for matrix in chosen:
        try:
            values, scale = _rounded(matrix, scheme, inputs.get(matrix.module))
        except ValueError as error:
            raise ValueError(f"{matrix.name}: {error}") from None
        if measure:
            reports.append(_report(matrix, values, scale))
        set_quantized(matrix.module, matrix.parameter, values, scale)
    return reports


def _rounded(matrix: Matrix, scheme: Scheme, x: Tensor | None) -> tuple[Tensor, Tensor]:
    if x is None:
        return quantize_rows(matrix.values, scheme.form, clip=scheme.clip, bf16_scales=scheme.bf16_scales)
    fed = matrix_inputs(matrix, x)
    stack = matrix.values if matrix.values.dim() == 3 else matrix.values[None]
    options = {"clip": scheme.clip, "act_order": scheme.act_order, "bf16_scales": scheme.bf16_scales}
    pairs = [gptq(weight, hessian_of(rows), scheme.form, **options) for weight, rows in zip(stack, fed, strict=True)]
    values, scales = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    return (values, scales) if matrix.values.dim() == 3 else (values[0], scales[0])


class RowRounder:
    """Rounds rows to nearest while a checkpoint is read (a `model.fill.Rounder`)."""

    def __init__(self, scheme: Scheme, *, tied: bool) -> None:
        assert scheme.rounds_rows
        self.scheme, self.form, self.tied = scheme, scheme.form, tied
        self.finite: list[tuple[str, Tensor]] = []

    def chosen(self, name: str, part: nn.Module) -> Iterator[Matrix]:
        return self.scheme.chosen(part, name, tied=self.tied)

    def round_into(self, name: str, rows: Tensor, values: Tensor, scale: Tensor) -> None:
        """Mutates values and scale. Does not wait for the device."""
        options = {"clip": self.scheme.clip, "bf16": self.scheme.bf16_scales}
        self.finite.append((name, round_into(rows, values, scale, self.form, **options)))

    def check(self) -> None:
        """ValueError naming a weight, of those since the last check, that was not finite."""
        seen, self.finite = self.finite, []
        for name, finite in seen:
            try:
                check_finite(finite, self.form)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def hessian_of(inputs: Tensor) -> Tensor:
    """X^T X in fp32 of inputs [tokens, columns]."""
    columns = inputs.shape[-1]
    total = torch.zeros(columns, columns, device=inputs.device)
    for rows in inputs.split(8192):
        wide = rows.float()
        total += wide.T @ wide
    return total


def _report(matrix: Matrix, values: Tensor, scale: Tensor) -> MatrixReport:
    errors, sizes = row_errors(matrix.values, values, scale)
    relative = (errors / sizes.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
    worst = relative.topk(min(WORST, len(relative)))
    rows = tuple(zip(worst.indices.tolist(), worst.values.tolist(), strict=True))
    whole = (errors.double().sum() / sizes.double().sum().clamp_min(1e-300)).sqrt().item()
    return MatrixReport(matrix.name, tuple(matrix.values.shape), whole, rows)


def calibration_walk(
    scheme: Scheme,
    config: ModelConfig,
    dtype: torch.dtype,
    calibration: Tensor | None,
    device: torch.device | str,
) -> Walk | None:
    """Where gptq's calibration starts; None for methods without. ValueError where it is missing, or would need inputs
    that come too late.
    """
    if scheme.method != "gptq":
        return None
    if calibration is None:
        raise ValueError(
            "method='gptq' needs calibration: token ids [n_sequences, seq] of text like its future input; `plait "
            "quantize SRC DST --method gptq --calibration FILE` writes a checkpoint once and for all"
        )
    if config.tie_embeddings and scheme.head:
        raise ValueError("gptq can't quantize a tied head: the embedding is used before the head's inputs are known")
    return Walk(calibration, dtype, device)
