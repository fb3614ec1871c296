"""The Mamba-1 mixer with Jamba's inner norms on dt, B and C (paper section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model.layout import Layout
from plait.model.linear import Linear
from plait.model.norm import RMSNorm
from plait.model.state import MambaState
from plait.ops.causal_conv1d import causal_conv1d, causal_conv1d_update, columns_at
from plait.ops.rms_norm import rms_norm_sections
from plait.ops.selective_scan import selective_scan, selective_scan_exporting, selective_scan_update
from plait.ops.slots import put, take


class CausalConv(nn.Module):
    """Depthwise causal convolution with SiLU, over each segment, from the columns its slot holds."""

    def __init__(self, channels: int, d_conv: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, d_conv))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor, layout: Layout, columns: Tensor | None) -> Tensor:
        """x [tokens, channels]. Writes the new columns into the pool `columns`, if there is one."""
        if columns is None:
            before = None if layout.carry is None else layout.carry.columns(x, self.weight.shape[1])
            return causal_conv1d(x, self.weight, self.bias, cu_seqlens=layout.cu_seqlens, initial_columns=before)[0]
        n = layout.n_decode
        outputs = []
        if n:
            outputs.append(causal_conv1d_update(x[:n], self.weight, self.bias, columns=columns, slots=layout.slots[:n]))
        if n < layout.n_segments:
            slots = layout.slots[n:]
            before = take(columns, slots, layout.fresh[n:])
            y, after = causal_conv1d(
                x[n:], self.weight, self.bias, cu_seqlens=layout.prefill_cu_seqlens, initial_columns=before
            )
            put(columns, slots, after)
            if (wanted := layout.exports) is not None:
                inside = columns_at(
                    x[n:], cu_seqlens=layout.prefill_cu_seqlens, export_at=wanted.at, d_conv=self.weight.shape[1],
                    initial_columns=before,
                )  # fmt: skip
                put(columns, wanted.slots, inside[wanted.segments])
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class Mamba(nn.Module):
    """[tokens, d_model] -> [tokens, d_model]: in_proj, causal conv, selective scan, gate, out_proj.

    A_log, D and dt_bias stay fp32 whatever the model's dtype: they live inside exponentials.
    """

    fp32_parameters = ("A_log", "D", "dt_bias")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.in_proj = Linear(config.d_model, 2 * config.d_inner, bias=config.proj_bias)
        self.conv = CausalConv(config.d_inner, config.d_conv, config.conv_bias)
        self.x_proj = Linear(config.d_inner, config.dt_rank + 2 * config.d_state, bias=False)
        self.dt_norm = RMSNorm(config.dt_rank, config.norm_eps)
        self.B_norm = RMSNorm(config.d_state, config.norm_eps)
        self.C_norm = RMSNorm(config.d_state, config.norm_eps)
        self.dt_proj = Linear(config.dt_rank, config.d_inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(config.d_inner, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(config.d_inner, config.d_state, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(config.d_inner, dtype=torch.float32))
        self.out_proj = Linear(config.d_inner, config.d_model, bias=config.proj_bias)

    def forward(self, x: Tensor, layout: Layout, state: MambaState | None = None) -> Tensor:
        """Writes the new convolution columns and SSM states into the slots of `state`, if there is one."""
        u, z = self.in_proj(x).chunk(2, dim=-1)  # [tokens, d_inner] each
        u = self.conv(u, layout, None if state is None else state.conv)
        norms = (self.dt_norm.weight, self.B_norm.weight, self.C_norm.weight)
        dt, B, C = rms_norm_sections(self.x_proj(u), norms, self.dt_norm.eps)
        y = self._scan(u, self.dt_proj(dt), B, C, z, layout, None if state is None else state.ssm)
        return self.out_proj(y)

    def _scan(
        self, u: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor, layout: Layout, states: Tensor | None
    ) -> Tensor:
        A = -torch.exp(self.A_log)
        if states is None:
            rest = {"D": self.D, "z": z, "dt_bias": self.dt_bias, "cu_seqlens": layout.cu_seqlens}
            before = None
            if layout.carry is not None:  # a segment is affine in the state it begins with: learn both terms, then scan
                ended = selective_scan(u, dt, A, B, C, **rest)[1]
                before = layout.carry.states(ended, _decay(dt, A, self.dt_bias, layout).to(ended.dtype))
            return selective_scan(u, dt, A, B, C, **rest, initial_state=before)[0]
        n = layout.n_decode
        outputs = []
        if n:
            y = selective_scan_update(
                u[:n], dt[:n], A, B[:n], C[:n], D=self.D, z=z[:n], dt_bias=self.dt_bias,
                states=states, slots=layout.slots[:n],
            )  # fmt: skip
            outputs.append(y)
        if n < layout.n_segments:
            slots = layout.slots[n:]
            before = take(states, slots, layout.fresh[n:])
            tokens = u[n:], dt[n:], A, B[n:], C[n:]
            rest = {"D": self.D, "z": z[n:], "dt_bias": self.dt_bias, "cu_seqlens": layout.prefill_cu_seqlens}
            if (wanted := layout.exports) is None:
                y, after = selective_scan(*tokens, **rest, initial_state=before)
            else:
                y, after, inside = selective_scan_exporting(*tokens, **rest, initial_state=before, export_at=wanted.at)
                put(states, wanted.slots, inside[wanted.segments])
            put(states, slots, after)
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _decay(dt: Tensor, A: Tensor, dt_bias: Tensor, layout: Layout) -> Tensor:
    """What each segment leaves of its initial state, the product of its tokens' exp(dt A): [n_segments, d_inner,
    d_state].
    """
    step = F.softplus(dt.to(torch.promote_types(dt.dtype, torch.float32)) + dt_bias)
    lengths = layout.cu_seqlens.diff().long()
    segment = torch.repeat_interleave(torch.arange(len(lengths), device=dt.device), lengths, output_size=len(dt))
    total = step.new_zeros(len(lengths), step.shape[1]).index_add(0, segment, step)
    return torch.exp(total[:, :, None] * A)
