"""How quantized weights lie in memory: values of one byte or less, and fp32 scales (paper section 3.1).

A weight [..., rows, columns] is `values * scale`, with one scale per row, or per row and group of columns:

    int8  torch.int8, in [-127, 127]
    fp8   torch.float8_e4m3fn, up to 448
    int4  torch.int32 [..., rows, columns / 8]: eight of [-8, 7] to a word, each plus 8, the first in the lowest bits

Scales are [..., rows], or [..., rows, groups] for groups of equally many columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from plait.ops.group_linear import widened
from plait.ops.group_linear.reference import column_scales as column_scales  # for those who round

Kind = Literal["int8", "fp8", "int4"]
KINDS: tuple[Kind, ...] = ("int8", "fp8", "int4")
LARGEST: dict[Kind, float] = {"int8": 127, "fp8": 448, "int4": 7}
DTYPES: dict[Kind, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.int32}
INT4_PER_WORD = 8


@dataclass(frozen=True)
class WeightFormat:
    """What a quantized weight is made of. group: columns that share a scale; None: a whole row does."""

    kind: Kind = "int8"
    group: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}")
        if self.group is not None and (self.group < 8 or self.group % 8):
            raise ValueError(f"group={self.group} must be None (a scale per row) or a multiple of 8")

    def check(self, columns: int) -> None:
        """ValueError for a width that groups, or words of int4, don't divide."""
        if self.kind == "int4" and columns % INT4_PER_WORD:
            raise ValueError(f"int4 packs {INT4_PER_WORD} columns to a word; {columns} is no multiple of it")
        if self.group is not None and columns % self.group:
            raise ValueError(f"group={self.group} does not divide {columns} columns; give one that does, or none")

    def empty(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Values and scales of a weight of that shape, on the meta device. ValueError for columns that don't divide."""
        self.check(shape[-1])
        *rows, columns = shape
        width = columns // INT4_PER_WORD if self.kind == "int4" else columns
        groups = [] if self.group is None else [columns // self.group]
        return (
            torch.empty(*rows, width, dtype=DTYPES[self.kind], device="meta"),
            torch.empty(*rows, *groups, dtype=torch.float32, device="meta"),
        )


def set_quantized(module: nn.Module, name: str, values: Tensor, scale: Tensor) -> None:
    """Replace the parameter `name` by quantized values, and the buffer `name`_scale by their scales."""
    assert values.dtype in DTYPES.values()
    assert scale.dtype == torch.float32
    assert scale.shape[: values.dim() - 1] == values.shape[:-1]
    setattr(module, name, nn.Parameter(values, requires_grad=False))
    setattr(module, f"{name}_scale", scale)


def is_per_row(values: Tensor, scale: Tensor) -> bool:
    """Whether kernels can multiply by the values as they are, and their results by the scales."""
    return values.dtype != torch.int32 and scale.dim() < values.dim()


def dequantized(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights that the values stand for, multiplied in fp32 and rounded once."""
    return widened(values, scale, dtype)


def pack_int4(values: Tensor) -> Tensor:
    """int8 [..., columns] in [-8, 7] -> int32 [..., columns / 8]. `group_linear` unpacks them."""
    nibbles = (values.to(torch.int32) + 8).unflatten(-1, (-1, INT4_PER_WORD))
    packed = nibbles[..., 0]
    for i in range(1, INT4_PER_WORD):
        packed = packed | (nibbles[..., i] << (4 * i))
    return packed
