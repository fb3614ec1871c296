"""Steps run for what they leave behind before the first request: compiled kernels, the libraries' plans, their memory.

Triton compiles a kernel when its variant is first needed, which takes seconds; without this, requests would wait.
Everything is written to the spare slot and the spare page, the last of each pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plait.model.layout import Exports, Layout
from plait.model.network import LanguageModel
from plait.model.state import State
from plait.ops.ahead import compile_ahead as compile_ahead
from plait.ops.ahead import get_ready as get_ready
from plait.ops.tuned import token_counts

PLANNED, STEP = 1024, 512  # chunks from PLANNED on go through cuDNN, which plans for each multiple of STEP


def lengths(most: int) -> list[int]:
    """Tokens of the prefills that meet every compiled variant and every plan of steps of up to `most` tokens, the
    largest first, so that the smaller ones fit into its memory. Raises ValueError for most < 1.
    """
    return sorted({*token_counts(most), *range(PLANNED, most + 1, STEP)}, reverse=True)


def warm_up(model: LanguageModel, state: State, most: int) -> None:
    """A prefill of each of `lengths`, with a state exported from its middle and without, and its last logits. Mutates
    the spare slot and page of `state`, and leaves zeros there.
    """
    for layout in _layouts(state, most):
        token_ids = torch.zeros(1, layout.n_tokens, dtype=torch.long, device=state.k.device)
        hidden = model(token_ids, layout, state, keep="none").hidden
        model.logits(hidden[-1:])
    for pool in (state.conv, state.ssm, state.k, state.v, state.k_scales, state.v_scales):
        if pool is not None:
            pool[:, -1] = 0


@contextmanager
def one_layer_of_each_kind(model: LanguageModel) -> Iterator[None]:
    """Within the block the model ends where all that follows is like a layer before: enough to launch every kernel that
    it launches. Mutates the model meanwhile.
    """
    whole = model.layers
    kinds = [_kind(layer) for layer in whole]
    model.layers = whole[: 1 + max(kinds.index(kind) for kind in kinds)]
    try:
        yield
    finally:
        model.layers = whole


def _kind(layer: nn.Module) -> list[tuple[Any, ...]]:
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    return [(name, t.shape, t.dtype, t.stride()) for name, t in tensors]


def _layouts(state: State, most: int) -> Iterator[Layout]:
    device = state.k.device
    slot = torch.tensor([state.n_slots - 1], device=device)
    for n_tokens in lengths(most):
        n_pages = -(-n_tokens // state.page_size)
        exports = Exports(torch.tensor([n_tokens // 2], dtype=torch.int32, device=device), torch.zeros_like(slot), slot)
        for wanted in (None, exports):
            yield Layout.flat(
                n_tokens=n_tokens,
                n_decode=0,
                cu_seqlens=torch.tensor([0, n_tokens], dtype=torch.int32, device=device),
                slots=slot,
                fresh=torch.ones(1, dtype=torch.bool, device=device),
                context_lens=torch.zeros(1, dtype=torch.int32, device=device),
                page_table=torch.full((1, n_pages), state.n_pages - 1, dtype=torch.int32, device=device),
                exports=wanted,
                lengths=([0, n_tokens], [0]),
            )
