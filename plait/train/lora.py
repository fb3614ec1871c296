"""LoRA (Hu et al., 2021) and QLoRA: small matrices beside frozen ones, for every matrix of a hybrid model, stacked
experts and the projections around the scan included.

An adapted weight is W + alpha / rank * B A, made where the layer reads it, so every kernel stays as it is; A and B are
fp32 (of experts [n_experts, ...]). W may be quantized: a run that starts from a quantized checkpoint is QLoRA. The
weight that was made is kept for the backward pass unless the run recomputes: use recompute=full for large models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from plait.model.linear import Embedding
from plait.model.network import LanguageModel
from plait.model.quantized import dequantized
from plait.train.config import LoraConfig

MATRICES = ("weight", "gate_up", "down")  # what a module calls its matrix


class Adapter(nn.Module):
    """The low-rank part of one weight [..., rows, columns], and the frozen one's scales if it is quantized."""

    value_scale: Tensor | None

    def __init__(self, shape: torch.Size, config: LoraConfig, value_scale: Tensor | None, like: Tensor) -> None:
        super().__init__()
        *stacked, rows, columns = shape
        self.factor = config.alpha / config.rank
        self.A = nn.Parameter(torch.empty(*stacked, config.rank, columns, device=like.device))
        self.B = nn.Parameter(torch.zeros(*stacked, rows, config.rank, device=like.device))
        self.register_buffer("value_scale", value_scale)
        self.dtype = like.dtype

    def forward(self, values: Tensor) -> Tensor:
        base = values if self.value_scale is None else dequantized(values, self.value_scale, self.dtype)
        return base + (self.factor * self.B @ self.A).to(base.dtype)


@dataclass(frozen=True)
class Coverage:
    """What was adapted: names of weights, and numbers of values."""

    adapted: tuple[str, ...]
    left: tuple[str, ...]  # matrices without an adapter
    trainable: int
    total: int

    def __str__(self) -> str:
        kinds = sorted({name.rpartition("layers.")[2].partition(".")[2] or name for name in self.left})
        share = self.trainable / self.total
        return (
            f"LoRA: {len(self.adapted)} of {len(self.adapted) + len(self.left)} matrices, {self.trainable:,} of "
            f"{self.total:,} parameters ({share:.2%}) are trained; left as they are: {', '.join(kinds) or 'none'}"
        )


def adapt(model: LanguageModel, config: LoraConfig, *, seed: int = 0) -> Coverage:
    """Freeze the model and put an adapter on every matrix that `config.targets` names: a module's name (`in_proj`,
    `router`, `head`) or a stack of experts and the MLPs (`gate_up`, `down`). Mutates the model.

    ValueError for a target that names nothing.
    """
    matrices = _matrices(model)
    for target in config.targets:
        if not any(target in name.split(".") for name in matrices):
            known = sorted({_short(name) for name in matrices})
            raise ValueError(f"lora.targets: no matrix is called {target!r} here; there are {', '.join(known)}")
    model.requires_grad_(False)
    generator = torch.Generator("cpu").manual_seed(seed)
    adapted = [name for name in matrices if set(config.targets) & set(name.split("."))]
    for name in adapted:
        module, leaf = matrices[name]
        _adapt(module, leaf, config, model.final_norm.weight, generator)
    counts = [p.numel() for p in model.parameters()]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Coverage(tuple(adapted), tuple(name for name in matrices if name not in adapted), trainable, sum(counts))


def _matrices(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Every matrix that maps activations: not tables of vectors (the embedding) nor the convolution."""
    found = {}
    for name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            is_matrix = leaf in MATRICES and parameter.dim() > 1 and not isinstance(module, Embedding)
            if is_matrix and not name.endswith(".conv"):
                found[f"{name}.{leaf}"] = (module, leaf)
    return found


def _short(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return leaf if leaf != "weight" else module.rpartition(".")[2]


def _adapt(module: nn.Module, leaf: str, config: LoraConfig, like: Tensor, generator: torch.Generator) -> None:
    values, scale = getattr(module, leaf), getattr(module, f"{leaf}_scale", None)
    shape = values.shape if scale is None else dequantized(values, scale, like.dtype).shape
    adapter = Adapter(shape, config, scale, like if scale is not None else values)
    with torch.no_grad():
        bound = 1 / math.sqrt(shape[-1])
        adapter.A.copy_((torch.rand(adapter.A.shape, generator=generator) * 2 - 1) * bound)
    if scale is not None:
        setattr(module, f"{leaf}_scale", None)  # the adapter multiplies by it
    parametrize.register_parametrization(module, leaf, adapter, unsafe=True)


def merge(model: LanguageModel) -> LanguageModel:
    """Adapted weights become plain ones, W + alpha / rank * B A, in full precision where W was quantized. Mutates and
    returns the model.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for leaf in list(module.parametrizations):  # type: ignore[arg-type]
                with torch.no_grad():
                    weight = getattr(module, leaf).detach().clone()
                parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
                setattr(module, leaf, nn.Parameter(weight))
    return model.requires_grad_(True)


def save_adapters(model: LanguageModel, path: Path) -> None:
    """A and B of every adapted weight into one safetensors file, named after it: layers.0.mixer.in_proj.weight.A."""
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            weight = name.replace("parametrizations.", "").removesuffix(".0")
            tensors |= {f"{weight}.{part}": getattr(module, part).detach().cpu() for part in ("A", "B")}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial)
    partial.replace(path)
