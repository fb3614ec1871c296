"""Parallelism, applied to a finished model from outside (paper section 5.1): FSDP, tensor, sequence, expert and context
parallelism.

The names below load what they need at first use: processes that share a model for serving need neither FSDP nor
torch's compiler, which comes with it and takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.parallel.mesh import Mesh, ParallelConfig
    from plait.parallel.plan import Plan, parallelize
    from plait.parallel.tensor import tensor_parallel

__all__ = ["Mesh", "ParallelConfig", "Plan", "parallelize", "tensor_parallel"]

_HOMES = {
    "Mesh": "plait.parallel.mesh",
    "ParallelConfig": "plait.parallel.mesh",
    "Plan": "plait.parallel.plan",
    "parallelize": "plait.parallel.plan",
    "tensor_parallel": "plait.parallel.tensor",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'plait.parallel' has no attribute {name!r}; its names are {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value
