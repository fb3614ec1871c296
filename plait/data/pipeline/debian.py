"""Debian packages as a source of documents: got by name, checked by hash, unpacked without being installed."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """An unpacked package. `licences`: the short names in its copyright file."""

    name: str
    version: str
    sha256: str
    licences: tuple[str, ...]
    folder: Path


def get_package(wanted: str, cache: Path) -> Package:
    """`wanted`: NAME, or NAME=SHA256 to take no other file. A .deb that lies in `cache` is used; else `apt-get
    download` puts it there. ValueError if it can't be had or isn't the one that was asked for.
    """
    name, _, sha256 = wanted.partition("=")
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
        raise ValueError(f"{name!r} is not the name of a Debian package")
    cache.mkdir(parents=True, exist_ok=True)
    deb = _cached(name, cache) or _download(name, cache)
    found = hashlib.sha256(deb.read_bytes()).hexdigest()
    if sha256 and found != sha256:
        raise ValueError(
            f"{deb} has sha256 {found}, the recipe asks for {sha256}: get that version, or change the recipe"
        )
    folder = cache / f"{name}-{found[:16]}"
    if not folder.exists():
        _unpack(deb, folder)
    version = deb.stem.split("_")[1].replace("%3a", ":")
    return Package(name, version, found, _licences(folder, name), folder)


def _cached(name: str, cache: Path) -> Path | None:
    return max(cache.glob(f"{name}_*.deb"), default=None, key=lambda path: path.stat().st_mtime)


def _download(name: str, cache: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise ValueError(f"apt-get is not on this machine: put {name}_VERSION_ARCH.deb into {cache} by hand")
    done = subprocess.run(["apt-get", "download", name], cwd=cache, capture_output=True, text=True, check=False)
    deb = _cached(name, cache)
    if done.returncode or deb is None:
        raise ValueError(
            f"apt-get download {name} failed ({' '.join(done.stderr.split())}): run apt-get update, or put the .deb "
            f"into {cache}"
        )
    return deb


def _unpack(deb: Path, folder: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        raise ValueError(f"dpkg-deb is not on this machine: unpack {deb} into {folder} by hand")
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(unfinished)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{deb} can't be unpacked: {' '.join(done.stderr.split())}")
    unfinished.rename(folder)


def _licences(folder: Path, name: str) -> tuple[str, ...]:
    copyright_file = folder / "usr/share/doc" / name / "copyright"
    if not copyright_file.is_file():
        return ()
    text = copyright_file.read_text(encoding="utf-8", errors="replace")
    named = re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)
    return tuple(dict.fromkeys(licence.strip() for licence in named)) or (f"see {copyright_file.relative_to(folder)}",)
