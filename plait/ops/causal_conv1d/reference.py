"""Depthwise causal convolution, one sequence at a time."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, initial_columns: Tensor | None
) -> tuple[Tensor, Tensor]:
    channels, d_conv = weight.shape
    outputs, columns = [x[:0]], []
    bounds = cu_seqlens.tolist()
    for i, (start, stop) in enumerate(pairwise(bounds)):
        before = x.new_zeros(channels, d_conv - 1) if initial_columns is None else initial_columns[i].to(x.dtype)
        inputs = torch.cat([before, x[start:stop].T], dim=1)  # [channels, d_conv - 1 + length]
        if start < stop:
            convolved = F.conv1d(inputs[None], weight[:, None].to(x.dtype), groups=channels)[0]
            outputs.append(F.silu(convolved if bias is None else convolved + bias[:, None]).T)
        columns.append(inputs[:, inputs.shape[1] - (d_conv - 1) :])
    return torch.cat(outputs).to(x.dtype), torch.stack(columns)


def causal_conv1d_update(x: Tensor, weight: Tensor, bias: Tensor | None, columns: Tensor, slots: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    window = torch.cat([columns[slots].to(x.dtype), x[:, :, None]], dim=2)
    columns[slots] = window[:, :, 1:].to(columns.dtype)
    total = (window * weight.to(wide)).sum(-1)
    return F.silu(total if bias is None else total + bias).to(x.dtype)


def columns_at(
    x: Tensor, cu_seqlens: Tensor, export_at: Tensor, d_conv: int, initial_columns: Tensor | None
) -> Tensor:  # fmt: skip
    lag = torch.arange(1 - d_conv, 0, device=x.device)  # the inputs at export_at + lag
    at = export_at.long()[:, None] + lag  # [n_seqs, d_conv - 1], in the sequence
    inside = x[(cu_seqlens[:-1].long()[:, None] + at).clamp(0, max(len(x) - 1, 0))]  # [n_seqs, d_conv - 1, channels]
    if initial_columns is None:
        before = torch.zeros_like(inside)
    else:
        column = (at + d_conv - 1).clamp(0, d_conv - 2)[:, :, None].expand_as(inside)
        before = initial_columns.transpose(1, 2).gather(1, column).to(x.dtype)
    return torch.where((at >= 0)[:, :, None], inside, before).transpose(1, 2).contiguous()
