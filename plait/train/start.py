"""The weights that a run begins with: drawn anew, or those of a model that is there (mid-training, SFT)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from plait.model.checkpoint import load_model, read_config
from plait.model.init import initial_values
from plait.model.network import LanguageModel
from plait.parallel.mesh import Mesh
from plait.parallel.placement import placement_of
from plait.parallel.plan import split, table_of
from plait.train.config import TrainConfig

_MAY_DIFFER = {"dtype", "max_context", "init_std"}  # of the model's shape nothing depends on them


def first_weights(config: TrainConfig) -> LanguageModel:
    """The model of step 0, in fp32: int8 weights of `config.start` are taken as the numbers they stand for, unless they
    stay frozen beside adapters.

    Raises ValueError when that model isn't the one that `config.model` describes.
    """
    if config.start and config.lora.rank:
        _check_alike(config)
        return load_model(Path(config.start), dtype=torch.float32, mapped=False)
    model = LanguageModel(config.model)
    _fill(model, config, lambda _, value: value)
    return model


def own_weights(config: TrainConfig, mesh: Mesh, device: torch.device) -> LanguageModel:
    """This process's slices of `first_weights` over tp and ep, on the device: no process holds more of the model than
    one whole tensor beside its slices.
    """
    with torch.device("meta"):
        model = split(LanguageModel(config.model), mesh)
    if config.precision == "bfloat16_weights":
        model.to_dtype(torch.bfloat16)
    model.to_empty(device=device)
    table = table_of(model, mesh)
    over_tp, over_ep = ((group.rank(), group.size()) for group in (mesh.tp_group, mesh.ep_group))
    _fill(model, config, lambda name, value: placement_of(table, name).share(value, tp=over_tp, ep=over_ep))
    return model


@torch.no_grad()
def _fill(model: LanguageModel, config: TrainConfig, share: Callable[[str, Tensor], Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in _values(config):
        parameters[name].copy_(share(name, value))


def _values(config: TrainConfig) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters, one at a time."""
    with torch.device("meta"):
        whole = LanguageModel(config.model)
    if not config.start:
        yield from initial_values(whole, seed=config.seed)
        return
    _check_alike(config)
    stored = load_model(Path(config.start)).state_dict()  # from the files' own pages where they can be
    for name, _ in whole.named_parameters():
        yield name, _in_full(name, stored)


def _check_alike(config: TrainConfig) -> None:
    folder = Path(config.start)
    if not (folder / "config.json").is_file():
        raise ValueError(f"start={config.start}: it must be a model's folder with a config.json, or empty")
    there = read_config(folder)
    different = [
        f"{name}={getattr(there, name)} there, {value} here"
        for name, value in vars(config.model).items()
        if name not in _MAY_DIFFER and getattr(there, name) != value
    ]
    if different:
        raise ValueError(f"start={config.start} is another model ({'; '.join(different)}): set model.… as it is there")


def _in_full(name: str, stored: dict[str, Tensor]) -> Tensor:
    """A weight in fp32, times its row scales if it has any."""
    scale = stored.get(f"{name}_scale")
    return stored[name].float() if scale is None else stored[name].float() * scale.unsqueeze(-1)
