"""Next-token loss from hidden states, a chunk of tokens at a time: the logits of all tokens never exist together.

256K tokens of a 64K vocabulary would be 64 GiB of fp32 logits. A chunk's gradient is computed along with its loss, so
nothing is kept for the backward pass but the gradients of the hidden states and of the head. The head's rows may be
split over processes (tensor parallelism).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plait.model.losses import IGNORE, loss_and_gradient
from plait.parallel.collectives import Group, summed

CHUNK_TOKENS = 2048
FEW_CHUNKS = 8  # whose gradients of the head are summed in the head's own type, as gradients of passes are


def cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    z_weight: float = 0.0,
    group: Group | None = None,
    chunk: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Sums over the tokens that have a label: cross entropy + z_weight * logsumexp^2 (differentiable), and
    logsumexp^2 alone (not).

    hidden [tokens, d_model]; labels [tokens], IGNORE for none; head_weight [vocab_size, d_model], or with `group` this
    process's rows of it. fp32 (or wider, if hidden is). With `group`, all processes give the same hidden states and
    labels and get the same sums; the gradient of `hidden` is then this process's part.
    """
    total, squares = _ChunkedCrossEntropy.apply(hidden, head_weight, labels, z_weight, group, chunk)
    return total, squares


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, z_weight: float, group: Group | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        wanted = hidden.requires_grad or weight.requires_grad
        grad_hidden = torch.empty_like(hidden) if wanted else None
        narrow = weight.dtype == hidden.dtype and len(hidden) <= FEW_CHUNKS * chunk
        grad_weight = None
        if wanted:
            grad_weight = torch.empty_like(weight) if narrow else torch.zeros_like(weight, dtype=wide)
        total, squares = hidden.new_zeros((), dtype=wide), hidden.new_zeros((), dtype=wide)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            h = hidden[rows]
            logits = h @ weight.to(h.dtype).T
            if group is None or group.size() == 1:
                loss, logsumexp = loss_and_gradient(logits, labels[rows], z_weight=z_weight)
                grad = logits
            else:
                loss, logsumexp, grad = _of_parts(logits.to(wide), labels[rows], z_weight, group)
            square = logsumexp.square().sum()
            total += loss.sum() + z_weight * square
            squares += square
            if grad_hidden is not None and grad_weight is not None:
                grad = grad.to(h.dtype)
                torch.mm(grad, weight.to(h.dtype), out=grad_hidden[rows])
                if narrow:
                    grad_weight.addmm_(grad.T, h, beta=float(start > 0))
                else:
                    grad_weight += grad.T @ h
            del logits, grad  # before the next chunk's
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.used = False  # backward scales them in place
        ctx.mark_non_differentiable(squares)
        return total, squares

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.used:
            raise RuntimeError("the loss went backward twice; compute it again")
        ctx.used = True
        kept = ctx.saved_tensors
        for grad in kept:  # as a list: a single tensor, by a number on the device, takes twice as long
            torch._foreach_mul_([grad], grads[0].to(grad.dtype))
        return (*kept, None, None, None, None)


def _of_parts(logits: Tensor, labels: Tensor, z_weight: float, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """As `loss_and_gradient`, from this process's columns of the logits; the gradient is a tensor of its own."""
    real = labels != IGNORE
    target = labels - group.rank() * logits.shape[1]
    mine = real & (target >= 0) & (target < logits.shape[1])
    target = target.masked_fill(~mine, 0)[:, None]
    top = logits.amax(-1)
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    chosen = logits.gather(1, target)[:, 0] * mine
    sums = summed(torch.stack([(logits - top[:, None]).exp().sum(-1), chosen]), group)
    logsumexp = top + sums[0].log()
    grad = (logits - logsumexp[:, None]).exp_() * (1 + 2 * z_weight * logsumexp)[:, None]
    grad.scatter_add_(1, target, -mine.to(grad.dtype)[:, None])
    return (logsumexp - sums[1]) * real, logsumexp * real, grad * real[:, None]
