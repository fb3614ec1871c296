"""State: the shapes of its pools, moving what a slot holds, and refusing a layout that names what it has not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.accounting import kv_bytes, recurrent_bytes
from plait.config import ModelConfig
from plait.model.init import init_weights
from plait.model.layout import Layout, Segment
from plait.model.network import LanguageModel
from plait.model.state import AttentionState, State

CONFIG = ModelConfig(
    vocab_size=40, d_model=16, d_ff=8, n_layers=5, n_heads=2, n_kv_heads=1, attn_period=3, attn_offset=1, n_experts=2,
    dtype="float32",
)  # fmt: skip
MAMBA2 = replace(CONFIG, mamba_kind="mamba2", d_ssm_head=8, n_ssm_groups=2)


@given(
    st.sampled_from([CONFIG, MAMBA2]), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4),
    st.sampled_from(["bfloat16", "float32"]),
)  # fmt: skip
def test_pools_are_as_big_as_accounting_says(
    config: ModelConfig, n_layers: int, n_slots: int, n_pages: int, page_size: int, dtype: str
) -> None:
    config = replace(config, n_layers=n_layers)
    state = State.empty(config, n_slots=n_slots, n_pages=n_pages, page_size=page_size, dtype=getattr(torch, dtype))
    assert (state.n_slots, state.n_pages, state.page_size) == (n_slots, n_pages, page_size)
    assert state.ssm.dtype == torch.float32
    recurrent = sum(pool.numel() * pool.element_size() for pool in (state.conv, state.ssm))
    assert recurrent == n_slots * recurrent_bytes(config, dtype)
    kv = sum(pool.numel() * pool.element_size() for pool in (state.k, state.v))
    assert kv == kv_bytes(config, n_pages * page_size, dtype)


def test_layers_see_their_own_part_of_the_pools() -> None:
    state = State.empty(CONFIG, n_slots=2, n_pages=3, page_size=4)
    views = [state.of_layer(i) for i in range(CONFIG.n_layers)]
    assert [isinstance(view, AttentionState) for view in views] == [False, True, False, False, True]
    for number, view in enumerate(views):
        for pool in view[:2]:
            pool.fill_(number)  # a view: written through
    assert state.ssm[:, 0].flatten(1)[:, 0].tolist() == [0, 2, 3]
    assert state.conv.flatten(1)[:, 0].tolist() == [0, 2, 3]
    assert state.k.flatten(1)[:, 0].tolist() == [1, 4]
    assert state.v.flatten(1)[:, 0].tolist() == [1, 4]


@pytest.mark.parametrize("sizes", [(-1, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_impossible_sizes(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 0, page_size="):
        State.empty(CONFIG, n_slots=sizes[0], n_pages=sizes[1], page_size=sizes[2])


def _filled(config: ModelConfig = CONFIG) -> State:
    state = State.empty(config, n_slots=3, n_pages=4, page_size=2)
    for pool in (state.conv, state.ssm, state.k, state.v):
        pool.copy_(torch.randn(pool.shape, generator=torch.Generator().manual_seed(0)))
    return state


@pytest.mark.parametrize("config", [CONFIG, MAMBA2])
def test_a_saved_slot_comes_back_anywhere_and_is_a_copy(config: ModelConfig) -> None:
    state = _filled(config)
    conv, ssm = state.conv.clone(), state.ssm.clone()
    saved = state.save_slot(1)
    state.conv[:, 1], state.ssm[:, 1] = torch.nan, torch.nan
    state.load_slot(2, saved)
    assert torch.equal(state.conv[:, 2], conv[:, 1])
    assert torch.equal(state.ssm[:, 2], ssm[:, 1])
    assert torch.equal(state.ssm[:, 0], ssm[:, 0])
    assert state.ssm[:, 1].isnan().all()
    state.load_slot(1, saved)
    assert torch.equal(state.ssm[:, 1], ssm[:, 1])


def test_slots_that_are_not_there() -> None:
    state = _filled()
    saved = state.save_slot(0)
    for slot in (-1, 3):
        with pytest.raises(ValueError, match=rf"slot={slot} must be between 0 and n_slots-1=2"):
            state.save_slot(slot)
        with pytest.raises(ValueError, match=rf"slot={slot} must be between"):
            state.load_slot(slot, saved)


def test_a_saved_slot_of_another_model_is_refused() -> None:
    state = _filled()
    with pytest.raises(ValueError, match="is not this model's"):
        state.load_slot(0, State.empty(replace(CONFIG, n_layers=1), n_slots=1, n_pages=0).save_slot(0))  # it broadcasts
    with pytest.raises(ValueError, match="is not this model's"):
        state.load_slot(0, _filled(MAMBA2).save_slot(0))


FIRST = {"start": 0, "length": 3, "slot": 0, "pages": (0, 1)}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"slot": -1}, "slot=-1 of .* must be between 0 and n_slots-1=2"),
        ({"slot": 3}, "slot=3 of .* must be between 0 and n_slots-1=2"),
        ({"pages": ()}, "0 pages of 2 tokens don't hold the 0 . 3 tokens of the segment at 0"),
        ({"pages": (0,)}, "1 pages of 2 tokens don't hold"),
        ({"pages": (0, 1), "mode": "resume", "context_len": 2}, "2 pages of 2 tokens don't hold the 2 . 3 tokens"),
        ({"pages": (0, 4)}, "pages run from 0 to 4; they must be between 0 and 3"),
        ({"pages": (-1, 0)}, "pages run from -1 to 0"),
    ],
)
def test_a_layout_must_fit_the_state_and_nothing_is_written_otherwise(
    changes: dict[str, object], complaint: str
) -> None:
    model, state = init_weights(LanguageModel(CONFIG), seed=0), _filled()
    before = [pool.clone() for pool in (state.conv, state.ssm, state.k, state.v)]
    layout = Layout.of([Segment(**{**FIRST, **changes})], 1, 3)
    with pytest.raises(ValueError, match=complaint):
        model(torch.arange(3)[None], layout, state)
    assert all(map(torch.equal, before, (state.conv, state.ssm, state.k, state.v)))


def test_only_what_a_model_has_is_asked_for() -> None:
    tokens = torch.arange(3)[None]
    attention = replace(CONFIG, attn_period=1, attn_offset=0)
    state = State.empty(attention, n_slots=0, n_pages=4, page_size=2)
    init_weights(LanguageModel(attention), seed=0)(tokens, Layout.of([Segment(0, 3, pages=(2, 3))], 1, 3), state)
    mamba = replace(CONFIG, attn_period=9, attn_offset=8)
    state = State.empty(mamba, n_slots=1, n_pages=0)
    init_weights(LanguageModel(mamba), seed=0)(tokens, Layout.of([Segment(0, 3, slot=0)], 1, 3), state)


def test_the_state_of_another_model_is_refused() -> None:
    model = init_weights(LanguageModel(CONFIG), seed=0)
    with pytest.raises(ValueError, match="the state was made for another model"):
        model(torch.arange(3)[None], Layout.of([Segment(**FIRST)], 1, 3), _filled(replace(CONFIG, attn_offset=0)))
    model(torch.arange(3)[None], Layout.of([Segment(**FIRST)], 1, 3), _filled(replace(CONFIG)))  # equal is enough
