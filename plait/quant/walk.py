"""Activations carried through a model one part at a time, so that a model too large for memory can be run while it is
read, and the inputs of its weights seen (calibration, errors, perplexity).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from plait.model.feed_forward import MoE, SwiGLU
from plait.model.layout import Layout
from plait.model.quantization_config import Matrix
from plait.model.quantized import dequantized
from plait.ops.moe import route


class Walk:
    """Some sequences on their way through a model: token_ids [n_sequences, seq], one sequence run at a time, with
    activations in `dtype`.
    """

    def __init__(self, token_ids: Tensor, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.token_ids, self.dtype = token_ids.to(device), dtype
        self.layout = Layout.dense(1, token_ids.shape[1], self.token_ids.device)
        self.x: list[Tensor] = []  # [seq, d_model] of each sequence

    @torch.no_grad()
    def step(self, name: str, part: nn.Module) -> None:
        """Through the embedding, a layer, or the final norm, as `load_model` hands them over; not the head."""
        if name == "embed":
            self.x = [part(ids).to(self.dtype) for ids in self.token_ids]
        elif name.startswith("layers."):
            self.x = [part(x, self.layout)[0] for x in self.x]
        elif name == "final_norm":
            self.x = [part(x) for x in self.x]

    @torch.no_grad()
    def inputs(self, part: nn.Module, modules: set[nn.Module]) -> dict[nn.Module, Tensor]:
        """What a layer feeds these of its modules, all tokens together [tokens, width]. Takes no step."""
        seen: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}
        with hooked(modules, lambda module, given: seen[module].append(given.flatten(0, -2))):
            for x in self.x:
                part(x, self.layout)
        return {module: torch.cat(rows) for module, rows in seen.items()}


@contextmanager
def hooked(modules: set[nn.Module], see: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Within the block, `see(module, its input)` whenever one of them runs."""
    hooks = [m.register_forward_pre_hook(lambda module, args: see(module, args[0])) for m in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def matrix_inputs(matrix: Matrix, x: Tensor) -> list[Tensor]:
    """The inputs of a matrix, or of each matrix of a stack, when its module is fed x [tokens, width].

    An expert that fewer tokens chose than its inputs have columns is given all of them: its own would not tell enough.
    """
    if not isinstance(matrix.module, SwiGLU):
        return [x]
    ffn = matrix.module
    if not isinstance(ffn, MoE):
        return [x] if matrix.parameter == "gate_up" else [gated(ffn, x, None)]
    _, expert_ids = route(ffn.router(x), ffn.top_k)
    fed = [x[(expert_ids == expert).any(-1)] for expert in range(ffn.down.shape[0])]
    fed = [own if len(own) >= matrix.values.shape[-1] else x for own in fed]
    if matrix.parameter == "gate_up":
        return fed
    return [gated(ffn, own, expert) for expert, own in enumerate(fed)]


def gated(ffn: SwiGLU, x: Tensor, expert: int | None) -> Tensor:
    """silu(gate(x)) * up(x) of an MLP, or of one expert: the inputs of its down projection."""
    values = ffn.gate_up if expert is None else ffn.gate_up[expert]
    scale = ffn.gate_up_scale
    if scale is not None:
        values = cast(nn.Parameter, dequantized(values, scale if expert is None else scale[expert], x.dtype))
    gate, up = nn.functional.linear(x, values).chunk(2, dim=-1)
    return nn.functional.silu(gate) * up
