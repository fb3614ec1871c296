"""An average of the weights over the steps, w_ema = decay w_ema + (1 - decay) w, of each process's shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from plait.parallel.gradients import local


class Ema:
    """Tensors of the kind the parameters are, under their names; none with decay 0."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters()} if decay else {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in self.weights:
                local(self.weights[name]).lerp_(local(parameter.detach()), 1 - self.decay)

    @contextmanager
    @torch.no_grad()
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        own = {name: local(p.detach()).clone() for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            local(parameter.detach()).copy_(local(self.weights[name]))
        yield
        for name, parameter in model.named_parameters():
            local(parameter.detach()).copy_(own[name])
