"""Cross entropy and its gradient, slow and obvious."""

import torch
from torch import Tensor


def loss_and_gradient(logits: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, Tensor]:
    real, label = labels >= 0, labels.clamp_min(0)[:, None]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = wide.logsumexp(-1)
    loss = lse - wide.gather(1, label)[:, 0]
    gradient = (wide - lse[:, None]).exp_().mul_((1 + 2 * z_weight * lse)[:, None])
    gradient.scatter_add_(1, label, torch.full_like(gradient[:, :1], -1.0))
    logits.copy_(gradient.mul_(real[:, None]))
    return loss * real, lse * real
