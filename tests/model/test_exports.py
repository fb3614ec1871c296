"""A state taken from inside a segment is the state of a run that ends there."""

from __future__ import annotations

import pytest
import torch

from plait.config import ModelConfig
from plait.model import LanguageModel, init_weights
from plait.model.layout import Exports, Layout
from plait.model.state import PAGE_SIZE, State

SHAPE = {
    "vocab_size": 50, "d_model": 16, "d_ff": 24, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "attn_period": 3,
    "attn_offset": 1, "n_experts": 2, "d_state": 4, "init_std": 0.3, "dtype": "float32",
}  # fmt: skip


def flat(contexts: list[int], lengths: list[int], pages: torch.Tensor, exports: Exports | None = None) -> Layout:
    """Segment i on slot i; those of one token decode."""
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return Layout.flat(
        n_tokens=sum(lengths), n_decode=sum(n == 1 for n in lengths), cu_seqlens=bounds,
        slots=torch.arange(len(lengths)), fresh=torch.tensor(contexts) == 0,
        context_lens=torch.tensor(contexts, dtype=torch.int32), page_table=pages, exports=exports,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_state_inside_a_segment_is_that_of_a_run_up_to_there(kind: str) -> None:
    more = {"mamba_kind": "mamba2", "d_ssm_head": 8} if kind == "mamba2" else {}
    model = init_weights(LanguageModel(ModelConfig(**SHAPE, **more)), seed=0).eval()  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(0)
    first = torch.randint(0, 50, (1, 9), generator=draws)
    tokens = torch.randint(0, 50, (1, 1 + 30 + 7 + 22), generator=draws)
    pages = torch.arange(4 * 3, dtype=torch.int32).view(4, 3)

    def prepared() -> State:
        """Sequences 0 and 1 have begun: 3 and 6 tokens."""
        state = State.empty(model.config, n_slots=6, n_pages=12, page_size=PAGE_SIZE)
        state.conv.fill_(torch.nan)
        state.ssm.fill_(torch.nan)
        model(first, flat([0, 0], [3, 6], pages[:2]), state)
        return state

    contexts, lengths = [3, 6, 0, 0], [1, 30, 7, 22]
    with torch.inference_mode():
        state = prepared()
        wanted = Exports(torch.tensor([13, 7, 2], dtype=torch.int32), torch.tensor([0, 2]), torch.tensor([5, 4]))
        hidden = model(tokens, flat(contexts, lengths, pages, wanted), state).hidden
        plain = prepared()
        torch.testing.assert_close(hidden, model(tokens, flat(contexts, lengths, pages), plain).hidden)
        torch.testing.assert_close(state.ssm[:, :4], plain.ssm[:, :4])
        short = prepared()  # the same segments, cut where a state was wanted
        pieces = torch.cat([tokens[:, 1:14], tokens[:, 38:40]], 1)
        layout = flat([6, 0], [13, 2], pages[[1, 3]])
        layout.slots.copy_(torch.tensor([1, 3]))
        model(pieces, layout, short)
    for exported, slot in ((5, 1), (4, 3)):
        torch.testing.assert_close(state.ssm[:, exported], short.ssm[:, slot])
        torch.testing.assert_close(state.conv[:, exported], short.conv[:, slot])
