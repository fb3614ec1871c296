"""How parameters are changed in place by a step, for those who train: the optimizer is `train`'s."""

from plait.ops.adamw import Numbers as Numbers
from plait.ops.adamw import adamw_step as adamw_step
