"""Which implementation of an op runs.

Every op lists its implementations best first; the first that can run the given tensors does.
`PLAIT_OPS="selective_scan=chunked"` (or `with force(selective_scan="chunked")`) names one instead, and then it runs or
raises: nothing falls back in silence.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
HAS_TRITON = find_spec("triton") is not None
PARTS_OF_MOE = {"moe_combine", "moe_route"}


def anywhere(_: Tensor) -> None:
    """For implementations in plain PyTorch."""
    return


def anything(_: Mapping[str, Any]) -> None:
    """For implementations that take whatever the op takes."""
    return


class Implementation(NamedTuple):
    run: Callable[..., Any]
    why_not: Callable[[Tensor], str | None]  # None: it can run this tensor; otherwise the reason it can't
    why_not_these: Callable[[Mapping[str, Any]], str | None] = anything  # of all inputs by name: these `run` refuses


def why_not_triton(probe: Tensor, dtypes: Collection[torch.dtype]) -> str | None:
    """For kernels in plain Triton that compute in `dtypes`: None on CUDA, or on the CPU if TRITON_INTERPRET=1.

    The interpreter is wrong in bf16 arithmetic, so there bf16 is refused.
    """
    if not HAS_TRITON:
        return "triton is not installed"
    if not probe.is_cuda:
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "needs a CUDA tensor, got one on cpu" if probe.is_cpu else f"needs CUDA, got {probe.device}"
        if probe.dtype == torch.bfloat16:
            return "Triton's interpreter is wrong in bfloat16"
    return None if probe.dtype in dtypes else f"computes in {', '.join(map(str, dtypes))}, got {probe.dtype}"


def lazily(module: str, function: str) -> Callable[..., Any]:
    """A function of a module that is imported when it is first called, so that `import plait.ops` stays quick.

    torch.compile breaks its graph here; it follows an import statement inside a function (see selective_scan).
    """

    found: list[Callable[..., Any]] = []

    def run(*args: Any) -> Any:
        if not found:
            found.append(getattr(import_module(module), function))
        return found[0](*args)

    return run


@functools.cache
def _parse(setting: str) -> dict[str, str]:
    choices = {}
    for item in filter(None, (part.strip() for part in setting.split(","))):
        op, equals, name = item.partition("=")
        if not equals:
            raise ValueError(
                f"PLAIT_OPS={setting!r}: {item!r} must be OP=IMPLEMENTATION, for example selective_scan=chunked"
            )
        if op.strip() not in _ops():
            raise ValueError(f"PLAIT_OPS={setting!r}: there is no op {op.strip()!r}; there are {', '.join(_ops())}")
        choices[op.strip()] = name.strip()
    return choices


def _ops() -> list[str]:
    """Those that can be forced: each folder here is one, and a mixture's routing and sums go by themselves."""
    return sorted({made.parent.name for made in Path(__file__).parent.glob("*/reference.py")} | PARTS_OF_MOE)


_forced: ContextVar[dict[str, str] | None] = ContextVar("plait_forced_ops", default=None)


_SETTING = os.environ.get("PLAIT_OPS", "")  # read once: it is asked at every call of every op


def _choices() -> dict[str, str]:
    chosen = _forced.get()
    return _parse(_SETTING) if chosen is None else chosen


@contextmanager
def force(**implementations: str) -> Iterator[None]:
    """Within the block, run the named implementation of each named op, or raise: `with force(moe="reference"):`."""
    token = _forced.set({**_choices(), **implementations})
    try:
        yield
    finally:
        _forced.reset(token)


def constant_in_graphs(function: F) -> F:
    """torch.compiler.assume_constant_result, which is this mark, without importing the compiler (1.5 s)."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def outside_graphs(function: F) -> F:
    """torch.compiler.disable, imported where something is being compiled (then the compiler is there already)."""
    disabled = functools.cache(lambda: torch.compiler.disable(function))

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (disabled() if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    return run  # type: ignore[return-value]


@constant_in_graphs
def _chosen(op: str) -> str | None:
    return _choices().get(op)


def pick(op: str, implementations: Mapping[str, Implementation], probe: Tensor) -> Callable[..., Any]:
    """The implementation of `op` to run on tensors like `probe`. ValueError for a forced one that isn't there or can't
    run.
    """
    name = _chosen(op)
    if name is not None:
        if name not in implementations:
            raise ValueError(f"{op}: no implementation {name!r}; there are {', '.join(implementations)}")
        reason = implementations[name].why_not(probe)
        if reason is not None:
            raise ValueError(f"{op}: {name!r} was asked for and can't run: {reason}")
        return implementations[name].run
    for implementation in implementations.values():
        if implementation.why_not(probe) is None:
            return implementation.run
    raise RuntimeError(f"{op}: no implementation for {probe.dtype} on {probe.device}")
