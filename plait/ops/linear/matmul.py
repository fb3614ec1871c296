"""x W^T by the library's product. int8 weights meet the activations as they are (each is exact in bf16 and fp32) and
the scale multiplies the result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return F.linear(x, weight)
    if x.dtype == torch.float16:  # values up to 127, summed before they are scaled, would pass 65504; 1/128 is exact
        return (F.linear(x, weight.to(x.dtype).div_(128)) * (scale * 128)).to(x.dtype)
    return (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)


def look_up(ids: Tensor, table: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    rows = F.embedding(ids, table)
    return rows.to(dtype) if scale is None else (rows.float() * scale[ids][..., None]).to(dtype)
