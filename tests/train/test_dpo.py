"""DPO: log-probabilities against one answer at a time, the loss at points where it is known, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch

from plait.model import LanguageModel, init_weights
from plait.train.config import LoraConfig, TrainConfig
from plait.train.dpo import Pair, answer_log_probs, dpo_loss, reference
from plait.train.lora import adapt

PAIRS = [Pair((1, 5, 9), (7, 8), (20, 21, 22)), Pair((4,), (30,), (31, 2)), Pair((3, 3), (40, 41), (42,))]


@pytest.fixture
def model(tiny_run: TrainConfig) -> LanguageModel:
    return init_weights(LanguageModel(tiny_run.model), seed=4)


def test_log_probabilities_are_those_of_each_answer_alone(model: LanguageModel) -> None:
    model = model.double()
    found = answer_log_probs(model, PAIRS)
    for pair, row in zip(PAIRS, found.tolist(), strict=True):
        for answer, ours in zip((pair.chosen, pair.rejected), row, strict=True):
            ids = torch.tensor([[*pair.prompt, *answer]])
            log_probs = model(ids).logits[0].detach().log_softmax(-1)
            n = len(pair.prompt)
            expected = sum(float(log_probs[n - 1 + i, token]) for i, token in enumerate(answer))
            assert ours == pytest.approx(expected, rel=1e-12)


def test_the_loss_at_known_points() -> None:
    same = torch.tensor([[-3.0, -4.0], [-1.0, -9.0]])
    assert float(dpo_loss(same, same).loss) == pytest.approx(math.log(2))
    better = dpo_loss(same + torch.tensor([2.0, -3.0]), same, beta=0.1)
    assert float(better.loss) == pytest.approx(math.log1p(math.exp(-0.5)))
    assert float(better.margin) == pytest.approx(0.5)
    assert float(better.accuracy) == 1
    with pytest.raises(ValueError, match="beta=0 must be greater than 0"):
        dpo_loss(same, same, beta=0)


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="rejected of a pair is empty"):
        Pair((1,), (2,), ())


@pytest.mark.parametrize(("with_adapters", "share"), [(False, 0.6), (True, 0.96)])  # adapters leave the head alone
def test_it_learns_what_is_preferred(model: LanguageModel, with_adapters: bool, share: float) -> None:
    before = reference(model, PAIRS, batch=2)
    if with_adapters:
        adapt(model, LoraConfig(rank=4))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=6e-2 if with_adapters else 2e-2)
    losses = []
    for _ in range(40):
        found = dpo_loss(answer_log_probs(model, PAIRS), before)
        losses.append(float(found.loss.detach()))
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses[-1] < share * losses[0]
    assert float(found.accuracy) == 1
