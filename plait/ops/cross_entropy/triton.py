"""Cross entropy and its gradient in plain Triton: a program a row, which it reads twice (the second time from the
cache) and overwrites.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import direct, next_power_of_2


@direct
@triton.jit
def _kernel(logits_ptr, labels_ptr, loss_ptr, lse_ptr, row_stride, width, z_weight, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    at = logits_ptr + row * row_stride
    column = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)  # of each lane
    total = tl.zeros([BLOCK], tl.float32)
    chosen = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        n = first + column
        x = tl.load(at + n, n < width, other=float("-inf")).to(tl.float32)
        above = tl.maximum(top, x)
        safe = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(top - safe) + tl.exp(x - safe)
        top = above
        chosen += tl.where(n == label, x, 0.0)
    largest = tl.max(top, axis=0)
    lse = largest + tl.log(tl.sum(total * tl.exp(top - largest), axis=0))
    real = label >= 0
    tl.store(loss_ptr + row, tl.where(real, lse - tl.sum(chosen, axis=0), 0.0))
    tl.store(lse_ptr + row, tl.where(real, lse, 0.0))
    factor = tl.where(real, 1.0 + 2.0 * z_weight * lse, 0.0)
    one = tl.where(real, 1.0, 0.0)
    for first in range(0, width, BLOCK):
        n = first + column
        x = tl.load(at + n, n < width, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(x - lse) * factor - tl.where(n == label, one, 0.0)
        tl.store(at + n, gradient.to(logits_ptr.dtype.element_ty), n < width)


def loss_and_gradient(logits: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, Tensor]:
    loss, lse = (torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(2))
    block = min(4096, next_power_of_2(logits.shape[1]))
    grid = (len(logits),)
    _kernel[grid](
        logits, labels, loss, lse, logits.stride(0), logits.shape[1], float(z_weight), BLOCK=block, num_warps=8
    )
    return loss, lse
