"""Whether the kernels written in Gluon run: on Hopper GPUs, with the versions of Triton they were run with.

Gluon ships inside Triton and changes between versions, so anywhere else their plain Triton twins run, and `chosen`
says so.
"""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

import torch

from plait.ops.dispatch import constant_in_graphs

GLUON_VERSIONS = ("3.6.",)


@constant_in_graphs
def why_not_gluon(device: torch.device) -> str | None:
    """None where they run; otherwise the reason, to be said to users."""
    return _reason(device)


@functools.cache
def _reason(device: torch.device) -> str | None:
    return wrong_version() if is_hopper(device) else f"is for Hopper GPUs (compute capability 9.0), got {device}"


def is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def wrong_version() -> str | None:
    """Why the installed Triton is not one of GLUON_VERSIONS, or None."""
    try:
        found = version("triton")
    except PackageNotFoundError:  # a nightly build under another name
        found = "of no known version"
    if found.startswith(GLUON_VERSIONS):
        return None
    return f"was run with triton {', '.join(v + 'x' for v in GLUON_VERSIONS)} only, and {found} is installed"
