"""The one initialisation, with Mamba's own for the step size (Mamba, section 3.6; the published code never applies
it).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from plait.model.mamba import CausalConv, Mamba
from plait.model.mamba2 import Mamba2
from plait.model.network import LanguageModel
from plait.model.norm import RMSNorm

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


@torch.no_grad()
def init_weights(model: LanguageModel, *, seed: int) -> LanguageModel:
    """Fill every parameter (see `initial_values`); the same seed gives the same model, on any device. Mutates and
    returns the model.
    """
    parameters = dict(model.named_parameters())
    for name, value in initial_values(model, seed=seed):
        parameters[name].copy_(value)
    return model


def initial_values(model: LanguageModel, *, seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of every parameter, fp32 and on the CPU, one at a time; where a name comes twice the later value
    counts. Of the model only names and shapes matter: it may lie on the meta device.

    Matrices are normal(0, init_std), projections back into the residual stream divided by sqrt(2 n_layers); norms are
    1, biases 0; the convolution is uniform within d_conv^-0.5; A = -(1..d_state) and D = 1; dt_proj is uniform within
    dt_rank^-0.5 and dt_bias makes softplus(dt_bias) log-uniform in [1e-3, 1e-1].
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    config = model.config
    residual_std = config.init_std / math.sqrt(2 * config.n_layers)
    for name, parameter in model.named_parameters():
        leaf = name.split(".")[-1]
        if leaf == "bias":
            yield name, torch.zeros(parameter.shape, device="cpu")
        elif leaf not in ("A_log", "D", "dt_bias"):
            into_residual = name.endswith(("o_proj.weight", "out_proj.weight", ".down"))
            std = residual_std if into_residual else config.init_std
            yield name, torch.randn(parameter.shape, generator=generator, device="cpu") * std
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            yield f"{name}.weight", torch.ones(module.weight.shape, device="cpu")
        elif isinstance(module, CausalConv):
            yield f"{name}.weight", _uniform(module.weight.shape, module.weight.shape[1] ** -0.5, generator)
        elif isinstance(module, Mamba | Mamba2):
            for leaf, value in _ssm_values(module, generator):
                yield f"{name}.{leaf}", value


def _uniform(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator, device="cpu") * 2 - 1) * bound


def _ssm_values(mixer: Mamba | Mamba2, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    yield "D", torch.ones(mixer.D.shape, device="cpu")
    low, high = math.log(DT_MIN), math.log(DT_MAX)
    uniform = torch.rand(mixer.dt_bias.shape, generator=generator, device="cpu")
    dt = torch.exp(uniform * (high - low) + low).clamp_min(DT_FLOOR)
    yield "dt_bias", dt + torch.log(-torch.expm1(-dt))  # inverse of softplus
    if isinstance(mixer, Mamba):
        yield "A_log", torch.arange(1, mixer.A_log.shape[1] + 1, device="cpu").log().expand(mixer.A_log.shape)
        yield "dt_proj.weight", _uniform(mixer.dt_proj.weight.shape, mixer.dt_proj.in_features**-0.5, generator)
    else:
        yield "A_log", torch.empty(mixer.A_log.shape, device="cpu").uniform_(1, 16, generator=generator).log()


def no_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay must leave alone: norms, biases, A_log, D and the step bias."""
    return {name for name, p in model.named_parameters() if p.dim() < 2 or name.split(".")[-1] == "A_log"}
