"""The attention mixer: grouped-query, causal, without any position embedding (paper section 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model.layout import Layout
from plait.model.linear import Linear
from plait.model.state import AttentionState
from plait.ops.attention import attention, paged_attention, write_pages


class Attention(nn.Module):
    """[tokens, d_model] -> [tokens, d_model]. Order comes from the Mamba layers, so keys carry no position and can be
    reused freely.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.d_head = config.d_head
        self.q_proj = Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x: Tensor, layout: Layout, state: AttentionState | None = None) -> Tensor:
        """Writes this call's keys and values into the pages of `state`, if there is one."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.d_head)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if state is None and layout.carry is not None:
            out = layout.carry.attention(q, k, v)
        elif state is None:
            bounds = None if torch.compiler.is_compiling() else layout.bounds
            out = attention(q, k, v, cu_seqlens=layout.cu_seqlens, bounds=bounds)
        else:
            where: dict[str, Any] = {
                "page_table": layout.page_table,
                "cu_seqlens": layout.cu_seqlens,
                "context_lens": layout.context_lens,
                "k_scales": state.k_scales,
                "v_scales": state.v_scales,
            }
            write_pages(k, v, state.k, state.v, **where)
            out = paged_attention(q, state.k, state.v, **where, on_host=layout.on_host)
        return self.o_proj(out.flatten(-2))
