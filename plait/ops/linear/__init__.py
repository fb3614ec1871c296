"""x W^T for the projections and the head: one token or many, weights as they are or int8 with a scale per output row.

One token reads every weight once, so what counts there is memory bandwidth, and with many tokens it is arithmetic; an
implementation picks its way by the number of tokens.
"""

import torch
from torch import Tensor

from plait.ops.dispatch import Implementation, anywhere, pick, why_not_triton
from plait.ops.linear import matmul, native, reference
from plait.ops.shapes import Shapes

_LINEAR = Shapes("linear", x="... width", weight="n_out width", scale="n_out")


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.bfloat16, torch.float16, torch.float32))


# Imported when first called, so that this package needs no Triton; by statement, which torch.compile can follow.
def _triton(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    from plait.ops.linear.triton import linear as run

    return run(x, weight, scale)


IMPLEMENTATIONS = {
    "triton": Implementation(_triton, _why_not_triton),
    "native": Implementation(native.linear, native.why_not),
    "matmul": Implementation(matmul.linear, anywhere),
    "reference": Implementation(reference.linear, anywhere),
}
# Not within the tolerance of the others: runs only when named (PLAIT_OPS=linear=int8_activations).
CHOICES = IMPLEMENTATIONS | {"int8_activations": Implementation(native.linear_int8_activations, native.why_not)}


def linear(x: Tensor, weight: Tensor, *, scale: Tensor | None = None) -> Tensor:
    """x [..., width] times the transpose of weight [n_out, width], times scale [n_out] -> [..., n_out].

    The scale is fp32 and belongs to int8 weights. Accumulates in fp32 or better, returns x.dtype. Differentiable in x,
    and in weights that are not int8.
    """
    if not torch.compiler.is_compiling() and (weight.element_size() == 1) != (scale is not None):
        rule = "need a scale" if scale is None else "take none"
        raise ValueError(f"linear: weights of {weight.dtype} {rule}")
    _LINEAR.check(x, weight, scale)
    run = pick("linear", CHOICES, x)
    if torch.compiler.is_compiling() and run is not _triton and run is not matmul.linear:
        from plait.ops.compiled import LINEAR

        return LINEAR(x, weight, scale)[0]
    return run(x, weight, scale)


def look_up(ids: Tensor, table: Tensor, dtype: torch.dtype, *, scale: Tensor | None = None) -> Tensor:
    """Rows of table [n, width] by ids [...] -> [..., width] of dtype, times scale [n] of an int8 table.

    IndexError for an id outside the table where the kernels can tell (on the CPU).
    """
    if torch.compiler.is_compiling() and not table.is_cuda:
        from plait.ops.compiled import LOOK_UP

        return LOOK_UP(ids, table, scale, table.new_empty(0, dtype=dtype))[0]
    if native.can_look_up(table, scale, dtype):
        return native.look_up(ids, table, scale, dtype)
    return matmul.look_up(ids, table, scale, dtype)
