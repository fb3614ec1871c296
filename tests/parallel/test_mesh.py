"""What a mesh refuses, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plait.config import ModelConfig, presets
from plait.parallel import ParallelConfig

TINY = ModelConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=4, n_heads=4, n_kv_heads=2, attn_period=4, attn_offset=2, n_experts=4
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dp_shard": -1}, "dp_shard=-1"),
        ({"tp": 0}, "tp=0"),
        ({"dp_shard": 2, "ep": 3}, "ep=3 must divide"),
        ({"dp_shard": 2, "tp": 2, "ep": 2, "sequence": False}, "needs sequence=true"),
    ],
)
def test_impossible_grids(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "batch", "message"),
    [
        ({"dp_shard": 2}, {"world": 4}, "number of processes, 4"),
        ({"dp_shard": 4}, {"rows": 6}, "rows of a pass"),
        ({"cp": 4}, {"seq": 30}, "seq=30"),
        ({"cp": 4}, {"seq": 8}, "d_conv-1=3"),
        ({"tp": 4}, {"rows": 1, "seq": 30}, "tokens of a pass"),
        ({"dp_shard": 8, "ep": 8}, {}, "n_experts=4"),
        ({"dp_shard": 3}, {"rows": 3}, "d_model=32"),
        ({"tp": 8}, {}, "n_heads=4"),
    ],
)
def test_what_does_not_divide_is_refused(settings: dict[str, Any], batch: dict[str, int], message: str) -> None:
    config = ParallelConfig(**settings)
    with pytest.raises(ValueError, match=message):
        config.check(TINY, **{"seq": 32, "rows": 8, "world": config.world} | batch)


def test_mamba2_is_not_cut() -> None:
    with pytest.raises(ValueError, match="mamba2 has no state passing"):
        ParallelConfig(cp=2).check(replace(TINY, mamba_kind="mamba2", d_ssm_head=16), seq=32, rows=8, world=2)


@pytest.mark.parametrize("name", ["jamba-1.5-mini", "jamba-1.5-large"])
def test_the_paper_models_divide_over_its_machines(name: str) -> None:
    """FSDP x TP x EP over 64 GPUs, and 256K tokens over 8 of them."""
    ParallelConfig(dp_shard=8, tp=8, ep=16).check(presets[name], seq=4096, rows=64, world=64)
    ParallelConfig(cp=8, tp=8, ep=16).check(presets[name], seq=262_144, rows=1, world=64)


def test_what_is_left_shards_the_parameters() -> None:
    assert ParallelConfig(dp_shard=0, tp=2, cp=2).filled(16).dp_shard == 4
    with pytest.raises(ValueError, match="dp_replicate\\*cp\\*tp=3"):
        ParallelConfig(dp_shard=0, tp=3).filled(4)
    with pytest.raises(ValueError, match="the grid of 2"):
        ParallelConfig(dp_shard=2).filled(4)
