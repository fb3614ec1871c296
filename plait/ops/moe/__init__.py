"""Mixture of experts (paper section 2): routing, and SwiGLU experts with bf16/fp32 or int8 weights (section 3.1).

Expert weights are stacked: gate_up [n_experts, 2 * d_ff, d_model] (gate rows first), down [n_experts, d_model, d_ff].
With int8 weights each output row has an fp32 scale: gate_up_scale [n_experts, 2 * d_ff], down_scale [n_experts,
d_model].

`prepare` turns int8 weights, once, at load, into the layout that the Hopper kernels read for decode and prefill alike:
uint8 [n_experts, rows / 64, width / 64, 4096] (`packed.py`). `moe` and `swiglu` take either form; training takes rows.
"""

import torch
from torch import Tensor

from plait.ops.dispatch import Implementation, anywhere, lazily, pick, why_not_triton
from plait.ops.hopper import why_not_gluon
from plait.ops.moe import grouped, native, packed, reference
from plait.ops.shapes import Shapes

_ROWS = {"gate_up": "n_experts 2*d_ff d_model", "down": "n_experts d_model d_ff"}
_SCALES = {"gate_up_scale": "n_experts 2*d_ff", "down_scale": "n_experts d_model"}
_CHOICE = "tokens top_k"
_MOE = Shapes("moe", x="tokens d_model", weights=_CHOICE, expert_ids=_CHOICE, **_ROWS, **_SCALES)
_EXPERTS = Shapes("expert_outputs", x="tokens d_model", expert_ids=_CHOICE, **_ROWS, **_SCALES)
_COMBINE = Shapes("combine", outputs="tokens top_k d_model", weights=_CHOICE)
_SWIGLU = Shapes(
    "swiglu", x="... d_model", gate_up="2*d_ff d_model", down="d_model d_ff", gate_up_scale="2*d_ff",
    down_scale="d_model",
)  # fmt: skip


def _why_not_triton(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.bfloat16, torch.float16, torch.float32))


def _why_not_triton_route(probe: Tensor) -> str | None:
    if torch.is_grad_enabled() and probe.requires_grad:
        return "has no gradient"
    return _why_not_triton(probe)


def _why_not_gluon(probe: Tensor) -> str | None:
    return why_not_triton(probe, (torch.bfloat16,)) or why_not_gluon(probe.device)


ROUTE_IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.moe.triton", "route"), _why_not_triton_route),
    "native": Implementation(native.route, native.why_not_route),
    "reference": Implementation(reference.route, anywhere),
}
IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.moe.grouped_mm", "expert_outputs"), _why_not_triton),
    "native": Implementation(native.expert_outputs, native.why_not),
    "grouped": Implementation(grouped.expert_outputs, anywhere),
    "reference": Implementation(reference.expert_outputs, anywhere),
}
MOE_IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.moe.grouped_mm", "moe"), _why_not_triton),
    "native": Implementation(native.moe, native.why_not),
    "grouped": Implementation(grouped.moe, anywhere),
    "reference": Implementation(reference.moe, anywhere),
}
COMBINE_IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.moe.weighted", "combine"), _why_not_triton),
    "reference": Implementation(reference.combine, anywhere),
}
SIZED_IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.moe.weighted", "combine_sized"), _why_not_triton),
    "reference": Implementation(reference.combine_sized, anywhere),
}
SWIGLU_IMPLEMENTATIONS = {
    "native": Implementation(native.swiglu, native.why_not),
    "triton": Implementation(lazily("plait.ops.moe.grouped_mm", "swiglu"), _why_not_triton),
    **{name: Implementation(grouped.swiglu, anywhere) for name in ("grouped", "reference")},
}
SHARE_IMPLEMENTATIONS = {
    "triton": MOE_IMPLEMENTATIONS["triton"],
    "native": Implementation(reference.share(native.expert_outputs), native.why_not),
    "grouped": Implementation(reference.share(grouped.expert_outputs), anywhere),
    "reference": Implementation(reference.share(reference.expert_outputs), anywhere),
}
# Not within the tolerance of the others: run only when named (PLAIT_OPS=moe=int8_activations).
MOE_CHOICES = MOE_IMPLEMENTATIONS | {"int8_activations": Implementation(native.moe_int8_activations, native.why_not)}
SWIGLU_CHOICES = SWIGLU_IMPLEMENTATIONS | {
    "int8_activations": Implementation(native.swiglu_int8_activations, native.why_not)
}
SHARE_CHOICES = SHARE_IMPLEMENTATIONS | {
    "int8_activations": Implementation(reference.share(native.outputs_int8_activations), native.why_not)
}
PACKED_IMPLEMENTATIONS = {
    "gluon": Implementation(lazily("plait.ops.moe.gluon", "moe"), _why_not_gluon),
    "reference": Implementation(reference.packed_moe, anywhere),
}


def route(router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Softmax over all experts in fp32, then the k most probable; their weights are not renormalised (they sum to less
    than 1).

    router_logits [tokens, n_experts] -> (weights fp32 [tokens, top_k], expert_ids int64 [tokens, top_k]).
    """
    if not torch.compiler.is_compiling() and not (router_logits.dim() == 2 and 1 <= top_k <= router_logits.shape[1]):
        raise ValueError(
            f"route: router_logits has shape {list(router_logits.shape)}; it must be [tokens, n_experts], with "
            f"top_k={top_k} between 1 and n_experts"
        )
    run = pick("moe_route", ROUTE_IMPLEMENTATIONS, router_logits)
    if torch.compiler.is_compiling() and run is not reference.route:
        from plait.ops.compiled import ROUTE

        weights, expert_ids = ROUTE(router_logits, constant=top_k)
        return weights, expert_ids
    return run(router_logits, top_k)


def expert_outputs(
    x: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
    """down_e(silu(gate_e(x)) * up_e(x)) for each expert e a token chose; no token is dropped.

    x [tokens, d_model], expert_ids [tokens, top_k] -> [tokens, top_k, d_model], not yet weighted. Differentiable in x
    and in weights that are not int8.
    """
    if torch.compiler.is_compiling():
        from plait.ops.compiled import EXPERT_OUTPUTS

        return EXPERT_OUTPUTS(x, expert_ids, gate_up, down, gate_up_scale, down_scale)[0]
    _check_scales(gate_up, down, gate_up_scale, down_scale)
    _EXPERTS.check(x, expert_ids, gate_up, down, gate_up_scale, down_scale)
    x, gate_up, down = _autocast(x, gate_up, down)
    return pick("moe", IMPLEMENTATIONS, x)(x, expert_ids, gate_up, down, gate_up_scale, down_scale)


def _check_scales(gate_up: Tensor, down: Tensor, *scales: Tensor | None) -> None:
    for weight, scale in zip((gate_up, down), scales, strict=True):
        if (weight.element_size() == 1) != (scale is not None):
            rule = "need gate_up_scale and down_scale" if scale is None else "take no scales"
            raise ValueError(f"gate_up {gate_up.dtype}, down {down.dtype}: weights of {weight.dtype} {rule}")


def _check_moe(
    x: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, *scales: Tensor | None
) -> None:
    _check_scales(gate_up, down, *scales)
    if packed.is_packed(gate_up):
        _MOE.check(x, weights, expert_ids, None, None, *scales)
    else:
        _MOE.check(x, weights, expert_ids, gate_up, down, *scales)


def _autocast(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Under torch.autocast, all in its type, as library products do by themselves: kernels take one type."""
    if not torch.is_autocast_enabled(x.device.type):
        return (x, *weights)
    dtype = torch.get_autocast_dtype(x.device.type)
    return (x.to(dtype), *(w.to(dtype) if w.dtype == torch.float32 else w for w in weights))


def combine(outputs: Tensor, weights: Tensor) -> Tensor:
    """sum_j weights_j * outputs_j: [tokens, top_k, d_model] and [tokens, top_k] -> [tokens, d_model]."""
    if torch.compiler.is_compiling():
        return reference.combine(outputs, weights)
    _COMBINE.check(outputs, weights)
    return pick("moe_combine", COMBINE_IMPLEMENTATIONS, outputs)(outputs, weights)


def combine_sized(outputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`combine`, and of the outputs the sum of squares, with a gradient, and the greatest absolute value, without:
    scalars in fp32. The gradient of the squares costs no pass over the outputs of its own.
    """
    if torch.compiler.is_compiling():
        return reference.combine_sized(outputs, weights)
    _COMBINE.check(outputs, weights)
    out, squares, max_abs = pick("moe_combine", SIZED_IMPLEMENTATIONS, outputs)(outputs, weights)
    return out, squares, max_abs


def moe(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
    """combine(expert_outputs(x, expert_ids, ...), weights) in one call, for serving: x [tokens, d_model] -> the same.

    gate_up and down as rows, or as `prepare` returned them. Where a gradient is wanted it takes those two steps.
    """
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weights, gate_up, down))
    if torch.compiler.is_compiling() and not differentiable:
        from plait.ops.compiled import MOE

        return MOE(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale)[0]
    _check_moe(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale)
    if packed.is_packed(gate_up):
        if differentiable:
            raise ValueError("packed weights have no gradient: call moe under torch.no_grad(), or with rows of weights")
        run = pick("moe", PACKED_IMPLEMENTATIONS, x)
        return run(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale)
    if differentiable:
        scales = {"gate_up_scale": gate_up_scale, "down_scale": down_scale}
        return combine(expert_outputs(x, expert_ids, gate_up, down, **scales), weights)
    x, gate_up, down = _autocast(x, gate_up, down)
    return pick("moe", MOE_CHOICES, x)(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale)


def moe_share(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    first_expert: int,
    n_experts: int,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
    """What the experts that lie here add to `moe`: summed over processes that hold all n_experts, it is `moe`.

    expert_ids count all experts; gate_up and down are those of the experts from first_expert on, as rows or as
    `prepare` returned them. No gradient, and no host sync on a GPU. ValueError for a range that leaves [0, n_experts).
    """
    if not 0 <= first_expert <= n_experts - down.shape[0]:
        raise ValueError(
            f"first_expert={first_expert}: the {down.shape[0]} experts from it on must lie in the {n_experts} there are"
        )
    _check_moe(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale)
    implementations = PACKED_IMPLEMENTATIONS if packed.is_packed(gate_up) else SHARE_CHOICES
    x, gate_up, down = _autocast(x, gate_up, down)
    run = pick("moe", implementations, x)
    return run(x, weights, expert_ids, gate_up, down, gate_up_scale, down_scale, (first_expert, n_experts))


def arrived_outputs(
    rows: Tensor,
    counts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
    """Rows that came by an all-to-all, each through the expert it came for: [n, d_model] -> the same, in their order.

    counts [n_senders, n_experts], on the device: how many came from each sender for each expert that lies here; rows
    lie sorted by sender, then by expert, as senders sort them. gate_up and down as rows, or as `prepare` returned them
    (then without a gradient). No rows at all are allowed. No host sync on a GPU.
    """
    expert_ids = torch.arange(counts.shape[1], device=rows.device).repeat(counts.shape[0])
    expert_ids = torch.repeat_interleave(expert_ids, counts.flatten(), output_size=rows.shape[0])[:, None]
    scales = {"gate_up_scale": gate_up_scale, "down_scale": down_scale}
    if rows.shape[0] == 0:  # a row of zeros, so that weights and the rows' senders get their gradients all the same
        rows, expert_ids = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]), expert_ids.new_zeros(1, 1)
        return _through_experts(rows, expert_ids, gate_up, down, **scales)[:0]
    return _through_experts(rows, expert_ids, gate_up, down, **scales)


def _through_experts(
    rows: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor, **scales: Tensor | None
) -> Tensor:
    if packed.is_packed(gate_up):
        return moe(rows, torch.ones(expert_ids.shape, device=rows.device), expert_ids, gate_up, down, **scales)
    return expert_outputs(rows, expert_ids, gate_up, down, **scales)[:, 0]


def swiglu(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
) -> Tensor:
    """The dense MLP: down(silu(gate(x)) * up(x)). x [tokens, d_model], gate_up [2 * d_ff, d_model], down [d_model,
    d_ff]; or both as `prepare` returned them.
    """
    if torch.compiler.is_compiling() and not (x.is_cuda and gate_up_scale is None):
        from plait.ops.compiled import SWIGLU

        return SWIGLU(x, gate_up, down, gate_up_scale, down_scale)[0]
    _check_scales(gate_up, down, gate_up_scale, down_scale)
    if packed.is_packed(gate_up):
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("packed weights have no gradient: call swiglu under torch.no_grad(), or with rows")
        _SWIGLU.check(x, None, None, gate_up_scale, down_scale)
        assert gate_up_scale is not None
        assert down_scale is not None
        run = pick("moe", PACKED_IMPLEMENTATIONS, x)  # one expert, which every token chose
        return run(x, None, None, gate_up[None], down[None], gate_up_scale[None], down_scale[None])
    if torch.compiler.is_compiling():
        return grouped.swiglu(x, gate_up, down, gate_up_scale, down_scale)
    _SWIGLU.check(x, gate_up, down, gate_up_scale, down_scale)
    x, gate_up, down = _autocast(x, gate_up, down)
    return pick("moe", SWIGLU_CHOICES, x)(x, gate_up, down, gate_up_scale, down_scale)


def prepare(gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """int8 weights as the fastest kernels for their device read them: packed on Hopper, unchanged elsewhere.

    gate_up [..., 2 * d_ff, d_model] and down [..., d_model, d_ff] with entries in [-127, 127]; scales stay as they are.
    Call it once, at load: it copies.
    """
    probe = torch.empty(0, dtype=torch.bfloat16, device=gate_up.device)
    sizes_fit = all(packed.packable(*w.shape[-2:]) for w in (gate_up, down))
    if gate_up.dtype != torch.int8 or not sizes_fit or _why_not_gluon(probe) is not None:
        return gate_up, down
    return packed.pack(gate_up, gated=True), packed.pack(down, gated=False)
