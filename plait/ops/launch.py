"""How kernels are launched: on which device, whether one may start while the one before it ends, and past Triton's own
preparation of a call, which on a host of 2026 takes longer than most kernels run.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

_HERE: AbstractContextManager[None] = nullcontext()


def on_device_of(t: Tensor) -> AbstractContextManager[None]:
    if not t.is_cuda or t.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(t.device)


def cdiv(a: int, b: int) -> int:
    """Triton's own, called on the host, takes 2 us."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length() if n > 0 else 0


def overlaps(t: Tensor) -> bool:
    """Whether a kernel here can be launched before its predecessor has ended (programmatic dependent launch, Hopper).

    Such a kernel must wait (`gdc_wait`) before it reads what others wrote and before it writes: the wait covers
    everything that came before it in the stream, and only constants may be read earlier.
    """
    return t.is_cuda and _has_dependent_launch(t.device)


@functools.cache
def _has_dependent_launch(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def speaks_ptx(t: Tensor) -> bool:
    """Whether kernels on t may hold NVIDIA's assembly."""
    return t.is_cuda and torch.version.hip is None and os.environ.get("TRITON_INTERPRET") != "1"


class Box(NamedTuple):
    """What the bulk copy engine takes of `base` at a time: the arguments of a Gluon TensorDescriptor, which costs more
    to make than to use. The layout must follow from the dtype, `block_shape` and the launch's constants.
    """

    descriptor_type: Any
    base: Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block_shape: tuple[int, ...]
    layout: Any
    padding: str = "zero"

    def descriptor(self) -> Any:
        return self.descriptor_type(
            self.base, list(self.shape), list(self.strides), list(self.block_shape), self.layout
        )


class _Instead(threading.local):
    taker: Callable[..., None] | None = None


_INSTEAD = _Instead()


@contextmanager
def instead_of_launches(taker: Callable[..., None]) -> Iterator[None]:
    """Within the block, in this thread, no kernel is launched: taker(kernel, grid, *arguments, **constants) is called
    instead.
    """
    before, _INSTEAD.taker = _INSTEAD.taker, taker
    try:
        yield
    finally:
        _INSTEAD.taker = before


class Kernel:
    """kernel[grid](*arguments, **constants) of a Triton kernel, launched directly where such a call was made before.

    Triton compiles for the device, the dtypes of tensors and whether 16 divides their addresses, for integers that are
    1 or multiples of 16 (unless do_not_specialize), and for constants; that is what a call is known by here. Arguments
    are tensors (of no subclass), None, numbers and `Box`es, in the kernel's order; constants come by name. Compiled
    kernels take addresses for tensors.
    """

    used: ClassVar[dict[Kernel, None]] = {}  # all that were ever called, in the order of their first calls

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._specialized = tuple(not parameter.do_not_specialize for parameter in kernel.params)
        self._ready: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    @property
    def module(self) -> str:
        return self.kernel.fn.__module__

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def note_use(self) -> None:
        self.used[self] = None

    def __getitem__(self, grid: tuple[int, ...]) -> functools.partial[None]:
        taker = _INSTEAD.taker
        return functools.partial(self._launch, grid) if taker is None else functools.partial(taker, self, grid)

    def _launch(self, grid: tuple[int, ...], /, *arguments: Any, **constants: Any) -> None:
        driver = _driver()
        device = driver.get_current_device()
        addresses = 0
        values: list[Any] = []
        known_by: list[Any] = [device, *constants.items()]
        for argument, specialized in zip(arguments, self._specialized, strict=False):
            kind = type(argument)
            if kind is Tensor or kind is nn.Parameter:
                address = argument.data_ptr()
                addresses |= address
                values.append(address)
                known_by.append(argument.dtype)
                continue
            values.append(argument)
            if kind is int:
                known_by.append(argument if specialized else argument >> 31)
            elif kind is Box:
                known_by += (argument.base.dtype, argument.block_shape)
            else:
                known_by.append(kind)
        if addresses & 15:
            known_by.append(tuple(value & 15 == 0 for value in values if type(value) is int))
        key = tuple(known_by)
        ready = self._ready.get(key)
        if ready is None:
            self._let_triton(grid, arguments, constants, key)
            return
        run, function, metadata, rest = ready
        x, y, z = (*grid, 1, 1)[:3]
        stream = driver.get_current_stream(device)
        run(x, y, z, stream, function, metadata, None, None, None, *values, *rest)

    def _let_triton(
        self, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], key: tuple[Any, ...]
    ) -> None:
        """Launch Triton's way, and remember what it compiled under `key`."""
        self.note_use()
        full = [argument.descriptor() if type(argument) is Box else argument for argument in arguments]
        compiled = self.kernel[grid](*full, **constants)
        names = self.kernel.arg_names[len(arguments) :]
        if compiled is not None and all(name in constants for name in names):
            rest = tuple(constants[name] for name in names)
            self._ready[key] = compiled.run, compiled.function, compiled.packed_metadata, rest


def direct(kernel: Any) -> Any:
    """Put above triton.jit (or gluon.jit) on a kernel that is launched, not called by others. In the interpreter it
    changes nothing.
    """
    return Kernel(kernel) if hasattr(kernel, "device_caches") else kernel


def _driver() -> Any:
    return sys.modules["triton.runtime.driver"].driver.active  # loaded, as there are kernels; this file works without
