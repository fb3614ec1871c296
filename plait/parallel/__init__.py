"""Parallelism, applied to a finished model from outside (paper section 5.1): FSDP, tensor, sequence, expert and context
parallelism.
"""

from plait.parallel.mesh import Mesh, ParallelConfig
from plait.parallel.plan import Plan, parallelize
from plait.parallel.tensor import tensor_parallel

__all__ = ["Mesh", "ParallelConfig", "Plan", "parallelize", "tensor_parallel"]
