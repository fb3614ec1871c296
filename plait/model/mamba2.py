"""The Mamba-2 mixer, the alternative the paper tried and did not take (section 2, Figure 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model.layout import Layout
from plait.model.linear import Linear
from plait.model.mamba import CausalConv
from plait.model.norm import RMSNorm
from plait.model.state import MambaState
from plait.ops.ssd import ssd, ssd_update


class Mamba2(nn.Module):
    """[tokens, d_model] -> [tokens, d_model]: one projection to z, (x, B, C) and dt, conv over (x, B, C), SSD, gated
    norm, out_proj.
    """

    fp32_parameters = ("A_log", "D", "dt_bias")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.d_inner, self.d_ssm_head, self.n_groups = config.d_inner, config.d_ssm_head, config.n_ssm_groups
        self.d_state, self.n_heads = config.d_state, config.n_ssm_heads
        width = config.d_inner + config.d_conv_channels + self.n_heads
        self.in_proj = Linear(config.d_model, width, bias=config.proj_bias)
        self.conv = CausalConv(config.d_conv_channels, config.d_conv, config.conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(self.n_heads, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.n_heads, dtype=torch.float32))
        self.norm = RMSNorm(config.d_inner, config.norm_eps)
        self.out_proj = Linear(config.d_inner, config.d_model, bias=config.proj_bias)

    def forward(self, x: Tensor, layout: Layout, state: MambaState | None = None) -> Tensor:
        """Writes the new convolution columns and SSM states into the slots of `state`, if there is one."""
        group_width = self.n_groups * self.d_state
        z, xBC, dt = self.in_proj(x).split([self.d_inner, self.d_inner + 2 * group_width, self.n_heads], dim=-1)
        xBC = self.conv(xBC, layout, None if state is None else state.conv)
        u, B, C = xBC.split([self.d_inner, group_width, group_width], dim=-1)
        u = u.unflatten(-1, (self.n_heads, self.d_ssm_head))
        B, C = (t.unflatten(-1, (self.n_groups, self.d_state)) for t in (B, C))
        y = self._scan(u, dt, B, C, layout, None if state is None else state.ssm).flatten(-2)
        return self.out_proj(self.norm(y * F.silu(z)))

    def _scan(self, u: Tensor, dt: Tensor, B: Tensor, C: Tensor, layout: Layout, states: Tensor | None) -> Tensor:
        A = -torch.exp(self.A_log)
        weights = {"D": self.D, "dt_bias": self.dt_bias}
        if states is None:
            return ssd(u, dt, A, B, C, **weights, cu_seqlens=layout.cu_seqlens)[0]
        n = layout.n_decode
        outputs = []
        if n:
            outputs.append(ssd_update(u[:n], dt[:n], A, B[:n], C[:n], **weights, states=states, slots=layout.slots[:n]))
        if n < layout.n_segments:
            slots = layout.slots[n:]
            before = states[slots].masked_fill(layout.fresh[n:, None, None, None], 0)
            y, after = ssd(
                u[n:], dt[n:], A, B[n:], C[n:], **weights, cu_seqlens=layout.prefill_cu_seqlens, initial_state=before
            )
            if (
                wanted := layout.exports
            ) is not None:  # scanned once more up to there: nobody serves this mixer in earnest
                bounds, at = layout.prefill_cu_seqlens, wanted.at[wanted.segments].long()
                begins = bounds[:-1].long()[wanted.segments]
                tokens = n + torch.cat([torch.arange(int(b), int(b + k)) for b, k in zip(begins, at, strict=True)])
                up_to = F.pad(at.cumsum(0), (1, 0)).to(bounds.dtype)
                first = before[wanted.segments]
                states[wanted.slots] = ssd(
                    u[tokens], dt[tokens], A, B[tokens], C[tokens], **weights, cu_seqlens=up_to, initial_state=first
                )[1]
            states[slots] = after
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
