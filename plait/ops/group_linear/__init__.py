"""x W^T where columns of W share scales in groups, or W is int4: the forms of GPTQ, which ExpertsInt8 is compared with
(paper section 3.1, Figure 2).

Few rows read every weight once, so there the weights are widened on their way into the product. With more rows they are
widened first, and the product is the library's.
"""

import torch
from torch import Tensor

from plait.ops.dispatch import Implementation, anywhere, lazily, pick, why_not_triton
from plait.ops.group_linear import reference


def _why_not_triton(probe: Tensor) -> str | None:
    if torch.is_grad_enabled() and probe.requires_grad:
        return "has no gradient"
    return why_not_triton(probe, (torch.bfloat16, torch.float16, torch.float32))


IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.group_linear.triton", "group_linear"), _why_not_triton),
    "reference": Implementation(reference.group_linear, anywhere),
}
WIDENING = {
    "triton": Implementation(lazily("plait.ops.group_linear.triton", "widened"), _why_not_triton),
    "reference": Implementation(reference.widened, anywhere),
}


FEW_ROWS = 32  # up to which a row reads its weights for itself, neighbours from the cache; not tuned


def is_fused(x: Tensor, n_rows: int) -> bool:
    """Whether products of n_rows rows like x read the weights as they lie: rows are few and there is a kernel."""
    return n_rows <= FEW_ROWS and pick("group_linear", IMPLEMENTATIONS, x) is IMPLEMENTATIONS["triton"].run


def group_linear(x: Tensor, values: Tensor, scale: Tensor, expert_ids: Tensor | None = None) -> Tensor:
    """x [rows, width] times the transpose of a weight: -> [rows, n_out], accumulated in fp32 or better, in x.dtype.

    values: int8 or fp8 [n_out, width], or int4: int32 [n_out, width / 8], eight to a word, each plus 8, the first in
    the lowest bits. scale [n_out, groups] fp32, or [n_out] for one group. With expert_ids [rows] both are stacked,
    [n_experts, ...], and each row meets the weight of its expert.
    """
    return pick("group_linear", IMPLEMENTATIONS, x)(x, values, scale, expert_ids)


def widened(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights [..., n_out, width] that such values [..., n_out, width or width / 8] stand for, multiplied in fp32
    and rounded once.
    """
    return pick("group_linear", WIDENING, scale)(values, scale, dtype)
