"""Tensor parallelism at inference: prefill, chunks and decode with split state, int8 weights included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from plait.config import ModelConfig
from plait.model import LanguageModel
from plait.parallel.mesh import check_tensor_split
from plait.parallel.placement import Placement, placements

MODELS: dict[str, dict[str, Any]] = {
    "full": {"dtype": "float64"},
    "int8": {"dtype": "float32", "quantize": True},
    "whole_experts": {"dtype": "float64", "whole_experts": True},
    "whole_experts_int8": {"dtype": "float32", "quantize": True, "whole_experts": True},
    "tied_with_biases": {"dtype": "float64", "model": {"tie_embeddings": True, "proj_bias": True}},
}
TOLERANCE = {"float64": 1e-13, "float32": 5e-6}


CASES = {world: [{"name": name, "kind": "serving", **case} for name, case in MODELS.items()] for world in (2, 4)}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_serving_split_equals_whole(found: Callable[[int, str], Any], world: int, name: str) -> None:
    for result in found(world, name):
        assert result["difference"] < TOLERANCE[MODELS[name]["dtype"]]
        assert result["held"] < 1 / world + 0.03  # norms, the router, and few KV heads are whole


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_shares_of_every_tensor_are_all_of_it(world: int) -> None:
    config = ModelConfig(
        vocab_size=64, d_model=32, d_ff=48, n_layers=4, n_heads=4, n_kv_heads=4, attn_period=4, attn_offset=2,
        n_experts=4, proj_bias=True,
    )  # fmt: skip
    table = placements(config, tp=world)
    model = LanguageModel(config)
    for name, parameter in model.named_parameters():
        numbered = torch.arange(parameter.numel()).view(parameter.shape)
        shares = [table[name].share(numbered, tp=(rank, world)) for rank in range(world)]
        if table[name].tp_dim is None:
            assert all(torch.equal(share, numbered) for share in shares)
        else:
            assert sorted(torch.cat([s.flatten() for s in shares]).tolist()) == list(range(parameter.numel()))


def test_matrices_in_a_row_are_split_each() -> None:
    gate_and_up = torch.arange(8)
    assert Placement(tp_dim=0, pair_dim=0).share(gate_and_up, tp=(1, 2)).tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize(
    ("change", "tp", "message"),
    [
        ({}, 3, "vocab_size=64"),
        ({"n_heads": 6, "d_head": 8, "n_kv_heads": 6}, 4, "n_heads=6"),
        ({"n_heads": 12, "d_head": 8, "n_kv_heads": 6}, 4, "n_kv_heads=6"),
        ({"d_ff": 50}, 4, "d_ff=50"),
        ({"mamba_kind": "mamba2", "d_ssm_head": 16}, 2, "mamba2"),
    ],
)
def test_what_does_not_divide_is_refused(change: dict[str, Any], tp: int, message: str) -> None:
    sizes = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "n_layers": 8, "n_heads": 4, "n_kv_heads": 2}
    config = ModelConfig(**sizes | change)
    with pytest.raises(ValueError, match=message):
        check_tensor_split(config, tp)
