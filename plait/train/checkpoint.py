"""Checkpoints of a run: everything the next step depends on, written whole or not at all.

checkpoints/step-00000200/ holds model.safetensors (fp32 parameters under our own names), optimizer.safetensors (the
moments, under the parameters' names) and state.json. The order of the data is a function of the step, so there is no
loader state to save.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.model.network import LanguageModel
from plait.train.balance import ChoiceBias
from plait.train.ema import Ema
from plait.train.guard import Guard
from plait.train.optimizer import AnyOptimizer, states


def save_checkpoint(
    folder: Path,
    step: int,
    model: LanguageModel,
    optimizer: AnyOptimizer,
    ema: Ema | None = None,
    guard: Guard | None = None,
    balance: ChoiceBias | None = None,
    *,
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write the state after `step` steps under `folder`, and drop all but the newest `keep` and every `keep_every`-th
    step's.

    Raises FloatingPointError for parameters that are not finite and OSError when the disk is full; then nothing is
    left of it, and the older ones stay.
    """
    parameters = {name: p.detach().cpu() for name, p in _trained(model).items()}
    _check_finite(parameters, step)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.partial"):
        shutil.rmtree(leftover)
    final = folder / f"step-{step:08}"
    partial = final.with_suffix(".partial")
    partial.mkdir()
    try:
        _save_tensors(parameters, partial / "model.safetensors")
        _save_tensors(_moments(model, optimizer), partial / "optimizer.safetensors")
        if ema is not None and ema.weights:
            _save_tensors({name: w.cpu() for name, w in ema.weights.items()}, partial / "ema.safetensors")
        (partial / "state.json").write_text(state_text(step, guard, balance))
        for path in partial.iterdir():
            _sync(path)
        os.rename(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    drop_old(folder, keep=keep, keep_every=keep_every)
    return final


def _trained(model: LanguageModel) -> dict[str, torch.nn.Parameter]:
    """Frozen weights are where the run started from."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def state_text(step: int, guard: Guard | None, balance: ChoiceBias | None = None) -> str:
    """The contents of state.json."""
    state = {
        "step": step,
        "torch": torch.__version__,
        "guard": None if guard is None else guard.state(),
        "choice_bias": [] if balance is None else balance.state(),
    }
    return json.dumps(state) + "\n"


def drop_old(folder: Path, *, keep: int, keep_every: int) -> None:
    """Delete all checkpoints but the newest `keep`, and those of steps that `keep_every` divides."""
    for old in checkpoints(folder)[:-keep]:
        if not keep_every or int(old.name.removeprefix("step-")) % keep_every:
            shutil.rmtree(old)


def _check_finite(parameters: dict[str, Tensor], step: int) -> None:
    for name, tensor in parameters.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FloatingPointError(
                f"step {step} left inf or nan in {name}: no checkpoint is written; start anew with a lower optim.lr"
            )


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{path}: {error}") from error


def _sync(path: Path) -> None:
    """Its data must be on the disk before the folder gets its final name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".partial")


def load_checkpoint(
    path: Path,
    model: LanguageModel,
    optimizer: AnyOptimizer,
    ema: Ema | None = None,
    guard: Guard | None = None,
    balance: ChoiceBias | None = None,
) -> int:
    """Put a checkpoint's state into the model, the optimizer and what else is given; returns the number of steps done.
    Mutates them.

    Raises ValueError for a damaged checkpoint and for one of another model.
    """
    parameters = _trained(model)
    files = ["model", "optimizer", *(["ema"] if ema is not None and ema.weights else [])]
    try:
        saved, moments, *averaged = (load_file(path / f"{name}.safetensors") for name in files)
        step = read_state(path, guard, balance)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and --resume goes on from the one before") from error
    if {n: t.shape for n, t in saved.items()} != {n: p.shape for n, p in parameters.items()}:
        raise ValueError(
            f"{path} was written by a model of another shape; give this run another --out, or the old settings"
        )
    of_parameter = states(optimizer)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
            for moment, tensor in of_parameter[parameter].items():
                tensor.copy_(moments[f"{name}/{moment}"])
        if ema is not None and averaged:
            for name, tensor in ema.weights.items():
                tensor.copy_(averaged[0][name])
    return step


def read_state(path: Path, guard: Guard | None, balance: ChoiceBias | None = None) -> int:
    """state.json: returns the step, and fills the guard and the biases."""
    state = json.loads((path / "state.json").read_text())
    if guard is not None and state.get("guard"):
        guard.load(state["guard"])
    if balance is not None:
        balance.load(state.get("choice_bias"))
    return int(state["step"])


def _moments(model: LanguageModel, optimizer: AnyOptimizer) -> dict[str, Tensor]:
    of_parameter = states(optimizer)
    return {
        f"{name}/{moment}": tensor.detach().cpu() if tensor.dim() else tensor.cpu().clone()  # step: one for all
        for name, parameter in _trained(model).items()
        for moment, tensor in of_parameter[parameter].items()
    }
