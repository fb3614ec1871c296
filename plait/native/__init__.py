"""Plain C kernels for CPUs: found or built on first use, the best copy for this machine, called through ctypes.

    PLAIT_NATIVE=off            never use them (every op then runs in PyTorch)
    PLAIT_NATIVE_LIBRARY=PATH   this library and no other (the sanitizer run)
    PLAIT_NATIVE_LEVEL=avx2     another instruction set than the best one this machine has (names: build.LEVELS)

Ops ask `why_not(tensor)` first: None, or the reason why the library can't be used on it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.native import build

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # the enum in src/vec.h
SIZES = (4, 2, 1)  # bytes of each

_level: str | None = None  # the level in use once chosen


def _packaged() -> Path:
    """Where a wheel has its library."""
    return Path(__file__).parent


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "plait"


def _find_or_build() -> Path:
    if chosen := os.environ.get("PLAIT_NATIVE_LIBRARY"):
        return Path(chosen)
    name = build.library_name()
    for folder in (_packaged(), _cache_folder()):
        if (folder / name).is_file():
            return folder / name
    return build.build(_cache_folder())


@functools.cache
def _open() -> ctypes.CDLL | str:
    """The library, or why there is none. Raises ValueError if the one that was asked for can't be loaded."""
    if os.environ.get("PLAIT_NATIVE", "on").lower() in ("off", "0", "no"):
        return "PLAIT_NATIVE=off"
    try:
        library = ctypes.CDLL(str(_find_or_build()))
    except (RuntimeError, OSError) as error:
        if chosen := os.environ.get("PLAIT_NATIVE_LIBRARY"):
            raise ValueError(f"PLAIT_NATIVE_LIBRARY={chosen!r} can't be loaded: {error}") from None
        return f"the native library could not be built or loaded: {error}"
    library.plait_set_runtime(_team_entry())
    return library


def _team_entry() -> ctypes.c_void_p | None:
    """GOMP_parallel of the OpenMP runtime torch runs on (already loaded), or None: then the kernels use one thread."""
    for name in (None, "libgomp.so.1"):
        try:
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return None


def available_levels() -> list[str]:
    """The levels this machine can run, worst first. Raises RuntimeError if there is no library."""
    library = _open()
    if isinstance(library, str):
        raise RuntimeError(library)
    able = library.plait_levels()
    built = [hasattr(library, f"scan_forward_{name}") for name in build.levels()]  # not what the compiler did not know
    return [name for i, name in enumerate(build.levels()) if able >> i & 1 and built[i]]


def _why_no_library() -> str | None:
    return _why_not_open()


_why_no_library._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see dispatch.constant_in_graphs


@functools.cache
def _why_not_open() -> str | None:
    library = _open()
    return library if isinstance(library, str) else None


def why_not(probe: Tensor) -> str | None:
    """None if the kernels can compute on tensors like `probe`, otherwise the reason."""
    if probe.device.type != "cpu":
        return "the native kernels run on the CPU"
    if probe.dtype not in (torch.float32, torch.bfloat16):
        return f"the native kernels compute in float32 and bfloat16, not {probe.dtype}"
    return _why_no_library()


def level() -> str:
    """The level in use: PLAIT_NATIVE_LEVEL, or the best of this machine. Raises ValueError for one it can't run."""
    global _level  # noqa: PLW0603  one per process, like the environment variable it comes from
    if _level is None:
        able = available_levels()
        wanted = os.environ.get("PLAIT_NATIVE_LEVEL", able[-1])
        if wanted not in able:
            raise ValueError(f"PLAIT_NATIVE_LEVEL={wanted!r}: this machine runs {', '.join(able)}")
        _level = wanted
    return _level


@contextmanager
def at_level(name: str) -> Iterator[None]:
    """Within the block, run the kernels of another level (tests compare them)."""
    global _level  # noqa: PLW0603
    before = level()
    if name not in available_levels():
        raise RuntimeError(f"level {name!r}: this machine runs {', '.join(available_levels())}")
    _level = name
    try:
        yield
    finally:
        _level = before


@functools.cache
def kernel(name: str, at: str) -> Any:
    """The kernel `name` of a level; it takes the address of its arguments and returns 0 or an index into ERRORS."""
    found = getattr(_open(), f"{name}_{at}")
    found.argtypes, found.restype = [ctypes.c_void_p], ctypes.c_int
    return found


@functools.cache
def replayer() -> Callable[[Any, int, int, Any], int]:
    """plait_replay of src/parallel.c: (steps, how many, threads, their nanoseconds or None) -> as a kernel."""
    found = _open().plait_replay  # type: ignore[union-attr]
    found.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    found.restype = ctypes.c_int
    return found


# What a kernel returns when an index in its arguments is out of range: the enum in src/parallel.h.
ERRORS = ("", "a token id", "an expert id", "a state slot", "a page number", "a bound of cu_seqlens")
_recorder: Callable[[str, Arguments], None] | None = None  # of the tape being recorded (tape.py)


def call(name: str, arguments: Arguments) -> None:
    """Run the kernel `name` at the level in use. IndexError for an index out of its range; nothing is written."""
    error = kernel(name, _level or level())(ctypes.addressof(arguments))
    if error:
        raise IndexError(f"{name}: {ERRORS[error]} is out of range")
    if _recorder is not None:
        _recorder(name, arguments)


@contextmanager
def recording(recorder: Callable[[str, Arguments], None]) -> Iterator[None]:
    """Within the block, every kernel that ran is also told to `recorder`. RuntimeError within another recording."""
    global _recorder  # noqa: PLW0603  one per process: recording is for the thread that serves
    if _recorder is not None:
        raise RuntimeError("a tape is being recorded already")
    _recorder = recorder
    try:
        yield
    finally:
        _recorder = None


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and of that dtype, copied only if it isn't. Asking first is cheaper than having torch do nothing."""
    return tensor if tensor.dtype is dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()


def rows(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Of that dtype, each row contiguous; rows may lie apart (a slice of a wider product)."""
    if matrix.dtype is not dtype:
        matrix = matrix.to(dtype)
    return matrix if matrix.is_contiguous() or matrix.stride(1) == 1 else matrix.contiguous()


@functools.cache
def one_each(n_seqs: int) -> Tensor:
    """cu_seqlens of as many sequences of one token: 0, 1, 2, ..."""
    return torch.arange(n_seqs + 1, dtype=torch.int32)


def fields(*groups: tuple[str, ...]) -> list[tuple[str, Any]]:
    """ctypes fields: groups of names, 64-bit integers and pointers in turn."""
    kinds = itertools.cycle((ctypes.c_int64, ctypes.c_void_p))
    return [(name, kind) for names, kind in zip(groups, kinds, strict=False) for name in names]


class Arguments(ctypes.Structure):
    """A struct of a kernel's arguments. It holds addresses only: the tensors must outlive the call (and the tape)."""

    def read_once(self) -> list[tuple[int, int]]:
        """(address, bytes) of up to two ranges that the kernel will read, shared out over threads: worth fetching."""
        return []

    def point(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            setattr(self, name, pointer(tensor))
