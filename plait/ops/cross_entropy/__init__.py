"""Cross entropy of rows of logits together with its gradient, which takes the logits' place: two reads of them, one
write.
"""

import torch
from torch import Tensor

from plait.ops.cross_entropy import reference
from plait.ops.dispatch import Implementation, anywhere, pick, why_not_triton


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.float32, torch.bfloat16, torch.float16))


# Imported when first called, so that this package needs no Triton.
def _triton(logits: Tensor, labels: Tensor, z_weight: float) -> tuple[Tensor, Tensor]:
    from plait.ops.cross_entropy.triton import loss_and_gradient as run

    return run(logits, labels, z_weight)


IMPLEMENTATIONS = {
    "triton": Implementation(_triton, _why_not_triton),
    "reference": Implementation(reference.loss_and_gradient, anywhere),
}


def loss_and_gradient(logits: Tensor, labels: Tensor, *, z_weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """Of each row, lse - logits[label] and lse, with lse = log sum exp(logits); both 0 where the label is negative.

    logits [rows, vocab_size] with rows that are contiguous, labels int64 [rows]. Mutates the logits: they become the
    gradient of the rows' sum of (lse - logits[label]) + z_weight * lse^2. Results are fp32 or wider. No gradient.
    """
    return pick("cross_entropy", IMPLEMENTATIONS, logits)(logits, labels, z_weight)
