"""Filling a part of a model from a checkpoint's files: by copies, from the files' own pages, or rounded on the way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from plait.model import quantization_config
from plait.model.quantization_config import Matrix
from plait.model.quantized import WeightFormat, set_quantized
from plait.model.upload import CHUNK_BYTES, Uploader
from plait.model.weight_files import WeightFiles


@dataclass(frozen=True)
class Piece:
    """One public tensor, as a part of one of ours."""

    name: str
    part: Callable[[Tensor], Tensor]  # ours -> a view of the public tensor's shape


Source = tuple[Piece, str]  # a piece of one of our tensors, and what the files call it


class Rounder(Protocol):
    """Seam: quantizes weights whose rows are rounded alone, while they are read, so that no weight is ever in memory in
    full precision.
    """

    form: WeightFormat

    def chosen(self, name: str, part: nn.Module) -> Iterable[Matrix]:
        """The weights of a part of a model (`name`) to round."""
        ...

    def round_into(self, name: str, rows: Tensor, values: Tensor, scale: Tensor) -> None:
        """Some rows [rows, columns] of the weight `name`, on the model's device. Mutates values and scale."""
        ...


def quantized_on_meta(part: nn.Module, prefix: str, rounder: Rounder) -> dict[str, torch.dtype]:
    """Give the chosen weights of a part on the meta device their quantized form, and return the dtypes they had, by
    name. Mutates the part.
    """
    dtypes = {}
    for matrix in list(rounder.chosen(prefix, part)):
        dtypes[matrix.name] = matrix.values.dtype
        set_quantized(matrix.module, matrix.parameter, *rounder.form.empty(matrix.values.shape))
    return dtypes


def round_rows(
    name: str, source: Tensor, values: Tensor, scale: Tensor, dtype: torch.dtype, uploader: Uploader, rounder: Rounder
) -> None:
    """Bring a weight [..., rows, columns] to the device some rows at a time, cast to `dtype`, rounded into `values` and
    `scale`. Mutates these two.
    """
    rows = source.reshape(-1, source.shape[-1])
    flat_values, flat_scale = values.flatten(0, -2), scale.flatten(0, values.dim() - 2)
    step = max(1, CHUNK_BYTES // (rows.shape[1] * dtype.itemsize))
    for first in range(0, len(rows), step):
        some = slice(first, first + step)
        rounder.round_into(name, uploader.brought(rows[some], dtype), flat_values[some], flat_scale[some])


def allocated(part: nn.Module, device: torch.device | str) -> nn.Module:
    """As part.to_empty, which imports the compiler's half for tensors without memory (0.8 s). Mutates it."""
    return part._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))


@torch.no_grad()
def fill(
    part: nn.Module,
    prefix: str,
    sources: dict[str, list[Source]],
    files: WeightFiles,
    uploader: Uploader,
    mapped: bool,
    rounder: Rounder | None = None,
) -> nn.Module:
    """Give a part of the model that is on the meta device memory, and fill it from the files or let it use their pages.
    Mutates and returns it.
    """
    dtypes = {} if rounder is None else quantized_on_meta(part, prefix, rounder)
    allocated(part, uploader.device)
    tensors = part.state_dict(prefix=f"{prefix}.", keep_vars=True)
    with files.opened() as read:
        for name in [name for name in tensors if name.removesuffix("_scale") not in dtypes or name in dtypes]:
            tensor = tensors[name]
            if name in dtypes:
                assert rounder is not None
                for piece, spelling in sources[name]:
                    values, scale = piece.part(tensor.detach()), piece.part(tensors[f"{name}_scale"])
                    round_rows(name, read(spelling), values, scale, dtypes[name], uploader, rounder)
                continue
            views = [piece.part(tensor.detach()) for piece, _ in sources[name]]
            if mapped and _in_order(views, tensor):
                pages = [files.in_pages(spelling, tensor) for _, spelling in sources[name]]
                if (there := _as_one([page for page in pages if page is not None], tensor)) is not None:
                    tensor.data = there
                    continue
            for view, (_, spelling) in zip(views, sources[name], strict=True):
                uploader.copy(view, quantization_config.decode(read(spelling), view.dtype))
    return part


def _as_one(parts: list[Tensor], like: Tensor) -> Tensor | None:
    """The parts as one tensor of that shape, if they lie one behind another; stacked matrices may lie apart, if evenly:
    an expert's gate and up are neighbours in a file, and its down stands between them and the next expert's.
    """
    n_stacked = len(like) if like.dim() == 3 else 1
    if not parts or len(parts) % n_stacked or sum(part.nbytes for part in parts) != like.nbytes:
        return None
    each = len(parts) // n_stacked
    stacks = [parts[i : i + each] for i in range(0, len(parts), each)]
    starts = [stack[0].storage_offset() for stack in stacks]
    step = starts[1] - starts[0] if n_stacked > 1 else like.numel()
    if step < like.numel() // n_stacked or any(b - a != step for a, b in itertools.pairwise(starts)):
        return None
    if not all(_in_order(stack, stack[0]) for stack in stacks):
        return None
    if len({part.untyped_storage().data_ptr() for part in parts}) > 1:  # evenly by chance
        return None
    return parts[0].as_strided(like.shape, (step, *like.stride()[1:]) if n_stacked > 1 else like.stride())


def _in_order(parts: list[Tensor], whole: Tensor) -> bool:
    """Whether the parts lie one behind another in one memory, from where `whole` begins."""
    at = whole.data_ptr()
    for part in parts:
        if part.data_ptr() != at or not part.is_contiguous():
            return False
        if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():  # neighbours by chance
            return False
        at += part.nbytes
    return True
