"""Offsets are 64-bit: pools of more than 2^31 elements, of which only the far end is ever touched."""

from __future__ import annotations

import pytest
import torch

from plait.config import ModelConfig
from plait.model import LanguageModel, init_weights
from plait.model.layout import Layout, Segment
from plait.model.state import State

CONFIG = ModelConfig(
    vocab_size=50, d_model=16, d_ff=8, n_layers=2, n_heads=8, n_kv_heads=8, d_head=128, attn_period=2, attn_offset=1,
    n_experts=1, d_state=64, expand=8, init_std=0.3, dtype="float32",
)  # fmt: skip
MANY = 2**31


@pytest.mark.slow
@pytest.mark.parametrize("which", ["slots", "pages"])
def test_the_far_end_of_large_pools_works_like_the_near_one(which: str) -> None:
    model = init_weights(LanguageModel(CONFIG), seed=0).eval()
    slot_size, page_size = CONFIG.d_inner * CONFIG.d_state, 16 * 8 * 128
    n_slots = MANY // slot_size + 8 if which == "slots" else 2
    n_pages = MANY // page_size + 8 if which == "pages" else 3
    far = State.empty(CONFIG, n_slots=n_slots, n_pages=n_pages, kv_dtype=torch.bfloat16)
    assert max(far.ssm.numel(), far.k.numel()) > MANY
    near = State.empty(CONFIG, n_slots=1, n_pages=2, kv_dtype=torch.bfloat16)
    tokens = torch.randint(0, 50, (1, 22), generator=torch.Generator().manual_seed(0))
    for cut, length, mode in ((0, 15, "fresh"), (15, 5, "resume"), (20, 1, "decode"), (21, 1, "decode")):
        logits = []
        for state, slot, pages in ((near, 0, (0, 1)), (far, n_slots - 1, (n_pages - 1, n_pages - 2))):
            layout = Layout.of([Segment(0, length, mode, slot, cut, pages)], 1, length)
            with torch.inference_mode():
                logits.append(model(tokens[:, cut : cut + length], layout, state).logits)
        assert torch.equal(*logits)
