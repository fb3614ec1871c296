"""How kernels are launched: on which device, and whether one may start while the one before it ends."""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(t: Tensor) -> AbstractContextManager[None]:
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()


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
