"""Few tokens in C at the speed of memory (plait/native/src/linear.c), many through the library's product (oneDNN)."""

from __future__ import annotations

import torch
from torch import Tensor

from plait import native
from plait.native import why_not as why_not  # for IMPLEMENTATIONS
from plait.ops.dispatch import outside_graphs
from plait.ops.linear import blocked, matmul

FEW_TOKENS = 8  # beyond, the product is limited by arithmetic and oneDNN's is faster
MAX_WIDTH = 32768  # of int8 rows: sums of limbs stay within int32

INTEGERS = ("n_tokens", "n_out", "width", "x_stride", "x_type", "weight_type", "y_type", "bits", "n_threads")


class LinearArgs(native.Arguments):
    """linear_args of src/linear.c, in its order."""

    _fields_ = native.fields(INTEGERS, ("x", "weight", "scale", "y"))

    def read_once(self) -> list[tuple[int, int]]:
        return [(self.weight, self.n_out * self.width * native.SIZES[self.weight_type])]


def can_multiply(x: Tensor, weight: Tensor, scale: Tensor | None) -> bool:
    """Whether the C kernels take these, were they few tokens: no gradient wanted, contiguous weights of known types."""
    if x.numel() == 0 or weight.shape[1:] != x.shape[-1:] or weight.dtype not in native.TYPES:
        return False
    if (scale is None) == (weight.dtype == torch.int8) or not weight.is_contiguous():
        return False
    if scale is not None and (x.shape[-1] > MAX_WIDTH or scale.dtype != torch.float32 or not scale.is_contiguous()):
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))


@outside_graphs
def linear(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    return _linear(x, weight, scale, bits=24)


@outside_graphs
def linear_int8_activations(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """Activations rounded to int8, one scale per token: faster with int8 weights, and about 1 % of error."""
    return _linear(x, weight, scale, bits=8)


def _linear(x: Tensor, weight: Tensor, scale: Tensor | None, *, bits: int) -> Tensor:
    if not can_multiply(x, weight, scale):
        return matmul.linear(x, weight, scale)
    if x.numel() <= FEW_TOKENS * x.shape[-1]:
        return _multiply(x, weight, scale, bits=bits)
    flat = native.rows(x.reshape(-1, x.shape[-1]), x.dtype)
    return blocked.linear(flat, weight, scale, round_activations=bits == 8).view(*x.shape[:-1], weight.shape[0])


def _multiply(x: Tensor, weight: Tensor, scale: Tensor | None, *, bits: int) -> Tensor:
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    flat = native.rows(flat, x.dtype)
    (n_tokens, width), n_out, kind = flat.shape, weight.shape[0], native.TYPES[x.dtype]
    y = torch.empty((*x.shape[:-1], n_out), dtype=x.dtype)
    args = LinearArgs(
        n_tokens, n_out, width, flat.stride(0), kind, native.TYPES[weight.dtype], kind, bits, torch.get_num_threads(),
        flat.data_ptr(), weight.data_ptr(), None if scale is None else scale.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    native.call("linear", args)
    return y


class EmbeddingArgs(native.Arguments):
    """embedding_args of src/embedding.c, in its order."""

    _fields_ = native.fields(("n_ids", "n_rows", "width", "type", "table_type"), ("ids", "table", "scale", "y"))


@outside_graphs
def look_up(ids: Tensor, table: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    ids, table = native.dense(ids, torch.int64), native.dense(table, table.dtype)
    scale = None if scale is None else native.dense(scale, torch.float32)
    y = torch.empty((*ids.shape, table.shape[1]), dtype=dtype)
    args = EmbeddingArgs(ids.numel(), *table.shape, native.TYPES[dtype], native.TYPES[table.dtype],
                         *map(native.pointer, (ids, table, scale, y)))  # fmt: skip
    native.call("embedding", args)
    return y


def can_look_up(table: Tensor, scale: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether `look_up` takes these: no gradient wanted, a table it knows, results in fp32 or bf16."""
    if native.why_not(torch.empty(0, dtype=dtype, device=table.device)) is not None or table.dtype not in native.TYPES:
        return False
    if (scale is None) == (table.dtype == torch.int8) or (scale is not None and scale.dim() != 1):
        return False
    return not (torch.is_grad_enabled() and table.requires_grad)
