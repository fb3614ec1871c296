"""Models without a checkpoint, for timing: no time depends on the weights, but for which experts a router picks."""

from __future__ import annotations

import torch
from torch import nn

from plait.config import ModelConfig
from plait.model.mamba import Mamba
from plait.model.mamba2 import Mamba2
from plait.model.network import LanguageModel
from plait.model.norm import RMSNorm
from plait.quant import prepare
from plait.quant.parts import model_parts, quantize_part
from plait.quant.scheme import Scheme

DUMMY_STD = 0.02


def meta_model(config: ModelConfig) -> LanguageModel:
    """Names, shapes and dtypes, without memory."""
    with torch.device("meta"):
        return LanguageModel(config).eval()


def dummy_part(part: nn.Module, device: torch.device | str, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Memory and plausible numbers for a part of a model on the meta device: small normal weights, norms of 1, states
    that decay.
    """
    LanguageModel.to_dtype(part, dtype)  # type: ignore[arg-type]  # any module will do
    part.to_empty(device=device)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(0, DUMMY_STD, generator=generator)
        for module in part.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1)
            elif isinstance(module, Mamba | Mamba2):
                module.A_log.zero_()
                module.dt_bias.fill_(-4)


def dummy_model(
    config: ModelConfig, device: torch.device | str, dtype: torch.dtype, *, quantize: str | None = None
) -> LanguageModel:
    """A model of plausible numbers on a device, quantized part by part: the peak is what is quantized so far and one
    layer in full precision.
    """
    model, generator = meta_model(config), torch.Generator(device).manual_seed(0)
    for name, part in model_parts(model):
        dummy_part(part, device, dtype, generator)
        if quantize is not None:
            quantize_part(name, part, Scheme.named(quantize), tied=config.tie_embeddings)
        if torch.device(device).type == "cuda":
            prepare(part)
    return model
