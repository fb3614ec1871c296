"""Balance by a bias on the choice: it moves towards the idle experts, leaves the weights alone, and ends at zero."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plait.model import LanguageModel, init_weights
from plait.model.feed_forward import MoE, route_biased
from plait.ops.moe import route
from plait.train.balance import ChoiceBias
from plait.train.config import LossConfig, TrainConfig

CPU = torch.device("cpu")


def test_the_bias_changes_the_choice_and_not_the_weights() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    weights, ids = route_biased(logits, 2, torch.zeros(4))
    expected = route(logits, 2)
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(weights, expected[0])
    weights, ids = route_biased(logits, 2, torch.tensor([0.0, 0.0, 0.0, 0.5]))
    assert ids.tolist() == [[0, 3]]
    torch.testing.assert_close(weights, logits.softmax(-1)[:, [0, 3]])


def test_it_moves_towards_an_equal_load_and_ends_at_zero(tiny_run: TrainConfig) -> None:
    model = init_weights(LanguageModel(tiny_run.model), seed=0)
    bias = ChoiceBias(model, 0.01, CPU)
    mixtures = [ffn for ffn in model.feed_forwards() if isinstance(ffn, MoE)]
    logits = torch.randn(512, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.5, 0.0, 0.0, -1.5])

    def load() -> torch.Tensor:
        chosen = mixtures[0].choose(logits)[1]
        return 4 * torch.bincount(chosen.flatten(), minlength=4) / chosen.numel()

    before = load()
    assert before.max() > 1.8
    for step in range(90):
        bias.update(load().expand(len(mixtures), -1), step, 100)
    assert load().max() < 1.2  # steps of 0.01 back and forth
    kept = bias.state()
    for step in range(90, 100):
        assert bias.values.abs().max() > 0
        bias.update(load().expand(len(mixtures), -1), step, 100)
    assert bias.values.abs().max() == 0
    torch.testing.assert_close(load(), before)
    bias.load(kept)
    assert bias.state() == kept  # fp32 numbers survive JSON


def test_one_way_of_balancing_at_a_time(tiny_run: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"set losses\.balance=0"):
        LossConfig(choice_bias=1e-3)
    dense = replace(tiny_run.model, n_experts=1, top_k=1)
    with pytest.raises(ValueError, match="the model has no experts"):
        ChoiceBias(LanguageModel(dense), 1e-3, CPU)
