"""The safetensors files of a checkpoint folder: what their headers say, and reading tensors from them.

Everything outside is untrusted: sizes come from headers that were checked, names in an index can't leave the folder,
and pickles are never opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
METADATA = "__metadata__"  # the header's entry that is no tensor
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8"}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
JSON_BYTES = 100_000_000  # what safetensors allows a header; the index of the 398B model takes less than 1 MB


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of one tensor."""

    file: Path
    dtype: str  # as safetensors spells it: F32, BF16, …
    shape: tuple[int, ...]


class WeightFiles:
    """The weights in a folder. ValueError for files that are missing, broken, or hold a tensor twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._pages: dict[Path, tuple[Tensor, dict[str, Any]]] = {}
        for path in _weight_files(folder):
            with _open(path) as handle:
                for name in handle.keys():  # noqa: SIM118 (not a dict)
                    if name in self.tensors:
                        raise ValueError(f"{path}: tensor {name} is also in {self.tensors[name].file.name}")
                    header = handle.get_slice(name)
                    self.tensors[name] = StoredTensor(path, header.get_dtype(), tuple(header.get_shape()))

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Tensor]]:
        """A function that reads one tensor. It keeps files mapped, and their pages count as this process's memory: open
        for one layer at a time.
        """
        handles: dict[Path, Any] = {}

        def read(name: str) -> Tensor:
            path = self.tensors[name].file
            if path not in handles:
                handles[path] = _open(path)
            return handles[path].get_tensor(name)

        try:
            yield read
        finally:
            handles.clear()

    def in_pages(self, name: str, like: Tensor) -> Tensor | None:
        """The stored tensor where it lies, mapped for this process alone (writing to it copies a page); None if it is
        not of the dtype of `like`, or not aligned to it. Tensors of a file share one memory.
        """
        path = self.tensors[name].file
        if path not in self._pages:
            self._pages[path] = _mapped(path)
        memory, offsets = self._pages[path]
        begin, end = offsets[name]
        if NAMES.get(like.dtype) != self.tensors[name].dtype or begin % like.element_size():
            return None
        return memory[begin:end].view(like.dtype).view(self.tensors[name].shape)


def _mapped(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """All bytes of a file that was opened before (so its header is sound), and where each tensor begins and ends."""
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(n_header))
    first = 8 + n_header
    offsets = {name: [first + at for at in entry["data_offsets"]] for name, entry in header.items() if name != METADATA}
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8), offsets


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError, naming the file, for anything else."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not there; a checkpoint folder holds config.json and {WEIGHTS} (or {INDEX})")
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; it may have at most {JSON_BYTES}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, a number of 10^4 digits; too deep
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _weight_files(folder: Path) -> list[Path]:
    if os.path.lexists(folder / INDEX):
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{folder / INDEX} must have a weight_map, an object from tensor to file name")
        names = sorted({str(name) for name in weight_map.values()})
        if bad := [name for name in names if os.path.basename(name) != name or not name.endswith(".safetensors")]:
            raise ValueError(f"{folder / INDEX}: {bad[0]!r} is not the name of a safetensors file in this folder")
    elif os.path.isfile(folder / WEIGHTS):
        names = [WEIGHTS]
    elif pickles := sorted(path for path in folder.iterdir() if path.suffix in PICKLES):
        raise ValueError(
            f"{pickles[0]} is a pickle, which can run code; plait opens only safetensors. Convert it first"
        )
    else:
        raise ValueError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
    if missing := [name for name in names if not os.path.isfile(folder / name)]:
        raise ValueError(
            f"{folder}: {missing[0]!r} is named by the index and missing ({len(missing)} of {len(names)} files are)"
        )
    return [folder / name for name in names]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
