"""The processes of a run as a grid, and what each of its axes is for (paper section 5.1).

    rank = ((replica * dp_shard + shard) * cp + context) * tp + tensor

The same ranks are seen in two ways. Dense: (dp_replicate, fsdp = dp_shard * cp, tp) for everything but experts. Expert:
(dp_replicate, efsdp, ep) with ep the innermost, so that experts are exchanged between neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from plait.config import ModelConfig


@dataclass(frozen=True)
class ParallelConfig:
    """How a run is spread over dp_replicate * dp_shard * cp * tp processes. All 1: one process.

    dp_shard 0 is whatever is left of the processes (`filled`). `sequence`: between tensor-parallel blocks each process
    keeps only its share of the tokens.
    """

    dp_replicate: int = 1  # copies of the whole sharded model (HSDP)
    dp_shard: int = 1  # parameters, gradients and optimizer are sharded over these and cp (FSDP)
    cp: int = 1  # processes that share each sequence
    tp: int = 1  # processes that share each matrix
    ep: int = 1  # processes that share the experts; they are taken from dp_shard * cp * tp
    sequence: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "dp_shard" else 1
            if field.name != "sequence" and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"parallel.{field.name}={value!r} must be a whole number of at least {least}")
        if (self.dp_shard * self.cp * self.tp) % self.ep:
            raise ValueError(f"ep={self.ep} must divide dp_shard*cp*tp={self.dp_shard * self.cp * self.tp}")
        if self.ep > 1 and self.tp > 1 and not self.sequence:
            raise ValueError(
                f"ep={self.ep} with tp={self.tp} needs sequence=true: otherwise all {self.tp} tensor-parallel "
                "processes would send the same tokens to the experts"
            )

    def filled(self, world: int) -> ParallelConfig:
        """With dp_shard said: where it is 0, what `world` leaves for it. ValueError if the grid isn't of `world`."""
        others = self.dp_replicate * self.cp * self.tp
        if self.dp_shard == 0 and world % others == 0:
            return replace(self, dp_shard=world // others)
        if self.dp_shard * others != world:
            wanted = f"dp_replicate*cp*tp={others}" if self.dp_shard == 0 else f"the grid of {self.world}"
            raise ValueError(
                f"{world} processes were started, which {wanted} doesn't fill; start others or change parallel"
            )
        return self

    @property
    def world(self) -> int:
        return self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def fsdp(self) -> int:
        """Processes that shard each dense parameter."""
        return self.dp_shard * self.cp

    @property
    def efsdp(self) -> int:
        """Processes that shard each expert, beyond their split over ep."""
        return self.dp_shard * self.cp * self.tp // self.ep

    @property
    def splits_tokens(self) -> bool:
        """Whether the residual stream is split over tp."""
        return self.tp > 1 and self.sequence

    @property
    def loader_ranks(self) -> int:
        """Processes (groups of cp * tp, really) that read different rows."""
        return self.dp_replicate * self.dp_shard

    def check(self, model: ModelConfig, *, seq: int, rows: int, world: int) -> None:
        """ValueError, with the reason, unless `rows` rows of `seq` tokens a pass of such a model divide evenly."""
        if self.world != world:
            raise ValueError(
                f"dp_replicate*dp_shard*cp*tp={self.world} must be the number of processes, {world}: start as many, or "
                "change parallel.dp_shard"
            )
        _divides("dp_replicate*dp_shard", self.loader_ranks, "rows of a pass (batch/accumulate)", rows)
        _divides("cp", self.cp, "seq", seq)
        if self.cp > 1 and seq // self.cp < model.d_conv - 1:
            raise ValueError(f"cp={self.cp}: seq/cp={seq // self.cp} must be at least d_conv-1={model.d_conv - 1}")
        if self.cp > 1 and model.mamba_kind == "mamba2" and model.n_mamba_layers:
            raise ValueError(f"cp={self.cp}: mamba2 has no state passing between processes; use mamba_kind=mamba")
        if self.splits_tokens:
            tokens = rows // self.loader_ranks * seq // self.cp
            _divides("tp", self.tp, "tokens of a pass on one process (sequence=true)", tokens)
        check_tensor_split(model, self.tp, experts=self.ep == 1)
        if model.n_moe_layers:
            _divides("ep", self.ep, "n_experts", model.n_experts)
        elif self.ep > 1:
            raise ValueError(f"ep={self.ep}: the model has no experts")
        _divides("dp_shard*cp", self.fsdp, "d_model", model.d_model)
        if self.ep > 1:
            _divides("dp_shard*cp*tp/ep", self.efsdp, "d_model", model.d_model)


def check_tensor_split(model: ModelConfig, tp: int, *, experts: bool = True) -> None:
    """ValueError, with the reason, unless every matrix of such a model divides over `tp` processes."""
    if tp == 1:
        return
    _divides("tp", tp, "vocab_size", model.vocab_size)
    if model.n_attention_layers:
        _divides("tp", tp, "n_heads", model.n_heads)
        if model.n_kv_heads % tp and tp % model.n_kv_heads:
            raise ValueError(f"tp={tp} must divide n_kv_heads={model.n_kv_heads} or be a multiple of it")
    if model.n_mamba_layers:
        if model.mamba_kind == "mamba2":
            raise ValueError(f"tp={tp}: mamba2's heads share B, C and one norm, which are not split; use tp=1")
        _divides("tp", tp, "d_inner", model.d_inner)
    if experts or model.n_moe_layers < model.n_layers:
        _divides("tp", tp, "d_ff", model.d_ff)


def _divides(axis: str, size: int, what: str, number: int) -> None:
    if number % size:
        raise ValueError(f"{axis}={size} must divide {what}={number}")


@dataclass(frozen=True, eq=False)
class Mesh:
    """The grid of running processes. Build it once, after torch.distributed is initialised."""

    config: ParallelConfig
    device: torch.device
    dense: DeviceMesh  # (dp_replicate, fsdp, tp)
    expert: DeviceMesh  # (dp_replicate, efsdp, ep)
    matrices: DeviceMesh  # (dp_replicate, tp, fsdp): a matrix is split over tp first, and each slice over fsdp
    context: DeviceMesh  # (loader, cp, tp)
    rows: DeviceMesh  # (dp_replicate * fsdp, tp): the first axis joins what differs in tokens before any split over tp

    @classmethod
    def of(cls, config: ParallelConfig, device: torch.device | str = "cpu") -> Mesh:
        """Raises ValueError unless as many processes run as the configuration names."""
        device = torch.device(device)
        if config.world != dist.get_world_size():
            raise ValueError(
                f"dp_replicate*dp_shard*cp*tp={config.world} must be the number of processes, {dist.get_world_size()}"
            )

        def grid(**axes: int) -> DeviceMesh:
            return init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))

        ranks = torch.arange(config.world).view(config.dp_replicate, config.fsdp, config.tp)
        return cls(
            config,
            device,
            dense=grid(dp_replicate=config.dp_replicate, fsdp=config.fsdp, tp=config.tp),
            expert=grid(dp_replicate=config.dp_replicate, efsdp=config.efsdp, ep=config.ep),
            matrices=DeviceMesh(device.type, ranks.transpose(1, 2), mesh_dim_names=("dp_replicate", "tp", "fsdp")),
            context=grid(loader=config.loader_ranks, cp=config.cp, tp=config.tp),
            rows=grid(rows=config.dp_replicate * config.fsdp, tp=config.tp),
        )

    @property
    def loader_rank(self) -> int:
        """Which share of a batch's rows this process reads."""
        return self.context.get_local_rank("loader")

    @property
    def tp_group(self) -> dist.ProcessGroup:
        return self.dense.get_group("tp")

    @property
    def cp_group(self) -> dist.ProcessGroup:
        return self.context.get_group("cp")

    @property
    def ep_group(self) -> dist.ProcessGroup:
        return self.expert.get_group("ep")

    @property
    def rows_group(self) -> dist.ProcessGroup:
        """Processes whose tokens differ, whatever tensor parallelism does with them afterwards."""
        return self.rows.get_group("rows")

    @property
    def tokens_group(self) -> dist.ProcessGroup | None:
        """Processes that hold different tokens of the residual stream; None is all."""
        return self.rows_group if self.config.tp > 1 and not self.config.sequence else None

    def sharding(self, experts: bool) -> DeviceMesh:
        """The axes FSDP runs over: sharded, and in front the replicas if there are any."""
        mesh: Any = self.expert if experts else self.dense
        shard = "efsdp" if experts else "fsdp"
        return mesh["dp_replicate", shard] if self.config.dp_replicate > 1 else mesh[shard]
