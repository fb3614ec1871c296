"""What is run before the first request: every length once, only on spare memory."""

import torch

from plait.config import ModelConfig
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.model.state import State
from plait.model.warm_up import lengths, one_layer_of_each_kind, warm_up


def test_every_power_of_two_and_every_planned_length_the_largest_first() -> None:
    assert lengths(2048) == [2048, 1536, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1]
    assert lengths(5) == [5, 4, 2, 1]


def test_only_the_spare_slot_and_page_are_touched_and_left_zero() -> None:
    config = ModelConfig(
        vocab_size=40, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=2, attn_offset=1,
        n_experts=4, d_state=4, dtype="float32", max_context=64,
    )  # fmt: skip
    model = init_weights(LanguageModel(config), seed=0).eval()
    state = State.empty(config, n_slots=3, n_pages=4, page_size=4)
    pools = (state.conv, state.ssm, state.k, state.v)
    for pool in pools:
        pool.fill_(3)
    seen: list[int] = []
    model.layers[0].register_forward_hook(lambda module, given, result: seen.append(len(given[0])))
    with torch.inference_mode():
        warm_up(model, state, 20)
    assert seen == [n for n in (20, 16, 8, 4, 2, 1) for _ in range(2)]
    for pool in pools:
        assert bool((pool[:, :-1] == 3).all())
        assert bool((pool[:, -1] == 0).all())


def test_a_model_of_one_layer_of_each_kind_begins_as_the_whole() -> None:
    config = ModelConfig(
        vocab_size=40, d_model=16, d_ff=24, n_layers=24, n_heads=2, n_kv_heads=1, attn_period=8, attn_offset=4,
        n_experts=4, d_state=4, dtype="float32", max_context=64,
    )  # fmt: skip
    model = LanguageModel(config)
    whole = list(model.layers)
    with one_layer_of_each_kind(model):
        assert list(model.layers) == whole[:5]  # Mamba with an MLP and with experts, and attention is the fifth
    assert list(model.layers) == whole
