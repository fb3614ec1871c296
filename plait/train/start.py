"""The weights that a run begins with: drawn anew, or those of a model that is there (mid-training, SFT)."""

from __future__ import annotations

from pathlib import Path

import torch

from plait.model.checkpoint import load_model, read_config
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.train.config import TrainConfig

_MAY_DIFFER = {"dtype", "max_context", "init_std"}  # of the model's shape nothing depends on them


def first_weights(config: TrainConfig) -> LanguageModel:
    """The model of step 0, in fp32: int8 weights of `config.start` are taken as the numbers they stand for, unless they
    stay frozen beside adapters.

    Raises ValueError when that model isn't the one that `config.model` describes.
    """
    model = init_weights(LanguageModel(config.model), seed=config.seed)
    if not config.start:
        return model
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
    if config.lora.rank:
        return load_model(folder, dtype=torch.float32, mapped=False)
    stored = load_model(folder, dtype=torch.float32).state_dict()
    model.load_state_dict({name: _in_full(name, stored) for name in model.state_dict()})
    return model


def _in_full(name: str, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """A weight in fp32, times its row scales if it has any."""
    scale = stored.get(f"{name}_scale")
    return stored[name].float() if scale is None else stored[name].float() * scale.unsqueeze(-1)
