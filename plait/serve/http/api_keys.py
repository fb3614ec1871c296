"""Who may ask: API keys, kept as hashes.

The file has one line per key, `NAME sha256:HEX`; blank lines and lines that begin with # are left out. It is read again
when it changes, so that a key can be withdrawn without a restart. The keys that `new_key` makes have 256 random bits,
which is why one plain hash is enough.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

_LINE = re.compile(r"(\S+)\s+sha256:([0-9a-f]{64})")
logger = logging.getLogger("plait.serve")


class ApiKeys:
    """Raises ValueError for a file that can't be read or holds no key."""

    def __init__(self, keys: Sequence[str] = (), file: Path | None = None) -> None:
        self._given = [(f"key-{n + 1}", _digest(key)) for n, key in enumerate(keys)]
        self._file = file
        self._from_file: list[tuple[str, bytes]] = []
        self._stamp: tuple[int, int] | None = None
        if file is not None:
            self._from_file, self._stamp = _read(file), _stamp(file)

    def holder(self, authorization: str | None) -> str | None:
        """The name of the key in an Authorization header, or None. Takes as long for a near miss as for a far one."""
        self._read_again_if_changed()
        scheme, _, key = (authorization or "").partition(" ")
        offered = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        found = None
        for name, digest in (*self._given, *self._from_file):
            if hmac.compare_digest(digest, offered):
                found = name
        return found

    def _read_again_if_changed(self) -> None:
        if self._file is None:
            return
        try:
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._from_file, self._stamp = _read(self._file), stamp
                logger.info("API keys read again", extra={"keys": len(self._from_file)})
        except (OSError, ValueError) as error:
            if self._stamp is not None:
                logger.error("API keys can't be read; the earlier ones stay valid", extra={"error": str(error)})
            self._stamp = None


def new_key(name: str, file: Path) -> str:
    """Makes a key, appends its hash to `file` and returns the key, which is not kept anywhere."""
    if not re.fullmatch(r"[^\s#]\S*", name):
        raise ValueError(f"the name of a key, {name!r}, must be one word that doesn't begin with #")
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if any(line.split()[:1] == [name] for line in before.splitlines()):
        raise ValueError(f"{file} has a key named {name} already")
    key = f"plait-{secrets.token_urlsafe(32)}"
    separator = "" if before.endswith("\n") or not before else "\n"
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(f"{before}{separator}{name} sha256:{_digest(key).hex()}\n")
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
    return key


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_ino


def _read(file: Path) -> list[tuple[str, bytes]]:
    keys = []
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(
                f"{file}:{number}: a key is written `NAME sha256:HEX`; make one with `plait serve --new-key`"
            )
        keys.append((match[1], bytes.fromhex(match[2])))
    if not keys:
        raise ValueError(f"{file} holds no key: make one with `plait serve --new-key NAME --api-keys {file}`")
    return keys
