"""Writing a checkpoint's weights while they come, in files of a bounded size."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from plait.model.weight_files import INDEX, METADATA, WEIGHTS

STORED = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def save_file(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, wider types first and else in the order given.

    The library's own order is by name: experts come as 0, 1, 10, 11, …, 2, and gates far from the ups they are used
    with. In a model's order, all matrices of a layer lie as they are used, and can be mapped (`model.fill`). The file
    is not whole until this returns. ValueError for a dtype that safetensors doesn't have.
    """
    if unknown := [name for name, tensor in tensors.items() if tensor.dtype not in STORED]:
        raise ValueError(f"tensor {unknown[0]} has dtype {tensors[unknown[0]].dtype}, which safetensors doesn't have")
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())  # stable
    header: dict[str, object] = {METADATA: {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": STORED[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class WeightWriter:
    """Collects tensors and writes a file whenever the next would make it larger than `shard_bytes`.

    Files have their final names, and an index if there are several, after `finish`. The folder must be one that nobody
    reads yet.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.bytes_written = 0
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._files: list[list[str]] = []  # names of the tensors in each

    def add(self, name: str, tensor: Tensor) -> None:
        """The tensor is kept until its file is written: give a copy of what will change."""
        n_bytes = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + n_bytes > self.shard_bytes:
            self._write()
        self._pending[name] = tensor.detach().to("cpu").contiguous()
        self._pending_bytes += n_bytes

    def _write(self) -> None:
        path = self.folder / _numbered(len(self._files), None)
        save_file(self._pending, path)
        self._files.append(list(self._pending))
        self.bytes_written += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0

    def finish(self) -> None:
        """Write the rest, and give the files their names."""
        if self._pending:
            self._write()
        n = len(self._files)
        names = [WEIGHTS] if n == 1 else [_numbered(i, n) for i in range(n)]
        for i, name in enumerate(names):
            os.rename(self.folder / _numbered(i, None), self.folder / name)
        if n > 1:
            weight_map = {tensor: name for name, held in zip(names, self._files, strict=True) for tensor in held}
            index = {"metadata": {"total_size": self.bytes_written}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _numbered(index: int, of: int | None) -> str:
    return f"model-{index + 1:05}" + (".part" if of is None else f"-of-{of:05}.safetensors")
