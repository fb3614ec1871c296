"""The shapes of an op's arguments, checked at its door. Kernels read through pointers: a tensor of another shape would
be memory of somebody else, and the result a number.

    SHAPES = Shapes("rms_norm", x="... d", weight="d")
    SHAPES.check(x, weight)      # ValueError: rms_norm: weight has shape [7]; it must be [d] = [8]
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

_DIM = re.compile(r"(?:(\d+)\*)?([a-z_]+)([+-]\d+)?")
INTEGERS = {"cu_seqlens", "slots", "expert_ids", "page_table", "context_lens", "export_at"}
REMEMBERED = 4096  # kinds of calls that passed


class _Dim(NamedTuple):
    """factor * name + more, as in 2*d_ff and n_seqs+1."""

    name: str
    factor: int
    more: int


class Shapes:
    """Of one op: for each tensor in turn the names of its dims. A name means the same number everywhere.

    "... d" lets any dims come first. The first tensor is of floating type and says on which device all of them lie.
    """

    def __init__(self, op: str, **tensors: str) -> None:
        self.op = op
        self._specs = tensors
        self._tensors = [(name, spec.startswith("..."), _parsed(spec)) for name, spec in tensors.items()]
        self._passed: set[tuple[object, ...]] = set()

    def check(self, *tensors: Tensor | None) -> None:
        """ValueError that names the first tensor that doesn't fit; None is one that was not given. Not checked: what a
        tensor holds. While torch.compile looks on nothing is.
        """
        if torch.compiler.is_compiling():
            return
        key = tuple([None if t is None else (t.shape, t.device, t.dtype) for t in tensors])
        if key not in self._passed:  # what has passed once passes again: 1 to 3 us a call
            self._check(tensors)
            if len(self._passed) >= REMEMBERED:
                self._passed.clear()
            self._passed.add(key)

    def _check(self, tensors: tuple[Tensor | None, ...]) -> None:
        first, sizes = tensors[0], dict[str, int]()
        assert first is not None
        for (name, leading, dims), tensor in zip(self._tensors, tensors, strict=True):
            if tensor is None:
                continue
            n_more = tensor.dim() - len(dims)
            if n_more < 0 or (n_more and not leading):
                self._complain(name, tensor, sizes)
            for (dim, factor, more), size in zip(dims, tensor.shape[n_more:], strict=True):
                if size != factor * sizes.setdefault(dim, (size - more) // factor) + more:
                    self._complain(name, tensor, sizes)
            if tensor.device != first.device:
                raise ValueError(
                    f"{self.op}: {name} lies on {tensor.device} and {self._tensors[0][0]} on {first.device}; all "
                    "tensors must lie on one device"
                )
            if tensor.is_floating_point() and name in INTEGERS:
                raise ValueError(f"{self.op}: {name} has dtype {tensor.dtype}; it must be int32 or int64")
        if not first.is_floating_point():
            raise ValueError(f"{self.op}: {self._tensors[0][0]} has dtype {first.dtype}; it must be a floating type")

    def _complain(self, name: str, tensor: Tensor, sizes: dict[str, int]) -> None:
        _, _, dims = next(own for own in self._tensors if own[0] == name)
        words = self._specs[name].split()
        numbers = words[: len(words) - len(dims)]  # "..."
        for word, (dim, factor, more) in zip(words[-len(dims) :], dims, strict=True):
            numbers.append(str(factor * sizes[dim] + more) if dim in sizes else word)
        same = "" if numbers == words else f" = [{', '.join(numbers)}]"
        raise ValueError(f"{self.op}: {name} has shape {list(tensor.shape)}; it must be [{', '.join(words)}]{same}")


def _parsed(spec: str) -> tuple[_Dim, ...]:
    dims = []
    for word in spec.removeprefix("...").split():
        found = _DIM.fullmatch(word)
        assert found is not None, word
        dims.append(_Dim(found[2], int(found[1] or 1), int(found[3] or 0)))
    return tuple(dims)
