"""The feed-forwards: a dense SwiGLU MLP, and a mixture of such experts (paper section 2). Quantized weights: section
3.1.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model.linear import Linear
from plait.model.quantized import dequantized, is_per_row
from plait.model.stats import Activation
from plait.ops.group_linear import group_linear, is_fused
from plait.ops.moe import combine, combine_sized, expert_outputs, fp8, moe, moe_share, prepare, route, swiglu

MANY_TOKENS = 256  # from which on fp8 activations are used, where they were asked for


class SwiGLU(nn.Module):
    """The weights of down(silu(gate(x)) * up(x)): gate and up are one matrix, gate rows first.

    They may be quantized (`model.quantized.set_quantized`): then they are parameters that take no gradient. Values with
    a scale per row (ExpertsInt8) go into the kernels as they are, others are dequantized before.
    """

    gate_up: nn.Parameter  # [..., 2 * d_ff, d_model]
    down: nn.Parameter  # [..., d_model, d_ff]
    gate_up_scale: Tensor | None  # [..., 2 * d_ff], or [..., 2 * d_ff, groups]
    down_scale: Tensor | None  # [..., d_model], or [..., d_model, groups]

    def __init__(self, d_model: int, d_ff: int, *stacked: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(*stacked, 2 * d_ff, d_model))
        self.down = nn.Parameter(torch.empty(*stacked, d_model, d_ff))
        self.register_buffer("gate_up_scale", None)
        self.register_buffer("down_scale", None)
        self.fp8_activations = False  # with fp8 weights, in calls of many tokens; approximate, so only when asked for

    def _rounds_activations(self, x: Tensor) -> bool:
        return self.fp8_activations and x.shape[0] >= MANY_TOKENS

    @property
    def is_quantized(self) -> bool:
        return self.gate_up_scale is not None

    @property
    def is_int8(self) -> bool:
        return self.gate_up.dtype == torch.int8

    @property
    def needs_dequantizing(self) -> bool:
        """Whether the values are of a form that no kernel reads: int4, or with scales of groups."""
        scale = self.down_scale
        return scale is not None and self.down.dtype != torch.uint8 and not is_per_row(self.down, scale)

    def prepare(self) -> None:
        """int8 weights into the layout this device's kernels read fastest (`ops.moe.prepare`). Mutates the weights:
        they can't be saved or observed after it.
        """
        if self.is_int8 and not self.needs_dequantizing:
            weights = _prepared_in_place(self.gate_up.data, self.down.data)
            self.gate_up, self.down = (nn.Parameter(weight, requires_grad=False) for weight in weights)

    def _in_groups(self, x: Tensor, expert_ids: Tensor | None = None) -> Tensor:
        """x [rows, d_model] through weights that need dequantizing; with expert_ids [rows], each through its expert."""
        assert self.gate_up_scale is not None
        assert self.down_scale is not None
        gate, up = group_linear(x, self.gate_up, self.gate_up_scale, expert_ids).chunk(2, dim=-1)
        return group_linear(nn.functional.silu(gate) * up, self.down, self.down_scale, expert_ids)

    def _full(self, dtype: torch.dtype, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both weights dequantized; with `chosen`, those of these experts only."""
        pairs = ((self.gate_up, self.gate_up_scale), (self.down, self.down_scale))
        pick = slice(None) if chosen is None else chosen
        gate_up, down = (dequantized(values[pick], scale[pick], dtype) for values, scale in pairs if scale is not None)
        return gate_up, down


def _prepared_in_place(gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """`prepare`, expert by expert, each over the bytes that it was: no copy of a layer is made. Mutates both."""
    if gate_up.dim() == 2:
        return prepare(gate_up, down)
    whole = gate_up, down
    for i in range(len(gate_up)):
        made = prepare(gate_up[i], down[i])
        if made[0].dtype == gate_up.dtype:
            return whole
        for stack, one in zip(whole, made, strict=True):
            stack[i].view(-1).view(one.dtype).copy_(one.view(-1))
    gate_up, down = (stack.view(one.dtype).view(-1, *one.shape) for stack, one in zip(whole, made, strict=True))
    return gate_up, down


class MLP(SwiGLU):
    """The dense feed-forward. [tokens, d_model] -> [tokens, d_model]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model, config.d_ff)

    def forward(self, x: Tensor) -> Tensor:
        if self.needs_dequantizing:
            return self._in_groups(x) if is_fused(x, x.shape[0]) else swiglu(x, *self._full(x.dtype))
        if self._rounds_activations(x):
            assert self.gate_up_scale is not None
            assert self.down_scale is not None
            return fp8.swiglu(x, self.gate_up, self.down, self.gate_up_scale, self.down_scale)
        if self.down.dtype == torch.float8_e4m3fn and x.is_cuda:
            return self._as_one_expert(x)
        return swiglu(x, self.gate_up, self.down, gate_up_scale=self.gate_up_scale, down_scale=self.down_scale)

    def _as_one_expert(self, x: Tensor) -> Tensor:
        """Through the kernels of experts, which read fp8 rows where the library's products would convert them first."""
        assert self.gate_up_scale is not None
        assert self.down_scale is not None
        ids = torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)
        return moe(
            x, torch.ones(x.shape[0], 1, device=x.device), ids, self.gate_up[None], self.down[None],
            gate_up_scale=self.gate_up_scale[None], down_scale=self.down_scale[None],
        )  # fmt: skip


class Dispatcher(Protocol):
    """Seam: takes tokens to the experts they chose, on whichever process these lie, and the outputs back. No token is
    dropped. `moe` holds this process's share of the weights; expert_ids count all experts.
    """

    def outputs(self, moe: MoE, x: Tensor, expert_ids: Tensor) -> Tensor:
        """x [tokens, d_model], expert_ids [tokens, top_k] -> [tokens, top_k, d_model], not yet weighted."""
        ...

    def combined(self, moe: MoE, x: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """The weighted sum of those outputs, [tokens, d_model]."""
        ...


def route_biased(router_logits: Tensor, top_k: int, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`route`, but the k greatest of probability + bias [n_experts] are chosen; weights are probabilities as ever."""
    probabilities = router_logits.to(torch.promote_types(router_logits.dtype, torch.float32)).softmax(-1)
    expert_ids = (probabilities.detach() + bias).topk(top_k, dim=-1).indices
    return probabilities.gather(1, expert_ids), expert_ids


class MoE(SwiGLU):
    """A mixture of experts: softmax over all in fp32, the top k unrenormalised, no dropped tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model, config.d_ff, config.n_experts)
        self.top_k = config.top_k
        self.router = Linear(config.d_model, config.n_experts, bias=False)
        self.dispatcher: Dispatcher | None = None  # all experts lie here
        self.choice_bias: Tensor | None = None  # seam: what training adds to probabilities where it balances by choice

    def choose(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        """(weights, expert_ids), [tokens, top_k] each."""
        if self.choice_bias is None:
            return route(router_logits, self.top_k)
        return route_biased(router_logits, self.top_k, self.choice_bias)

    def forward(self, x: Tensor) -> Tensor:
        weights, expert_ids = self.choose(self.router(x))
        if self.dispatcher is not None:
            return self.dispatcher.combined(self, x, weights, expert_ids)
        return self.own_combined(x, weights, expert_ids)

    def observed(self, x: Tensor, differentiable: bool = True) -> tuple[Tensor, Tensor, Activation]:
        """The output, the router logits [tokens, n_experts], and the size of the experts' unweighted outputs."""
        router_logits = self.router(x)
        weights, expert_ids = self.choose(router_logits)
        if self.dispatcher is not None:
            outputs = self.dispatcher.outputs(self, x, expert_ids)
        else:
            outputs = self.own_outputs(x, expert_ids)
        if not differentiable:
            return combine(outputs, weights), router_logits, Activation.watched(outputs)
        out, squares, max_abs = combine_sized(outputs, weights)
        return out, router_logits, Activation(squares / outputs.numel(), max_abs)

    def own_outputs(self, x: Tensor, expert_ids: Tensor) -> Tensor:
        """Of the weights that lie here: x [tokens, d_model], expert_ids [tokens, top_k] -> [tokens, top_k, d_model]."""
        if self.needs_dequantizing:
            return expert_outputs(x, expert_ids, *self._full(x.dtype))
        scales = {"gate_up_scale": self.gate_up_scale, "down_scale": self.down_scale}
        return expert_outputs(x, expert_ids, self.gate_up, self.down, **scales)

    def own_combined(self, x: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """The weighted sum of those outputs, [tokens, d_model]."""
        if self._rounds_activations(x):
            assert self.gate_up_scale is not None
            assert self.down_scale is not None
            return fp8.moe(x, weights, expert_ids, self.gate_up, self.down, self.gate_up_scale, self.down_scale)
        if not self.needs_dequantizing:
            scales = {"gate_up_scale": self.gate_up_scale, "down_scale": self.down_scale}
            return moe(x, weights, expert_ids, self.gate_up, self.down, **scales)
        if is_fused(x, expert_ids.numel()):
            rows = x.repeat_interleave(expert_ids.shape[1], dim=0)
            return combine(self._in_groups(rows, expert_ids.flatten()).view(*expert_ids.shape, -1), weights)
        if expert_ids.numel() >= self.down.shape[0]:
            return moe(x, weights, expert_ids, *self._full(x.dtype))
        own = torch.arange(expert_ids.numel(), device=x.device).view_as(expert_ids)  # each choice its expert's copy
        return moe(x, weights, own, *self._full(x.dtype, expert_ids.flatten()))

    def own_share(self, x: Tensor, weights: Tensor, expert_ids: Tensor, first_expert: int, n_experts: int) -> Tensor:
        """What the experts that lie here, those from first_expert on, add to a mixture of n_experts: [tokens, d_model].
        expert_ids count all; nothing is computed, or read, for a choice of another process. Inference only.
        """
        assert not self.needs_dequantizing, "scales of groups are not split"
        assert not self.fp8_activations, "these need the number of tokens of each expert on the host"
        return moe_share(
            x, weights, expert_ids, self.gate_up, self.down, first_expert=first_expert, n_experts=n_experts,
            gate_up_scale=self.gate_up_scale, down_scale=self.down_scale,
        )  # fmt: skip
