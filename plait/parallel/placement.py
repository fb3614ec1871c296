"""Which part of every tensor a process holds under tensor and expert parallelism. One table, for all who need to know:
slicing at load, FSDP, gradient norms, checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from plait.config import ModelConfig

FP32_LEAVES = ("A_log", "D", "dt_bias")


@dataclass(frozen=True)
class Placement:
    """Of one tensor. `tp_dim` and `ep_dim` are the dims split over those axes, None where every process has the whole.

    `pair_dim`: a dim of two matrices, one after the other (gate and up; the halves of in_proj), which is split in each.
    """

    tp_dim: int | None = None
    pair_dim: int | None = None
    ep_dim: int | None = None
    partial: bool = False  # whole everywhere, but each tensor-parallel process sees only a part of its gradient
    sharded: bool = True  # by FSDP; False: small, and kept whole and in fp32 by every process

    @property
    def is_expert(self) -> bool:
        """Whether it belongs to the expert view of the mesh."""
        return self.ep_dim is not None

    @property
    def fsdp_dim(self) -> int:
        """The dim FSDP shards: not that of the experts, nor one of two matrices."""
        if self.pair_dim is not None:
            return self.pair_dim + 1
        return 0 if self.ep_dim is None else self.ep_dim + 1

    def share(self, whole: Tensor, tp: tuple[int, int] = (0, 1), ep: tuple[int, int] = (0, 1)) -> Tensor:
        """The part of `whole` that process (rank, size) of either axis holds."""
        part = whole
        if self.ep_dim is not None:
            part = part.chunk(ep[1], self.ep_dim)[ep[0]]
        if self.tp_dim is None or tp[1] == 1:
            return part
        if self.pair_dim is None:
            return part.chunk(tp[1], self.tp_dim)[tp[0]]
        pair = part.unflatten(self.pair_dim, (2, -1))
        return pair.chunk(tp[1], self.pair_dim + 1)[tp[0]].flatten(self.pair_dim, self.pair_dim + 1)


_COLUMNS, _ROWS = Placement(tp_dim=0), Placement(tp_dim=1)
_SSM = Placement(tp_dim=0, sharded=False)  # they live inside exponentials, and are 0.02 % of the weights
_SPLIT_MIXERS = {
    "mixer.q_proj.weight": _COLUMNS,
    "mixer.o_proj.weight": _ROWS,
    "mixer.in_proj.weight": Placement(tp_dim=0, pair_dim=0),
    "mixer.in_proj.bias": Placement(tp_dim=0, pair_dim=0, sharded=False),
    "mixer.conv.weight": _COLUMNS,
    "mixer.conv.bias": _COLUMNS,
    "mixer.x_proj.weight": _ROWS,
    "mixer.dt_norm.weight": Placement(partial=True),
    "mixer.B_norm.weight": Placement(partial=True),
    "mixer.C_norm.weight": Placement(partial=True),
    "mixer.dt_proj.weight": _COLUMNS,
    "mixer.dt_bias": _SSM,
    "mixer.A_log": _SSM,
    "mixer.D": _SSM,
    "mixer.out_proj.weight": _ROWS,
    "mixer.out_proj.bias": Placement(partial=True),
}


def placements(config: ModelConfig, *, tp: int = 1, ep: int = 1, sequence: bool = False) -> dict[str, Placement]:
    """The placement of every parameter (and int8 row scale) of a model, under the names of its state_dict."""
    kinds = config.layer_kinds()
    table = {
        "embed.weight": _COLUMNS,
        "head.weight": _COLUMNS,
        "final_norm.weight": Placement(partial=sequence),
    }
    for i, kind in enumerate(kinds):
        layer = f"layers.{i}."
        for name in ("mixer_norm.weight", "ffn_norm.weight"):
            table[layer + name] = Placement(partial=sequence)
        if kind.mixer == "mamba2":
            table |= {layer + f"mixer.{name}": Placement(sharded=False) for name in FP32_LEAVES}
        else:
            table |= {layer + name: place for name, place in _SPLIT_MIXERS.items()}
        whole_kv = config.n_kv_heads % tp != 0  # fewer heads than processes: each keeps all of them, and uses one
        for name in ("mixer.k_proj.weight", "mixer.v_proj.weight"):
            table[layer + name] = Placement(partial=True) if whole_kv else _COLUMNS
        table |= {layer + f"ffn.{name}": place for name, place in _feed_forward(kind.ffn == "moe", ep).items()}
        table[layer + "ffn.router.weight"] = Placement(partial=sequence)
    row_scales = {name + "_scale": replace(place, partial=False) for name, place in table.items() if place.tp_dim == 0}
    return row_scales | table


def _feed_forward(moe: bool, ep: int) -> dict[str, Placement]:
    if moe and ep > 1:
        split = Placement(ep_dim=0)
        return {
            "gate_up": replace(split, pair_dim=1), "down": split, "gate_up_scale": split, "down_scale": split,
        }  # fmt: skip
    first = 1 if moe else 0  # dim of the output rows
    return {
        "gate_up": Placement(tp_dim=first, pair_dim=first),
        "gate_up_scale": Placement(tp_dim=first, pair_dim=first),
        "down": Placement(tp_dim=first + 1),
        "down_scale": Placement(),
    }


def placement_of(table: dict[str, Placement], name: str) -> Placement:
    """Names that are in no table are whole everywhere, with whole gradients."""
    return table.get(name, Placement())
