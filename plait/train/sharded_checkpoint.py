"""Checkpoints of several processes: each writes its shares (PyTorch's DCP), and any mesh reads them.

checkpoints/step-00000200/ holds DCP's files and state.json; the folder gets its name when all is written. Tensors are
stored as what they are part of (`parallel.whole`), so a run goes on over another grid of processes, or on one. Writing
happens behind the next steps: `save` copies to the host and returns.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from plait.model.network import LanguageModel
from plait.parallel.gradients import local
from plait.parallel.plan import Plan
from plait.parallel.whole import in_pairs, whole
from plait.train.balance import ChoiceBias
from plait.train.checkpoint import drop_old, read_state, state_text
from plait.train.ema import Ema
from plait.train.guard import Guard
from plait.train.optimizer import AnyOptimizer, states

METADATA = ".metadata"  # DCP's own


class ShardedCheckpoints:
    """Writes a run's checkpoints from all processes; the first one names and drops folders."""

    def __init__(self, folder: Path, plan: Plan, *, keep: int, keep_every: int = 0) -> None:
        self.folder, self.plan, self.keep, self.keep_every = folder, plan, keep, keep_every
        self.group = dist.new_group(backend="gloo")  # its own: it talks while the next steps do
        self.writing: tuple[Future[Any], Path, str] | None = None

    def save(
        self,
        step: int,
        model: LanguageModel,
        optimizer: AnyOptimizer,
        ema: Ema,
        guard: Guard,
        balance: ChoiceBias | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Begin to write the state after `step` steps. Every process calls it.

        Raises FloatingPointError, and writes nothing, for parameters that are not finite.
        """
        self.finish()
        finite = all(bool(torch.isfinite(local(p.detach())).all()) for p in model.parameters())
        if float(self.plan.largest(torch.tensor(float(not finite), device=self._device))):
            raise FloatingPointError(f"step {step} left inf or nan in the parameters: no checkpoint is written")
        partial = self.folder / f"step-{step:08}.partial"
        if self.plan.is_first:
            for leftover in self.folder.glob("*.partial"):  # of a process that was killed
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)
        dist.barrier(group=self.group)
        tensors = whole_state(model, optimizer, ema, self.plan)
        future = dcp.async_save(tensors, checkpoint_id=partial, process_group=self.group)
        self.writing = future, partial, state_text(step, guard, balance)  # type: ignore[assignment]
        if wait:
            self.finish()

    @property
    def _device(self) -> torch.device:
        assert self.plan.mesh is not None
        return self.plan.mesh.device

    def poll(self) -> None:
        """Complete what was written meanwhile. Waits for nothing."""
        if self.writing is not None and self.writing[0].done():
            self._complete()

    def finish(self) -> None:
        """Wait until what is being written is whole, on every process."""
        if self.writing is not None:
            self._complete()
        dist.barrier(group=self.group)

    def _complete(self) -> None:
        assert self.writing is not None
        future, partial, state = self.writing
        self.writing = None
        future.result()  # the first process's ends when all have written
        if self.plan.is_first:
            (partial / "state.json").write_text(state)
            for path in partial.iterdir():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            os.rename(partial, partial.with_suffix(""))
            drop_old(self.folder, keep=self.keep, keep_every=self.keep_every)


def whole_state(model: LanguageModel, optimizer: AnyOptimizer, ema: Ema, plan: Plan) -> dict[str, Tensor]:
    """Every tensor that the next step depends on, in a form that is the same on any mesh. They share memory."""
    of_parameter = states(optimizer)
    tensors: dict[str, Tensor] = {}

    def put(name: str, key: str, tensor: Tensor) -> None:
        place = plan.place(name)
        if tensor.dim() == 0 and key.endswith("step"):
            tensors[f"{key}/{name}"] = local(tensor)
        elif plan.mesh is None:
            tensors[f"{key}/{name}"] = in_pairs(tensor.detach(), place)
        else:
            tensors[f"{key}/{name}"] = whole(tensor.detach(), place, plan.mesh)

    for name, parameter in model.named_parameters():
        put(name, "model", parameter)
        for moment, tensor in of_parameter[parameter].items():
            put(name, moment, tensor)
        if name in ema.weights:
            put(name, "ema", ema.weights[name])
    return tensors


def load_sharded(
    path: Path,
    model: LanguageModel,
    optimizer: AnyOptimizer,
    ema: Ema,
    guard: Guard,
    plan: Plan,
    balance: ChoiceBias | None = None,
) -> int:
    """Put a checkpoint's state, from whatever mesh, into the model and the rest; returns the number of steps done.
    Mutates them.
    """
    dcp.load(whole_state(model, optimizer, ema, plan), checkpoint_id=path, no_dist=plan.mesh is None)
    return read_state(path, guard, balance)
