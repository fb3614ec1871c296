"""Writing a checkpoint's weights while they come, in files of a bounded size."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from plait.model.weight_files import INDEX, WEIGHTS


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
        save_file(self._pending, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors writes for the owner only
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
