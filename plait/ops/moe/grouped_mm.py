"""Experts of many rows, and for training: PyTorch's grouped products between Triton kernels that sort, gate and put
back. No host sync.

Entries are sorted by expert into rows (see `triton.py`), each expert's rows padded with zeros to a multiple of 16, so
that every group starts on a boundary that the grouped products accept. Nothing but rows, gate_up products and the
sorting is kept for the backward; h is computed again there.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from plait.ops.launch import cdiv, direct, next_power_of_2
from plait.ops.moe import grouped
from plait.ops.moe import triton as kernels
from plait.ops.moe.triton import Order, combine, gather, order

ALIGN = 16
FEW_ROWS = 64  # an expert, up to which the kernels of triton.py are used for inference


@direct
@triton.jit
def _swiglu_kernel(gate_up_ptr, h_ptr, end_ptr, D_FF: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(end_ptr):
        n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        gate = tl.load(gate_up_ptr + row * (2 * D_FF) + n, n < D_FF, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + row * (2 * D_FF) + D_FF + n, n < D_FF, other=0.0).to(tl.float32)
        h = gate * tl.sigmoid(gate) * up
        tl.store(h_ptr + row * D_FF + n, h.to(h_ptr.dtype.element_ty), n < D_FF)


@direct
@triton.jit
def _swiglu_backward_kernel(gate_up_ptr, dh_ptr, dgate_up_ptr, h_ptr, end_ptr, D_FF: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(end_ptr):
        n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        gate = tl.load(gate_up_ptr + row * (2 * D_FF) + n, n < D_FF, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + row * (2 * D_FF) + D_FF + n, n < D_FF, other=0.0).to(tl.float32)
        dh = tl.load(dh_ptr + row * D_FF + n, n < D_FF, other=0.0).to(tl.float32)
        s = tl.sigmoid(gate)
        silu = gate * s
        dgate = dh * up * s * (1.0 + gate * (1.0 - s))
        kind = h_ptr.dtype.element_ty
        tl.store(h_ptr + row * D_FF + n, (silu * up).to(kind), n < D_FF)
        tl.store(dgate_up_ptr + row * (2 * D_FF) + n, dgate.to(kind), n < D_FF)
        tl.store(dgate_up_ptr + row * (2 * D_FF) + D_FF + n, (dh * silu).to(kind), n < D_FF)


def _grid(rows: int, d_ff: int) -> tuple[tuple[int, int], int]:
    block = min(2048, next_power_of_2(d_ff))
    return (rows, cdiv(d_ff, block)), block


def _forward(rows: Tensor, gate_up: Tensor, down: Tensor, by: Order) -> tuple[Tensor, Tensor]:
    """Rows in sorted order -> their gate and up products, and their experts' outputs."""
    products = F.grouped_mm(rows, gate_up.transpose(1, 2), offs=by.ends)
    h = products.new_empty(products.shape[0], down.shape[2])
    grid, block = _grid(*h.shape)
    _swiglu_kernel[grid](products, h, by.ends[-1:], D_FF=h.shape[1], BLOCK=block)
    return products, F.grouped_mm(h, down.transpose(1, 2), offs=by.ends)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        by = order(expert_ids, down.shape[0], ALIGN)
        rows = gather(x, by)
        products, y = _forward(rows, gate_up, down, by)
        ctx.save_for_backward(rows, products, gate_up, down, *by[:5])
        ctx.sizes = by[5:]
        return combine(y[None], None, by._replace(top_k=1), y.dtype).view(*expert_ids.shape, -1)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        rows, products, gate_up, down, *lists = ctx.saved_tensors
        by = Order(*lists, *ctx.sizes)
        dy = gather(dout.flatten(0, 1), by, per_entry=True)
        dh = F.grouped_mm(dy, down, offs=by.ends)
        dproducts, h = torch.empty_like(products), torch.empty_like(dh)
        grid, block = _grid(*h.shape)
        _swiglu_backward_kernel[grid](products, dh, dproducts, h, by.ends[-1:], D_FF=h.shape[1], BLOCK=block)
        needs_x, _, needs_gate_up, needs_down = ctx.needs_input_grad
        dx = dgate_up = ddown = None
        if needs_x:
            dx = combine(F.grouped_mm(dproducts, gate_up, offs=by.ends)[None], None, by, rows.dtype)
        if needs_gate_up:
            dgate_up = F.grouped_mm(dproducts.t(), rows, offs=by.ends)
        if needs_down:
            ddown = F.grouped_mm(dy.t(), h, offs=by.ends)
        return dx, None, dgate_up, ddown


class _Dense(torch.autograd.Function):
    """One expert for all rows. Kept for the backward: x and the gate and up products; h is computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        products = F.linear(x, gate_up)
        h = products.new_empty(len(x), down.shape[1])
        end = torch.full((1,), len(x), dtype=torch.int32, device=x.device)
        grid, block = _grid(*h.shape)
        _swiglu_kernel[grid](products, h, end, D_FF=h.shape[1], BLOCK=block)
        ctx.save_for_backward(x, products, gate_up, down, end)
        return F.linear(h, down)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, products, gate_up, down, end = ctx.saved_tensors
        dh = dy @ down
        dproducts, h = torch.empty_like(products), torch.empty_like(dh)
        grid, block = _grid(*h.shape)
        _swiglu_backward_kernel[grid](products, dh, dproducts, h, end, D_FF=h.shape[1], BLOCK=block)
        needs_x, needs_gate_up, needs_down = ctx.needs_input_grad
        return (
            dproducts @ gate_up if needs_x else None,
            dproducts.t() @ x if needs_gate_up else None,
            dy.t() @ h if needs_down else None,
        )


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, gate_up_scale: Tensor | None, down_scale: Tensor | None) -> Tensor:
    """[tokens, d_model] -> the same, as `grouped.swiglu`; in training with less kept."""
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, gate_up, down))
    if differentiable and gate_up_scale is None and x.dim() == 2:
        return _Dense.apply(x, gate_up, down)
    return grouped.swiglu(x, gate_up, down, gate_up_scale, down_scale)


def _fits(x: Tensor, down: Tensor, down_scale: Tensor | None) -> bool:
    """The grouped products take no int8, and only rows on 16-byte boundaries."""
    return down_scale is None and all(width * x.element_size() % 16 == 0 for width in down.shape[1:])


def _pays(x: Tensor, expert_ids: Tensor, down: Tensor, down_scale: Tensor | None, n_experts: int | None = None) -> bool:
    return expert_ids.numel() > FEW_ROWS * (n_experts or down.shape[0]) and _fits(x, down, down_scale)


def expert_outputs(
    x: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> Tensor:
    """[tokens, top_k, d_model], not yet weighted; differentiable in x and in weights that are not int8."""
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, gate_up, down))
    if differentiable and not _fits(x, down, down_scale):
        return grouped.expert_outputs(x, expert_ids, gate_up, down, gate_up_scale, down_scale)
    if differentiable or _pays(x, expert_ids, down, down_scale):
        return _Experts.apply(x, expert_ids, gate_up.contiguous(), down.contiguous())  # slices may not be aligned
    y = kernels.expert_outputs_by_entry(x, expert_ids, gate_up, down, gate_up_scale, down_scale)
    return y.view(*expert_ids.shape, -1)


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    experts: tuple[int, int] | None = None,
) -> Tensor:
    """For serving: no gradient. Grouped products where every expert gets many rows, else the kernels of triton.py.

    experts: the first one here and how many there are in all (None: all are here).
    """
    if not _pays(x, expert_ids, down, down_scale, experts and experts[1]):
        return kernels.moe(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale, experts)
    by = order(expert_ids, down.shape[0], ALIGN, first_expert=experts[0] if experts else 0)
    _, y = _forward(gather(x, by), gate_up.contiguous(), down.contiguous(), by)
    return combine(y[None], weights, by, x.dtype)
