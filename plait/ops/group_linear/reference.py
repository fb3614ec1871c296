"""Weights made whole before the product."""

import torch
from torch import Tensor


def group_linear(x: Tensor, values: Tensor, scale: Tensor, expert_ids: Tensor | None) -> Tensor:
    if expert_ids is None:
        return x @ widened(values, scale, x.dtype).T
    return (widened(values[expert_ids], scale[expert_ids], x.dtype) @ x[..., None]).squeeze(-1)


def widened(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    wide = (of_words(values) if values.dtype == torch.int32 else values).to(torch.promote_types(dtype, scale.dtype))
    return (wide * column_scales(scale, wide.shape)).to(dtype)


def column_scales(scale: Tensor, shape: torch.Size) -> Tensor:
    """Scales as they multiply a weight of `shape`: [..., rows, 1], or of that shape where they are of groups."""
    if scale.dim() < len(shape):
        return scale[..., None]
    return scale.repeat_interleave(shape[-1] // scale.shape[-1], -1)


def of_words(words: Tensor) -> Tensor:
    """int32 [..., n] -> the int8 [..., 8 n] in [-8, 7] that they hold."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return (((words[..., None] >> shifts) & 15) - 8).to(torch.int8).flatten(-2)
