"""Filling a part of a model from a checkpoint's files: by copies, or by using the files' own pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plait.model import quantization_config
from plait.model.upload import Uploader
from plait.model.weight_files import WeightFiles


@dataclass(frozen=True)
class Piece:
    """One public tensor, as a part of one of ours."""

    name: str
    part: Callable[[Tensor], Tensor]  # ours -> a view of the public tensor's shape


Source = tuple[Piece, str]  # a piece of one of our tensors, and what the files call it


def allocated(part: nn.Module, device: torch.device | str) -> nn.Module:
    """As part.to_empty, which imports the compiler's half for tensors without memory (0.8 s). Mutates it."""
    return part._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))


@torch.no_grad()
def fill(
    part: nn.Module, prefix: str, sources: dict[str, list[Source]], files: WeightFiles, uploader: Uploader, mapped: bool
) -> None:
    """Copy the files into the memory of a part of the model, or let it use theirs. Mutates it."""
    with files.opened() as read:
        for name, tensor in part.state_dict(prefix=f"{prefix}.", keep_vars=True).items():
            views = [piece.part(tensor.detach()) for piece, _ in sources[name]]
            if mapped and _in_order(views, tensor):
                pages = [files.in_pages(spelling, tensor) for _, spelling in sources[name]]
                found = [there for there in pages if there is not None]
                if len(found) == len(views) and _in_order(found, found[0]):
                    tensor.data = found[0].as_strided(tensor.shape, tensor.stride())
                    continue
            for view, (_, spelling) in zip(views, sources[name], strict=True):
                uploader.copy(view, quantization_config.decode(read(spelling), view.dtype))


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
