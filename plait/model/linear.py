"""A projection through `ops.linear`, which picks its way by the number of tokens; its weight may be quantized."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.model.quantized import dequantized, is_per_row
from plait.ops.group_linear import group_linear, is_fused
from plait.ops.linear import linear, look_up
from plait.ops.linear.onednn import route_fp32_products as route_fp32_products  # for those who run or train models


class Linear(nn.Linear):
    """nn.Linear, [..., in_features] -> [..., out_features]; one token runs at the speed of memory.

    `weight` may be quantized (`set_quantized`), with fp32 scales in `weight_scale`; then it takes no gradient.
    """

    weight_scale: Tensor | None  # [out_features], or [out_features, groups]

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_buffer("weight_scale", None)

    def reset_parameters(self) -> None:
        """Left as they are: `init_weights` or `load_model` fills them. (torch's own way imports its compiler, too.)"""

    def forward(self, x: Tensor) -> Tensor:
        y = scaled_linear(x, self.weight, self.weight_scale)
        return y if self.bias is None else y + self.bias


class Embedding(nn.Embedding):
    """nn.Embedding whose weight may be quantized: then the rows that are looked up come in fp32."""

    weight_scale: Tensor | None  # [n], or [n, groups]

    def __init__(self, n: int, d: int) -> None:
        super().__init__(n, d)
        self.register_buffer("weight_scale", None)

    def reset_parameters(self) -> None:
        """As in `Linear`."""

    def forward(self, ids: Tensor) -> Tensor:
        if self.weight_scale is None:
            return look_up(ids, self.weight, self.weight.dtype)
        if self.weight.dtype == torch.int8 and is_per_row(self.weight, self.weight_scale):
            return look_up(ids, self.weight, torch.float32, scale=self.weight_scale)
        return dequantized(self.weight[ids], self.weight_scale[ids], torch.float32)


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """x [..., width] times the transpose of a weight as `model.quantized` has them, or one in full precision."""
    if scale is None:
        return linear(x, weight)
    if is_per_row(weight, scale):
        return linear(x, weight, scale=scale)
    rows = x.reshape(-1, x.shape[-1])
    if is_fused(rows, rows.shape[0]):
        return group_linear(rows, weight, scale).view(*x.shape[:-1], -1)
    return linear(x, dequantized(weight, scale, x.dtype))
