"""Files in a model's own order, which every reader of safetensors takes."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from plait.model.weight_writer import STORED, save_file


def test_every_dtype_comes_back_through_the_library(tmp_path: Path) -> None:
    tensors = {str(dtype): (torch.arange(6).view(2, 3) % 2).to(dtype) for dtype in STORED}
    tensors |= {"none": torch.empty(0, 4), "one": torch.tensor(2.5), "turned": torch.arange(6.0).view(2, 3).T}
    save_file(tensors, tmp_path / "file")
    for found in (load_file(tmp_path / "file"), load((tmp_path / "file").read_bytes())):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name].view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))
    with safe_open(tmp_path / "file", framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_the_order_is_the_given_one_with_wider_types_first(tmp_path: Path) -> None:
    names = [f"expert.{i}" for i in range(12)]
    save_file({name: torch.full((5,), i, dtype=torch.int8) for i, name in enumerate(names)} | {"scale": torch.ones(3)},
              tmp_path / "file")  # fmt: skip
    body = (tmp_path / "file").read_bytes()[-(12 * 5 + 12) :]
    assert body == torch.ones(3).numpy().tobytes() + bytes(i for i in range(12) for _ in range(5))
    header = int.from_bytes((tmp_path / "file").read_bytes()[:8], "little")
    assert header % 8 == 0  # what is wide is aligned


def test_a_dtype_without_a_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor b has dtype torch.complex64"):
        save_file({"a": torch.ones(1), "b": torch.ones(1, dtype=torch.complex64)}, tmp_path / "file")
    assert not list(tmp_path.iterdir())
