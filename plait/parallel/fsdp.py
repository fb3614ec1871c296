"""FSDP and HSDP (PyTorch's fully_shard): parameters, gradients and optimizer state in shares, gathered a layer at a
time.

Gradients are sums: the loss is divided by the global number of labels before, so nothing is divided here. SSM
parameters (0.02 % of the weights, fp32) are left out and their gradients summed in `gradients.py`. Experts that one
process alone holds are left out too: FSDP over a mesh of one would copy them, and their gradients, at every use.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from plait.model.feed_forward import MoE
from plait.model.network import LanguageModel, Layer
from plait.parallel.mesh import Mesh
from plait.parallel.placement import Placement, placement_of


def shard_parameters(
    model: LanguageModel, mesh: Mesh, table: dict[str, Placement], *, dtype: torch.dtype | None = None
) -> LanguageModel:
    """Shard every layer, and what is outside of them, in place. `dtype`: of the products (parameters stay as they are,
    gradients are reduced in fp32). Mutates and returns the model.
    """
    places = {parameter: placement_of(table, name) for name, parameter in model.named_parameters()}
    alone = mesh.config.efsdp * mesh.config.dp_replicate == 1 and dtype is None  # nobody to share experts with
    whole = {p for p, place in places.items() if not place.sharded or (alone and place.is_expert)}
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)

    def shard(module: nn.Module, *, experts: bool = False, again: bool = True) -> None:
        fully_shard(
            module,
            mesh=mesh.sharding(experts),
            reshard_after_forward=again,
            shard_placement_fn=lambda parameter: Shard(places[parameter].fsdp_dim),
            mp_policy=policy,
            ignored_params=whole,
        )

    for layer in cast(list[Layer], list(model.layers)):
        ffn = layer.ffn
        if isinstance(ffn, MoE) and places[ffn.gate_up].is_expert and not alone:
            shard(ffn.router)
            shard(ffn, experts=True)
            register_fsdp_forward_method(ffn, "observed")
        shard(layer)
    shard(model, again=False)  # the head is used again right after the forward pass, by the loss
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model
