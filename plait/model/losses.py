"""The losses of training: next token, router balance, router z, and the activation loss of paper section 3.2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.model.stats import LayerStats
from plait.ops.cross_entropy import loss_and_gradient as loss_and_gradient  # for losses over parts of the tokens

IGNORE = -100


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy, fp32. logits [..., vocab_size]; labels [...] already the next tokens, IGNORE where there is
    none. Without a single label it is 0, and so are its gradients (the mean of nothing would be nan).
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    total = F.cross_entropy(logits.flatten(0, -2).to(wide), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp_min(1)


def shift_labels(labels: Tensor) -> Tensor:
    """Labels aligned with their own tokens [batch, seq] -> each position's next one, IGNORE at the end."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


Total = Callable[[Tensor], Tensor]


def here(x: Tensor) -> Tensor:
    """Seam: the total over all processes of a number each counts for its own tokens; on one process, that number."""
    return x


def balance_loss(router_logits: Sequence[Tensor], top_k: int, total: Total = here) -> Tensor:
    """Load balancing, pooled over layers as the family defines it: n_experts * sum_e f_e P_e, top_k at perfect balance.

    Over the rows of all layers [tokens, n_experts] together, f_e is how many times expert e was chosen per row and P_e
    its mean probability. 0 without any mixture layer. Over several processes, each gets its tokens' share of the sum.
    """
    if not router_logits:
        return torch.zeros(())
    logits = torch.cat([rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in router_logits])
    probabilities = logits.softmax(-1)
    chosen = probabilities.topk(top_k, dim=-1).indices
    n_rows = total(logits.new_full((), float(len(logits))))
    experts = torch.arange(logits.shape[1], device=logits.device)
    counts = (chosen[..., None] == experts).sum((0, 1))  # bincount would wait for the device
    frequency = total(counts.to(logits.dtype)) / n_rows
    return logits.shape[1] * (frequency * probabilities.sum(0)).sum() / n_rows


def router_z_loss(router_logits: Sequence[Tensor], total: Total = here) -> Tensor:
    """Mean square of the router's log-partition (ST-MoE, equation 5): keeps router logits small. Over several
    processes, each gets its tokens' share of the mean.
    """
    if not router_logits:
        return torch.zeros(())
    logits = torch.cat([rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in router_logits])
    n_rows = total(logits.new_full((), float(len(logits))))
    return logits.logsumexp(-1).square().sum() / n_rows


def activation_loss(stats: Sequence[LayerStats], mamba_layers: Sequence[int]) -> Tensor:
    """Paper section 3.2: the mean square of each Mamba mixer's output and of each mixture's expert outputs, summed over
    sites.

    Multiply by alpha (the paper used 1e-5, harmless up to at least 1e-3). `mamba_layers` are the indices of Mamba
    layers.
    """
    sites = [stats[i].mixer.mean_square for i in mamba_layers]
    sites += [layer.experts.mean_square for layer in stats if layer.experts is not None]
    return torch.stack(sites).sum() if sites else torch.zeros(())
