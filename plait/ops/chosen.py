"""Which implementation of each op runs for tensors of a kind, and why better ones don't: said once at the start of a
run.
"""

from __future__ import annotations

import torch

from plait.ops import attention, causal_conv1d, hopper, linear, moe, rms_norm, selective_scan
from plait.ops.dispatch import Implementation

OPS: dict[str, dict[str, Implementation]] = {
    "selective_scan": selective_scan.IMPLEMENTATIONS,
    "causal_conv1d": causal_conv1d.IMPLEMENTATIONS,
    "attention": attention.IMPLEMENTATIONS,
    "moe": moe.IMPLEMENTATIONS,
    "linear": linear.IMPLEMENTATIONS,
    "rms_norm": rms_norm.IMPLEMENTATIONS,
}


def chosen(device: torch.device | str, dtype: torch.dtype) -> dict[str, str]:
    """Op -> the implementation that runs on tensors of this device and dtype."""
    probe = torch.empty(0, dtype=dtype, device=device)
    return {
        op: next(name for name, implementation in implementations.items() if implementation.why_not(probe) is None)
        for op, implementations in OPS.items()
    }


def sentence(device: torch.device | str, dtype: torch.dtype) -> str:
    """`kernels: selective_scan native, …`, with the reason if kernels made for this device can't run."""
    device = torch.device(device)
    names = chosen(device, dtype)
    text = "kernels: " + ", ".join(f"{op} {name}" for op, name in names.items())
    if hopper.is_hopper(device) and (reason := hopper.wrong_version()):
        text += f" (the kernels in Gluon, for this GPU, are left out: {reason})"
    own = "native" if device.type == "cpu" else "triton"
    if own == names["selective_scan"] or names["selective_scan"] == "gluon":
        return text
    reason = OPS["selective_scan"][own].why_not(torch.empty(0, dtype=dtype, device=device))
    return f"{text} ({own} kernels can't run: {reason})"
