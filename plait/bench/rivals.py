"""Other people's kernels for our cases, where they can be imported: what `plait bench ops` times beside ours.

A rival is checked on the small cases it can take, as our kernels are, and is not timed if it is wrong on one or took
none. What a rival needs in another order or form is made outside of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from plait.ops.attention.cases import FORWARD
from plait.ops.case import Inputs, OpCases
from plait.ops.causal_conv1d.cases import CAUSAL_CONV1D
from plait.ops.moe.cases import EXPERT_OUTPUTS, FUSED
from plait.ops.rms_norm.cases import EPS, RMS_NORM
from plait.ops.selective_scan.cases import SELECTIVE_SCAN

Run = Callable[[], tuple[Tensor, ...]]
# Where a rival's function lies. They are timed here and run nowhere else: what runs lies in ops/<op>/<backend>.py.
MODULES = {
    "vllm": "vllm.model_executor.layers.fused_moe",
    "mamba_ssm": "mamba_ssm.ops.selective_scan_interface",
}


@dataclass(frozen=True)
class Rival:
    """`build` prepares a call for inputs as the op takes them, or returns None if the rival can't take them. With
    `loose`, it may leave out what the rival can't do and `note` names; those inputs are timed but not compared.
    """

    name: str
    package: str
    ops: OpCases
    build: Callable[[Inputs, bool], Run | None]
    note: str = ""


def rivals_of(ops: OpCases) -> Iterator[Rival]:
    """Those of this list of cases that are installed."""
    yield from (rival for rival in RIVALS if rival.ops is ops and find_spec(rival.package) is not None)


def _load(package: str) -> Any:
    return import_module(MODULES.get(package, package))


def _torch_attention(backend: SDPBackend) -> Callable[[Inputs, bool], Run | None]:
    def build(inputs: Inputs, loose: bool) -> Run | None:
        if len(inputs["cu_seqlens"]) != 2 or not inputs["q"].is_cuda:
            return None
        q, k, v = (inputs[name].transpose(0, 1)[None] for name in "qkv")
        gqa = q.shape[1] != k.shape[1]

        def run() -> tuple[Tensor, ...]:
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
            return (out[0].transpose(0, 1),)

        return run

    return build


def _flash_attn(inputs: Inputs, loose: bool) -> Run | None:
    function: Any = _load("flash_attn").flash_attn_varlen_func
    q, k, v, bounds = (inputs[name] for name in ("q", "k", "v", "cu_seqlens"))
    longest = int(bounds.diff().max())
    return lambda: (function(q, k, v, bounds, bounds, longest, longest, causal=True),)


def _grouped_mm(inputs: Inputs, loose: bool) -> Run | None:
    x, ids, gate_up, down = (inputs[name] for name in ("x", "expert_ids", "gate_up", "down"))
    if gate_up.dtype != torch.bfloat16 or any(width % 8 for width in down.shape[1:]):
        return None
    n_experts, top_k = len(down), ids.shape[1]
    by_expert = ids.flatten().argsort(stable=True)
    back = by_expert.argsort()
    ends = torch.bincount(ids.flatten(), minlength=n_experts).cumsum(0).int()
    tokens = by_expert // top_k

    def run() -> tuple[Tensor, ...]:
        gate, up = F.grouped_mm(x[tokens], gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        y = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
        return (y[back].view(*ids.shape, -1),)

    return run


def _vllm_experts(inputs: Inputs, loose: bool) -> Run | None:
    if "gate_up_scale" in inputs:
        return None
    function: Any = _load("vllm").fused_experts
    x, gate_up, down, weights = (inputs[name] for name in ("x", "gate_up", "down", "weights"))
    ids = inputs["expert_ids"].int()
    return lambda: (function(x, gate_up, down, weights, ids),)


def _mamba_ssm(inputs: Inputs, loose: bool) -> Run | None:
    n_seqs = len(inputs["cu_seqlens"]) - 1
    if ("initial_state" in inputs and not loose) or len(set(inputs["cu_seqlens"].diff().tolist())) != 1:
        return None
    function: Any = _load("mamba_ssm").selective_scan_fn
    u, dt, B, C, z = (
        inputs[name].unflatten(0, (n_seqs, -1)).transpose(1, 2).contiguous() for name in ("u", "dt", "B", "C", "z")
    )
    A, D, bias = inputs["A"], inputs["D"], inputs["dt_bias"]

    def run() -> tuple[Tensor, ...]:
        y, state = function(u, dt, A, B, C, D, z, bias, delta_softplus=True, return_last_state=True)
        return y.transpose(1, 2).flatten(0, 1), state

    return run


def _causal_conv1d(inputs: Inputs, loose: bool) -> Run | None:
    n_seqs = len(inputs["cu_seqlens"]) - 1
    carried = inputs.get("initial_columns") is not None
    if (carried and not loose) or len(set(inputs["cu_seqlens"].diff().tolist())) != 1:
        return None
    function: Any = _load("causal_conv1d").causal_conv1d_fn
    x = inputs["x"].unflatten(0, (n_seqs, -1)).transpose(1, 2)  # channels last, as it lies
    weight, bias = inputs["weight"], inputs.get("bias")
    return lambda: (function(x, weight, bias, activation="silu").transpose(1, 2).flatten(0, 1),)


def _torch_norm(inputs: Inputs, loose: bool) -> Run | None:
    x, weight = inputs["x"], inputs["weight"].to(inputs["x"].dtype)
    return lambda: (F.rms_norm(x, weight.shape, weight, EPS),)


WITHOUT_STATE = "from a state of zero, which is all that it can do"
RIVALS = (
    Rival("torch flash", "torch", FORWARD, _torch_attention(SDPBackend.FLASH_ATTENTION)),
    Rival("torch cuDNN", "torch", FORWARD, _torch_attention(SDPBackend.CUDNN_ATTENTION)),
    Rival("flash_attn", "flash_attn", FORWARD, _flash_attn),
    Rival("torch grouped_mm", "torch", EXPERT_OUTPUTS, _grouped_mm),
    Rival("vllm", "vllm", FUSED, _vllm_experts),
    Rival("mamba_ssm", "mamba_ssm", SELECTIVE_SCAN, _mamba_ssm, WITHOUT_STATE),
    Rival("causal_conv1d", "causal_conv1d", CAUSAL_CONV1D, _causal_conv1d, WITHOUT_STATE),
    Rival("torch", "torch", RMS_NORM, _torch_norm),
)
