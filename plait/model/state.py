"""What a model remembers between calls: recurrent state in slots, keys and values in pages.

State is small and constant per sequence (15 MiB for Jamba-1.5-Mini), keys and values grow with it (16 KiB a token), so
each has its own pool. The model writes into both; who owns which slot and page is the caller's business, told through
the `Layout`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from plait.config import ModelConfig
from plait.model.layout import Layout

PAGE_SIZE = 16


class MambaState(NamedTuple):
    """One layer's view of the recurrent pool."""

    conv: Tensor  # [n_slots, d_conv_channels, d_conv - 1] the last inputs of the convolution, oldest first
    ssm: Tensor  # [n_slots, d_inner, d_state], or [n_slots, n_ssm_heads, d_ssm_head, d_state] in Mamba-2; fp32


class AttentionState(NamedTuple):
    """One layer's view of the page pool."""

    k: Tensor  # [n_pages, page_size, n_kv_heads, d_head]
    v: Tensor
    k_scales: Tensor | None = None  # [n_pages, page_size, n_kv_heads] fp32, of int8 pages
    v_scales: Tensor | None = None


class Recurrent(NamedTuple):
    """A copy of one sequence's recurrent state over all layers, for preemption and prefix caching."""

    conv: Tensor
    ssm: Tensor


@dataclass(frozen=True)
class State:
    """The pools of every layer, stacked over the layers of a kind."""

    config: ModelConfig
    conv: Tensor  # [n_mamba_layers, n_slots, d_conv_channels, d_conv - 1]
    ssm: Tensor  # [n_mamba_layers, n_slots, ...] fp32
    k: Tensor  # [n_attention_layers, n_pages, page_size, n_kv_heads, d_head]
    v: Tensor
    k_scales: Tensor | None = None  # [n_attention_layers, n_pages, page_size, n_kv_heads] fp32, of int8 keys
    v_scales: Tensor | None = None

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        *,
        n_slots: int,
        n_pages: int,
        page_size: int = PAGE_SIZE,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        split: int = 1,
        device: torch.device | str = "cpu",
    ) -> State:
        """Unwritten pools; `dtype` is of convolution columns, and of keys and values if `kv_dtype` says nothing else;
        int8 ones have a scale a token and head. The SSM state is fp32, or wider if dtype is. `split`: tensor-parallel
        processes, each of which holds its share of channels and KV heads. Raises ValueError for sizes under 0, or a
        page of no tokens.
        """
        if n_slots < 0 or n_pages < 0 or page_size < 1:
            raise ValueError(
                f"n_slots={n_slots} and n_pages={n_pages} must be at least 0, page_size={page_size} at least 1"
            )
        inner = (config.d_inner // split,) if config.mamba_kind == "mamba" else (config.n_ssm_heads, config.d_ssm_head)
        kv_shape = (config.n_attention_layers, n_pages, page_size, max(1, config.n_kv_heads // split), config.d_head)
        wide = torch.promote_types(dtype, torch.float32)

        def scales() -> Tensor | None:
            is_int8 = kv_dtype == torch.int8
            return torch.empty(kv_shape[:-1], dtype=torch.float32, device=device) if is_int8 else None

        return cls(
            config,
            conv=torch.empty(
                config.n_mamba_layers,
                n_slots,
                config.d_conv_channels // split,
                config.d_conv - 1,
                dtype=dtype,
                device=device,
            ),
            ssm=torch.empty(config.n_mamba_layers, n_slots, *inner, config.d_state, dtype=wide, device=device),
            k=torch.empty(kv_shape, dtype=kv_dtype or dtype, device=device),
            v=torch.empty(kv_shape, dtype=kv_dtype or dtype, device=device),
            k_scales=scales(),
            v_scales=scales(),
        )

    @property
    def n_slots(self) -> int:
        return self.ssm.shape[1]

    @property
    def n_pages(self) -> int:
        return self.k.shape[1]

    @property
    def page_size(self) -> int:
        return self.k.shape[2]

    @cached_property
    def _places(self) -> list[tuple[bool, int]]:
        """Of each layer: whether it is attention, and how many of its kind come before it."""
        is_attention = [kind.mixer == "attention" for kind in self.config.layer_kinds()]
        return [(kind, is_attention[:i].count(kind)) for i, kind in enumerate(is_attention)]

    def of_layer(self, index: int) -> MambaState | AttentionState:
        """The pools of layer `index`; `index` counts all layers."""
        is_attention, nth = self._places[index]
        if not is_attention:
            return MambaState(self.conv[nth], self.ssm[nth])
        if self.k_scales is None or self.v_scales is None:
            return AttentionState(self.k[nth], self.v[nth])
        return AttentionState(self.k[nth], self.v[nth], self.k_scales[nth], self.v_scales[nth])

    def check(self, config: ModelConfig, layout: Layout) -> None:
        """ValueError unless these pools are of such a model, and have the slots and pages that the layout names.

        A slot of -1 would be the last row to torch, and another sequence's. A `flat` layout was checked by its maker.
        """
        if config is not self.config and config != self.config:
            raise ValueError(f"the state was made for another model: {self.config}; this one is {config}")
        if not layout.segments:
            return
        for s in layout.segments:
            if self.config.n_mamba_layers and not 0 <= s.slot < self.n_slots:
                raise ValueError(f"slot={s.slot} of {s} must be between 0 and n_slots-1={self.n_slots - 1}")
            if self.k.shape[0] and len(s.pages) * self.page_size < s.context_len + s.length:
                raise ValueError(
                    f"{len(s.pages)} pages of {self.page_size} tokens don't hold the "
                    f"{s.context_len} + {s.length} tokens of the segment at {s.start}"
                )
        table = layout.page_table
        if self.k.shape[0] and table.device.type == "cpu":  # on a device the check would wait for it
            low, high = (int(page) for page in table.aminmax())
            if low < 0 or high >= self.n_pages:
                raise ValueError(f"pages run from {low} to {high}; they must be between 0 and {self.n_pages - 1}")

    def save_slot(self, slot: int) -> Recurrent:
        """A copy of what a slot holds. ValueError for a slot there isn't."""
        self._check_slot(slot)
        return Recurrent(self.conv[:, slot].clone(), self.ssm[:, slot].clone())

    def load_slot(self, slot: int, saved: Recurrent) -> None:
        """Put a copy back, into the same or another slot. Mutates the pool. ValueError for another model's copy."""
        self._check_slot(slot)
        for pool, copy in ((self.conv, saved.conv), (self.ssm, saved.ssm)):
            if pool[:, slot].shape != copy.shape:
                raise ValueError(f"saved state {list(copy.shape)} is not this model's {list(pool[:, slot].shape)}")
            pool[:, slot] = copy

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.n_slots:
            raise ValueError(f"slot={slot} must be between 0 and n_slots-1={self.n_slots - 1}")
