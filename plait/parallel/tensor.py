"""Tensor and sequence parallelism: each process holds a slice of every matrix, as a plain tensor.

A block (a mixer, an MLP, the experts) takes whole tokens, computes its slice of heads, channels or columns, and one
all-reduce adds the slices up. Under sequence parallelism that is a reduce-scatter behind the block and an all-gather in
front of the next, and norms and residuals see a share of the tokens only. Mamba-1 needs one more sum, of the dt_rank +
2 d_state values a token that its inner norms run over.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model.attention import Attention
from plait.model.feed_forward import MLP, MoE, combine
from plait.model.linear import Embedding, Linear, scaled_linear
from plait.model.mamba import Mamba
from plait.model.network import LanguageModel, Layer
from plait.model.quantized import is_per_row
from plait.parallel.collectives import (
    Group,
    copy_to,
    gather,
    gathered,
    reduce_from,
    reduce_scatter,
    sum_both_ways,
)
from plait.parallel.mesh import check_tensor_split
from plait.parallel.placement import Placement, placement_of, placements


@dataclass(frozen=True, eq=False)
class TensorGroup:
    """The processes that share each matrix. `sequence`: between blocks each has its share of the tokens."""

    group: Group
    sequence: bool = False

    @property
    def place(self) -> tuple[int, int]:
        return self.group.rank(), self.group.size()

    def enter(self, x: Tensor) -> Tensor:
        """Tokens as they are between blocks -> all tokens, for a block's slice of the work."""
        return gather(x, self.group) if self.sequence else copy_to(x, self.group)

    def leave(self, partial: Tensor) -> Tensor:
        """A block's part of all tokens' outputs -> their sum, as tokens are between blocks."""
        return reduce_scatter(partial, self.group) if self.sequence else reduce_from(partial, self.group)


def tensor_parallel(
    model: LanguageModel, group: Group, *, sequence: bool = False, experts: bool = True, is_sliced: bool = False
) -> LanguageModel:
    """Keep this process's slice of every parameter and join the slices' work. Mutates and returns the model.

    Works for training and, without `sequence`, for inference with a State of `split=group.size()`: prefill and decode
    then cost one all-reduce a block (and a small one in a Mamba mixer). Works on the meta device too: fill it
    afterwards through `Placement.share`. int8 weights are sliced with their row scales; packed ones (`ops.moe.prepare`)
    must be packed afterwards. `experts` False leaves the mixtures whole, for expert parallelism.

    Every process gives the same whole model, or, with `is_sliced`, its own share of every part (`slice_part`).
    ValueError, with the reason, for one that doesn't divide evenly.
    """
    check_tensor_split(model.config, group.size(), experts=experts)
    tp = TensorGroup(group, sequence)
    if not is_sliced:
        _check_quantized(model)
        table = placements(model.config, tp=group.size(), sequence=sequence)
        if not experts:
            moe = {f"layers.{i}.ffn." for i, kind in enumerate(model.config.layer_kinds()) if kind.ffn == "moe"}
            table = {name: place for name, place in table.items() if not name.startswith(tuple(moe))}
        slice_parameters(model, table, tp=tp.place)
    model.embed = VocabularyEmbedding(model.embed, tp)
    model.whole_vocabulary = functools.partial(_whole_vocabulary, tp=tp)  # type: ignore[method-assign]
    for layer in cast(list[Layer], list(model.layers)):
        _split_mixer(layer.mixer, tp, model)
        if isinstance(layer.ffn, MLP):
            _between(layer.ffn, tp)
        elif experts:
            layer.ffn.dispatcher = SplitExperts(tp)
    return model


def slice_part(
    name: str, part: nn.Module, *, config: ModelConfig, place: tuple[int, int], whole_experts: bool = False
) -> None:
    """Cut a part of a whole model (`embed`, `layers.3`, ...) down to what process `place` (rank, size) keeps of it, so
    that a model can be loaded part by part and is never there whole. whole_experts: of a mixture, some experts rather
    than columns of all. Mutates it. ValueError as `tensor_parallel`.
    """
    _check_quantized(part)
    prefix, table = f"{name}.", placements(config, tp=place[1], ep=place[1] if whole_experts else 1)
    own = {n.removeprefix(prefix): p for n, p in table.items() if n.startswith(prefix)}
    slice_parameters(part, own, tp=place, ep=place if whole_experts else (0, 1))


def _check_quantized(model: nn.Module) -> None:
    for name, scale in model.named_buffers():
        values = model.get_parameter(name.removesuffix("_scale"))
        if values.dtype == torch.uint8:
            raise ValueError(f"{name.removesuffix('_scale')} is packed: split the model first, then prepare it")
        if not is_per_row(values, scale):
            raise ValueError(f"{name} has scales of groups, which are not split: use tp=1, or one scale per row")


@torch.no_grad()
def slice_parameters(
    model: nn.Module, table: dict[str, Placement], *, tp: tuple[int, int] = (0, 1), ep: tuple[int, int] = (0, 1)
) -> None:
    """Replace every parameter and buffer by this process's share. Mutates the model; tied parameters stay tied."""
    for name, parameter in list(model.named_parameters()):
        part = placement_of(table, name).share(parameter, tp=tp, ep=ep)
        if part.shape != parameter.shape:
            _replace(model, name, nn.Parameter(part.clone(), requires_grad=parameter.requires_grad))
    for name, buffer in list(model.named_buffers()):
        part = placement_of(table, name).share(buffer, tp=tp, ep=ep)
        if part.shape != buffer.shape:
            _replace(model, name, part.clone())


def _replace(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, value)


def _split_mixer(mixer: nn.Module, tp: TensorGroup, model: LanguageModel) -> None:
    _between(mixer, tp)
    if isinstance(mixer, Mamba):
        mixer.x_proj = SummedLinear(mixer.x_proj, tp)
        if mixer.out_proj.bias is not None:
            mixer.out_proj = SharedBiasLinear(mixer.out_proj, tp)
    elif isinstance(mixer, Attention) and model.config.n_kv_heads % tp.group.size():
        rank, size = tp.place
        head = rank * model.config.n_kv_heads // size
        rows = slice(head * mixer.d_head, (head + 1) * mixer.d_head)
        mixer.k_proj, mixer.v_proj = (RowsOfLinear(proj, rows) for proj in (mixer.k_proj, mixer.v_proj))


def _between(block: nn.Module, tp: TensorGroup) -> None:
    """All tokens into the block, one sum out of it."""

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tp.enter(args[0]), *args[1:]

    def leave(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        return tp.leave(out)

    block.register_forward_pre_hook(enter)
    block.register_forward_hook(leave)


class _TakesOver(Linear):
    """A Linear over the parameters of another."""

    def __init__(self, linear: Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("weight_scale", linear.weight_scale)


class SummedLinear(_TakesOver):
    """A slice of the input columns; the sum over processes goes into work that is split again (Mamba's dt, B and C)."""

    def __init__(self, linear: Linear, tp: TensorGroup) -> None:
        super().__init__(linear)
        self.tp = tp

    def forward(self, x: Tensor) -> Tensor:
        return sum_both_ways(super().forward(x), self.tp.group)


class SharedBiasLinear(_TakesOver):
    """A slice of the input columns, with a bias that the sum over processes adds once."""

    def __init__(self, linear: Linear, tp: TensorGroup) -> None:
        super().__init__(linear)
        self.tp = tp

    def forward(self, x: Tensor) -> Tensor:
        return scaled_linear(x, self.weight, self.weight_scale) + self.bias / self.tp.group.size()


class RowsOfLinear(_TakesOver):
    """Some rows of a matrix that every process holds whole: one KV head of fewer than there are processes."""

    def __init__(self, linear: Linear, rows: slice) -> None:
        super().__init__(linear)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        scale = None if self.weight_scale is None else self.weight_scale[self.rows]
        return scaled_linear(x, self.weight[self.rows], scale)


class VocabularyEmbedding(Embedding):
    """A slice of the vocabulary; ids of other slices embed as zero, and the sum over processes has them all."""

    def __init__(self, embed: Embedding, tp: TensorGroup) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = embed.weight.shape
        self.padding_idx = self.max_norm = None
        self.weight, self.tp = embed.weight, tp
        self.register_buffer("weight_scale", embed.weight_scale)

    def forward(self, ids: Tensor) -> Tensor:
        local = ids - self.tp.group.rank() * self.num_embeddings
        mine = (local >= 0) & (local < self.num_embeddings)
        x = super().forward(local.masked_fill(~mine, 0)) * mine[..., None]
        return self.tp.leave(x)


def _whole_vocabulary(logits: Tensor, tp: TensorGroup) -> Tensor:
    """[..., vocab_size / processes] -> [..., vocab_size], for inference: it has no gradient."""
    if logits.requires_grad:
        raise RuntimeError("split logits have no gradient; plait.parallel.cross_entropy takes the hidden states")
    parts = gathered(logits.movedim(-1, 0), tp.group)
    return parts.movedim(0, -1)


@dataclass(frozen=True, eq=False)
class SplitExperts:
    """Every process has a slice of the columns of every expert (the Dispatcher of tensor parallelism)."""

    tp: TensorGroup

    def outputs(self, moe: MoE, x: Tensor, expert_ids: Tensor) -> Tensor:
        ids = gathered(expert_ids, self.tp.group) if self.tp.sequence else expert_ids
        return self.tp.leave(moe.own_outputs(self.tp.enter(x), ids))

    def combined(self, moe: MoE, x: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.tp.sequence:  # weights see whole outputs, and so get a whole gradient
            return combine(self.outputs(moe, x, expert_ids), weights)
        return self.tp.leave(moe.own_combined(x, weights, expert_ids))
