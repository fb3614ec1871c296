"""Gradients by computing again, from inside a custom operator: for implementations that bring no backward of their
own, where torch.compile must not look inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

BELOW_AUTOGRAD = ("AutogradOther", "AutogradFunctionality", "AutogradCPU", "AutogradCUDA", "ADInplaceOrView")


@contextmanager
def recording() -> Iterator[None]:
    """Autograd on, in the body of a custom operator too: torch runs that below autograd, where nothing is recorded."""
    core: Any = torch._C
    excluded = core._dispatch_tls_local_exclude_set()
    for name in BELOW_AUTOGRAD:
        if (key := getattr(core.DispatchKey, name, None)) is not None and excluded.has(key):
            excluded = excluded.remove(key)
    with core._ForceDispatchKeyGuard(core._dispatch_tls_local_include_set(), excluded), torch.enable_grad():
        yield


def gradients(
    run: Callable[..., Any], inputs: Sequence[Tensor | None], wanted: Sequence[bool], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    """Of run(*inputs) (a tensor or several) with respect to the wanted inputs, contiguous; zeros where it has none."""
    with recording():
        given = [None if t is None else t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        outputs = run(*given)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        leaves = [t for t, w in zip(given, wanted, strict=True) if w and t is not None]
        pairs = [(o, c.to(o.dtype)) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in pairs], leaves, [c for _, c in pairs], allow_unused=True, materialize_grads=True
        )
    return unshared(found, cotangents)


def unshared(results: Sequence[Tensor], given: Sequence[Tensor | None]) -> list[Tensor]:
    """Contiguous, and copied where they share memory with what was given or with one another: a custom operator may
    not return that.
    """
    seen = {t.untyped_storage().data_ptr() for t in given if t is not None}
    own = []
    for t in results:
        t = t.contiguous()
        own.append(t.clone() if t.untyped_storage().data_ptr() in seen else t)
        seen.add(own[-1].untyped_storage().data_ptr())
    return own
