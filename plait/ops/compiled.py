"""The ops as torch.compile sees them where an implementation can't be traced (C kernels, host loops over sequences).

One custom operator each, whose body is the op itself, run when the compiled graph runs; its backward computes again.
Implementations that bring operators of their own (the Triton kernels) are traced through instead: each op decides in
its `__init__.py`, and imports this file when it is first compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.ops import recompute
from plait.ops.attention import attention
from plait.ops.causal_conv1d import causal_conv1d
from plait.ops.linear import linear, look_up
from plait.ops.moe import expert_outputs, moe, route, swiglu
from plait.ops.rms_norm import add_rms_norm, rms_norm, rms_norm_sections
from plait.ops.selective_scan import selective_scan
from plait.ops.ssd import ssd

Run = Callable[..., Any]
Opaque = Callable[..., list[Tensor]]


def _operator(name: str, run: Run, fake: Callable[..., Sequence[Tensor]]) -> Opaque:
    """run(*inputs, constant) as an operator over a list of tensors and one number: always a list comes out.

    fake(*inputs, constant) makes results of the same shapes and dtypes. Inputs that are None stay out of the list, in
    which autograd would not find those that want gradients; `there` says where they belong.
    """

    def results(inputs: Sequence[Tensor], there: Sequence[bool], constant: float) -> list[Tensor]:
        with torch.no_grad():
            out = run(*_with_gaps(inputs, there), constant)
        return recompute.unshared([out] if isinstance(out, Tensor) else list(out), inputs)

    def gradients(
        dys: Sequence[Tensor], inputs: Sequence[Tensor], there: Sequence[bool], wanted: Sequence[bool], constant: float
    ) -> list[Tensor]:
        return recompute.gradients(lambda *given: run(*_with_gaps(given, there), constant), inputs, wanted, dys)

    forward = torch.library.custom_op(
        f"plait::{name}", results, mutates_args=(), schema="(Tensor[] inputs, bool[] there, float constant) -> Tensor[]"
    )
    backward = torch.library.custom_op(
        f"plait::{name}_backward", gradients, mutates_args=(),
        schema="(Tensor[] dys, Tensor[] inputs, bool[] there, bool[] wanted, float constant) -> Tensor[]",
    )  # fmt: skip

    @forward.register_fake
    def _(inputs: Sequence[Tensor], there: Sequence[bool], constant: float) -> list[Tensor]:
        return list(fake(*_with_gaps(inputs, there), constant))

    @backward.register_fake
    def _(
        dys: Sequence[Tensor], inputs: Sequence[Tensor], there: Sequence[bool], wanted: Sequence[bool], constant: float
    ) -> list[Tensor]:
        return [t.new_empty(t.shape) for t, w in zip(inputs, wanted, strict=True) if w]

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors, ctx.there, ctx.constant = inputs
        ctx.wanted = [t.requires_grad for t in tensors]
        ctx.n_inputs = len(tensors)
        ctx.save_for_backward(*tensors, *output)

    def differentiate(ctx: Any, dys: Sequence[Tensor | None]) -> tuple[list[Tensor | None], None, None]:
        saved = ctx.saved_tensors  # read once: under activation checkpointing a second reading fails
        inputs, outs = list(saved[: ctx.n_inputs]), saved[ctx.n_inputs :]
        cotangents = [torch.zeros_like(out) if dy is None else dy for dy, out in zip(dys, outs, strict=True)]
        found = iter(backward(cotangents, inputs, ctx.there, ctx.wanted, ctx.constant))
        return [next(found) if wanted else None for wanted in ctx.wanted], None, None

    forward.register_autograd(differentiate, setup_context=remember)

    def call(*inputs: Tensor | None, constant: float = 0.0) -> list[Tensor]:
        return forward([t for t in inputs if t is not None], [t is not None for t in inputs], float(constant))

    return call


def _with_gaps(inputs: Sequence[Tensor], there: Sequence[bool]) -> list[Tensor | None]:
    present = iter(inputs)
    return [next(present) if is_there else None for is_there in there]


def _columns(x: Tensor, weight: Tensor, cu_seqlens: Tensor) -> Tensor:
    return x.new_empty(cu_seqlens.shape[0] - 1, weight.shape[0], weight.shape[1] - 1)


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.promote_types(x.dtype, weight.dtype))


RMS_NORM = _operator("rms_norm", rms_norm, lambda x, w, eps: [_normed(x, w)])
ADD_RMS_NORM = _operator(
    "add_rms_norm", add_rms_norm, lambda x, residual, w, eps: [_normed(x, w), x.new_empty(x.shape)]
)
RMS_NORM_SECTIONS = _operator(
    "rms_norm_sections",
    lambda x, *rest: rms_norm_sections(x, rest[:-1], rest[-1]),
    lambda x, *rest: [_normed(x, w) for w in rest[:-1]],
)
CAUSAL_CONV1D = _operator(
    "causal_conv1d",
    lambda x, w, bias, cu, before, _: causal_conv1d(x, w, bias, cu_seqlens=cu, initial_columns=before),
    lambda x, w, bias, cu, before, _: [x.new_empty(x.shape), _columns(x, w, cu)],
)
SELECTIVE_SCAN = _operator(
    "selective_scan",
    lambda u, dt, A, B, C, D, z, bias, cu, before, _: selective_scan(
        u, dt, A, B, C, D=D, z=z, dt_bias=bias, cu_seqlens=cu, initial_state=before
    ),
    lambda u, dt, A, B, C, D, z, bias, cu, before, _: [
        u.new_empty(u.shape), u.new_empty((cu.shape[0] - 1, *A.shape), dtype=_wide(u))
    ],
)  # fmt: skip
SSD = _operator(
    "ssd",
    lambda x, dt, A, B, C, D, bias, cu, before, _: ssd(
        x, dt, A, B, C, D=D, dt_bias=bias, cu_seqlens=cu, initial_state=before
    ),
    lambda x, dt, A, B, C, D, bias, cu, before, _: [
        x.new_empty(x.shape), x.new_empty((cu.shape[0] - 1, *x.shape[1:], B.shape[-1]), dtype=_wide(x))
    ],
)  # fmt: skip
ATTENTION = _operator(
    "attention",
    lambda q, k, v, cu, _: attention(q, k, v, cu_seqlens=cu),
    lambda q, k, v, cu, _: [q.new_empty(q.shape)],
)
LINEAR = _operator(
    "linear",
    lambda x, w, scale, _: linear(x, w, scale=scale),
    lambda x, w, scale, _: [x.new_empty(*x.shape[:-1], w.shape[0])],
)
LOOK_UP = _operator(
    "look_up",
    lambda ids, table, scale, like, _: look_up(ids, table, like.dtype, scale=scale),
    lambda ids, table, scale, like, _: [like.new_empty(*ids.shape, table.shape[1])],
)
ROUTE = _operator(
    "route",
    lambda logits, top_k: route(logits, int(top_k)),
    lambda logits, top_k: [
        logits.new_empty(logits.shape[0], int(top_k), dtype=_wide(logits)),
        logits.new_empty(logits.shape[0], int(top_k), dtype=torch.int64),
    ],
)
EXPERT_OUTPUTS = _operator(
    "expert_outputs",
    lambda x, ids, up, down, s, t, _: expert_outputs(x, ids, up, down, gate_up_scale=s, down_scale=t),
    lambda x, ids, up, down, s, t, _: [x.new_empty(*ids.shape, x.shape[1])],
)
MOE = _operator(
    "moe",
    lambda x, w, ids, up, down, s, t, _: moe(x, w, ids, up, down, gate_up_scale=s, down_scale=t),
    lambda x, w, ids, up, down, s, t, _: [x.new_empty(x.shape)],
)
SWIGLU = _operator(
    "swiglu",
    lambda x, up, down, s, t, _: swiglu(x, up, down, gate_up_scale=s, down_scale=t),
    lambda x, up, down, s, t, _: [x.new_empty(x.shape)],
)
