"""SwiGLU experts of few tokens in one C call at the speed of memory (plait/native/src/linear.c); of more tokens one
expert after another, through the library's products (ops/linear/blocked.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait import native
from plait.native import why_not as why_not  # for IMPLEMENTATIONS
from plait.ops.dispatch import outside_graphs
from plait.ops.linear import blocked
from plait.ops.linear.native import MAX_WIDTH
from plait.ops.moe import grouped, reference

FEW_TOKENS = 8

INTEGERS = ("n_tokens", "n_experts", "top_k", "d_model", "d_ff", "x_stride", "x_type", "weight_type", "bits",
            "n_threads", "gate_up_stride", "down_stride")  # fmt: skip
POINTERS = ("x", "expert_ids", "weights", "gate_up", "down", "gate_up_scale", "down_scale", "y")


class ExpertsArgs(native.Arguments):
    """experts_args of src/linear.c, in its order."""

    _fields_ = native.fields(INTEGERS, POINTERS)

    def read_once(self) -> list[tuple[int, int]]:
        """Gate and up of a dense one; which experts will be chosen isn't known."""
        if self.expert_ids is not None:
            return []
        n_bytes = self.d_ff * self.d_model * native.SIZES[self.weight_type]
        return [(self.gate_up, n_bytes), (self.gate_up + n_bytes, n_bytes)]


@outside_graphs
def expert_outputs(
    x: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> Tensor:  # fmt: skip
    if not _can_run(x, gate_up, down, gate_up_scale, down_scale):
        return grouped.expert_outputs(x, expert_ids, gate_up, down, gate_up_scale, down_scale)
    return _outputs(x, expert_ids, gate_up, down, gate_up_scale, down_scale, bits=24)


@outside_graphs
def moe(
    x: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> Tensor:  # fmt: skip
    return _moe(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale, bits=24)


@outside_graphs
def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None, down_scale: Tensor | None) -> Tensor:
    """The dense MLP: one expert, which every token chose."""
    return _swiglu(x, gate_up, down, gate_up_scale, down_scale, bits=24)


@outside_graphs
def moe_int8_activations(
    x: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> Tensor:  # fmt: skip
    """Activations rounded to int8, one scale per token and product; as is the hidden one between the products."""
    return _moe(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale, bits=8)


def outputs_int8_activations(
    x: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> Tensor:  # fmt: skip
    """Of one choice a row, expert_ids [rows, 1] -> [rows, 1, d_model]."""
    weights = torch.ones(expert_ids.shape)
    return moe_int8_activations(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale)[:, None]


@outside_graphs
def swiglu_int8_activations(
    x: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None, down_scale: Tensor | None
) -> Tensor:
    return _swiglu(x, gate_up, down, gate_up_scale, down_scale, bits=8)


def _moe(
    x: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None,
    down_scale: Tensor | None, *, bits: int,
) -> Tensor:  # fmt: skip
    if not _can_run(x, gate_up, down, gate_up_scale, down_scale):
        return grouped.moe(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale)
    if len(x) <= FEW_TOKENS:
        return _experts(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale, bits=bits)
    outputs = _outputs(x, expert_ids, gate_up, down, gate_up_scale, down_scale, bits=bits)
    return reference.combine(outputs, weights)


def _swiglu(
    x: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None, down_scale: Tensor | None, *, bits: int
) -> Tensor:
    if x.dim() != 2 or not _can_run(x, gate_up, down, gate_up_scale, down_scale):
        return grouped.swiglu(x, gate_up, down, gate_up_scale, down_scale)
    if len(x) <= FEW_TOKENS:
        return _experts(x, None, None, gate_up[None], down[None], gate_up_scale, down_scale, bits=bits)[:, 0]
    return blocked.swiglu(x, gate_up, down, gate_up_scale, down_scale, round_activations=bits == 8)


def _outputs(
    x: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None,
    down_scale: Tensor | None, *, bits: int,
) -> Tensor:  # fmt: skip
    """Of each token and choice [tokens, top_k, d_model]: few tokens in one call, many sorted by their experts."""
    if len(x) <= FEW_TOKENS:
        return _experts(x, None, expert_ids, gate_up, down, gate_up_scale, down_scale, bits=bits)
    tokens, top_k = expert_ids.shape
    chosen, order = expert_ids.flatten().sort(stable=True)
    counts = torch.bincount(chosen, minlength=len(down)).tolist()
    y = torch.empty(tokens * top_k, x.shape[1], dtype=x.dtype)
    rows = torch.zeros(_few_sizes(max(counts)), x.shape[1], dtype=x.dtype)
    for e, places in enumerate(order.split(counts)):
        if n := len(places):
            torch.index_select(x, 0, places // top_k, out=rows[:n])
            scales = (None, None) if gate_up_scale is None or down_scale is None else (gate_up_scale[e], down_scale[e])
            mine = rows[: _few_sizes(n)]  # behind its own, rows of the expert before: they change nothing in these
            y[places] = blocked.swiglu(mine, gate_up[e], down[e], *scales, round_activations=bits == 8)[:n]
    return y.view(tokens, top_k, x.shape[1])


def _few_sizes(n: int) -> int:
    """At least n, at most an eighth (or 15) more, and one of few numbers: the library compiles a kernel, 0.7 ms and 0.6
    MiB of it, for every number of rows that it has not seen before.
    """
    step = max(16, 1 << max(0, n.bit_length() - 4))
    return -(-n // step) * step


def _can_run(x: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None, down_scale: Tensor | None) -> bool:
    """No gradient wanted, contiguous weights of a type the kernels know, with scales if they are int8."""
    if x.shape[0] == 0 or gate_up.dtype not in native.TYPES or gate_up.dtype != down.dtype:
        return False
    if gate_up.shape[-1] != x.shape[1] or down.shape[-2] != x.shape[1] or gate_up.shape[-2] != 2 * down.shape[-1]:
        return False
    if not (_each_dense(gate_up) and _each_dense(down)):
        return False
    if (gate_up.dtype == torch.int8) != _fit(gate_up_scale, down_scale):
        return False
    if gate_up.dtype == torch.int8 and max(gate_up.shape[-1], down.shape[-1]) > MAX_WIDTH:
        return False
    if gate_up.dtype != torch.int8 and len(x) > FEW_TOKENS and gate_up.dtype != x.dtype:
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, gate_up, down)))


def _each_dense(weight: Tensor) -> bool:
    """Whether every matrix of a stack is contiguous; they may lie apart, as in a checkpoint's file."""
    return weight.is_contiguous() or (weight.dim() == 3 and weight.stride()[1:] == (weight.shape[2], 1))


def _fit(*scales: Tensor | None) -> bool:
    return all(scale is not None and scale.dtype == torch.float32 and scale.is_contiguous() for scale in scales)


def _experts(
    x: Tensor, weights: Tensor | None, expert_ids: Tensor | None, gate_up: Tensor, down: Tensor,
    gate_up_scale: Tensor | None, down_scale: Tensor | None, *, bits: int,
) -> Tensor:  # fmt: skip
    """gate_up [n_experts, 2 * d_ff, d_model]. Weighted and summed over the choices if there are weights."""
    (n_tokens, d_model), (n_experts, _, d_ff) = x.shape, down.shape
    top_k = 1 if expert_ids is None else expert_ids.shape[1]
    x = native.rows(x, x.dtype)
    expert_ids = None if expert_ids is None else native.dense(expert_ids, torch.int64)
    weights = None if weights is None else native.dense(weights, torch.float32)
    y = torch.empty((n_tokens, d_model) if weights is not None else (n_tokens, top_k, d_model), dtype=x.dtype)
    types = (native.TYPES[x.dtype], native.TYPES[gate_up.dtype])
    args = ExpertsArgs(
        n_tokens, n_experts, top_k, d_model, d_ff, x.stride(0), *types, bits, torch.get_num_threads(),
        gate_up.stride(0), down.stride(0),
        *map(native.pointer, (x, expert_ids, weights, gate_up, down, gate_up_scale, down_scale, y)),
    )  # fmt: skip
    native.call("experts", args)
    return y


MAX_EXPERTS = 512  # of src/route.c


class RouteArgs(native.Arguments):
    """route_args of src/route.c, in its order."""

    _fields_ = native.fields(("n_tokens", "n_experts", "top_k", "stride", "type"), ("logits", "weights", "expert_ids"))


def why_not_route(probe: Tensor) -> str | None:
    if torch.is_grad_enabled() and probe.requires_grad:
        return "has no gradient"
    if probe.dim() and probe.shape[-1] > MAX_EXPERTS:
        return f"takes at most {MAX_EXPERTS} experts"
    return why_not(probe)


@outside_graphs
def route(router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Of experts equally probable the first is chosen first."""
    logits = native.rows(router_logits, router_logits.dtype)
    n_tokens, n_experts = logits.shape
    weights, expert_ids = torch.empty(n_tokens, top_k), torch.empty(n_tokens, top_k, dtype=torch.int64)
    args = RouteArgs(n_tokens, n_experts, top_k, logits.stride(0), native.TYPES[logits.dtype],
                     logits.data_ptr(), weights.data_ptr(), expert_ids.data_ptr())  # fmt: skip
    native.call("route", args)
    return weights, expert_ids
