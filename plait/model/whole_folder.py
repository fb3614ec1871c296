"""Writing a folder whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from plait.model.weight_files import INDEX, PICKLES


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty hidden folder beside `folder`, which takes its place when the block ends well and vanishes if it raises.

    A process killed in the block leaves `folder` as it was, and the hidden one to be deleted by hand. The end is two
    renames: killed between them, the old folder is whole but under its hidden name (.NAME.*.old).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        retired = partial.with_suffix(".old")
        if folder.exists():
            os.rename(folder, retired)
        os.rename(partial, folder)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def carry_over(
    old: Path, new: Path, ignored: set[str], ignore_below: Callable[[str, list[str]], set[str]] | None = None
) -> None:
    """Copy what only `old` has, but for the names `ignored`; of its folders, what `ignore_below` doesn't name."""
    for path in old.iterdir():
        if path.name in ignored or (new / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, new / path.name, ignore=ignore_below)
        else:
            shutil.copy2(path, new / path.name)


def complete(partial: Path, folder: Path, beside: str | Path | None) -> None:
    """Copy into `partial`, which is to replace `folder`, what a save doesn't write: files of `beside`, then of `folder`
    itself, but for weights.
    """
    if beside is not None:
        carry_over(Path(beside), partial, _any_weights(str(beside), os.listdir(beside)), _any_weights)
    if folder.exists():
        carry_over(folder, partial, set(filter(_OLD_WEIGHTS.fullmatch, os.listdir(folder))))


_OLD_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_any_weights = shutil.ignore_patterns(INDEX, "*.safetensors", *(f"*{suffix}" for suffix in PICKLES))
