"""Files that clients left with the server: batches to be answered, and their answers.

A file is `ID.data` beside `ID.json`, which is written last: what a crash leaves without it is no file.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")
_ID = re.compile(r"file-[0-9a-f]{24}")


@dataclass(frozen=True)
class StoredFile:
    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    owner: str | None  # name of the key it was sent with; others don't see it

    def shown(self) -> dict[str, object]:
        """As the API tells of it."""
        told = {name: value for name, value in asdict(self).items() if name != "owner"}
        return {**told, "object": "file", "status": "processed"}


class FileStore:
    """Keeps everything in `folder`, which is made if it isn't there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def add(self, data: bytes, filename: str, purpose: str, owner: str | None) -> StoredFile:
        made = StoredFile(
            f"file-{secrets.token_hex(12)}", filename, purpose, len(data), int(time.time()), owner
        )  # fmt: skip
        write_whole(self._folder / f"{made.id}.data", data)
        write_whole(self._folder / f"{made.id}.json", msgspec.json.encode(made))
        return made

    def get(self, file_id: str, owner: str | None) -> StoredFile | None:
        if not _ID.fullmatch(file_id):
            return None
        try:
            found = self._read(self._folder / f"{file_id}.json")
        except FileNotFoundError:
            return None
        return found if found.owner == owner else None

    def data(self, file: StoredFile) -> bytes:
        """Raises FileNotFoundError if it was deleted meanwhile."""
        return (self._folder / f"{file.id}.data").read_bytes()

    def all(self, owner: str | None) -> list[StoredFile]:
        """The newest first."""
        found = [self._read(path) for path in self._folder.glob("file-*.json")]
        return sorted((f for f in found if f.owner == owner), key=lambda f: (f.created_at, f.id), reverse=True)

    def delete(self, file: StoredFile) -> None:
        for kind in ("json", "data"):
            (self._folder / f"{file.id}.{kind}").unlink(missing_ok=True)

    def _read(self, path: Path) -> StoredFile:
        return read_record(path, StoredFile)


def read_record(path: Path, kind: type[T]) -> T:
    """Raises ValueError that names the file if it holds something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is damaged ({error}): move it away") from error


def write_whole(path: Path, data: bytes) -> None:
    """The file appears whole or not at all."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)
