"""The whole model out of the shares of all processes."""

from __future__ import annotations

import torch

from plait.model.network import LanguageModel
from plait.parallel.plan import Plan
from plait.parallel.whole import gathered_whole


@torch.no_grad()
def exported(model: LanguageModel, plan: Plan) -> LanguageModel | None:
    """The model as one process would have it, on the CPU of the first process; None on the others. On one process, the
    model itself. Every process calls it: a tensor at a time is gathered.
    """
    if plan.mesh is None:
        return model
    with torch.device("meta"):
        whole = LanguageModel(model.config)
    if plan.is_first:
        whole.to_empty(device="cpu")
    shapes = {name: p.shape for name, p in whole.named_parameters()}
    targets = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        tensor = gathered_whole(parameter.detach(), plan.place(name), plan.mesh, shapes[name])
        if plan.is_first:
            targets[name].copy_(tensor)
    return whole if plan.is_first else None
