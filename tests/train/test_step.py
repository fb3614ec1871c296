"""One pass: its loss is the sum of its parts as model/losses.py defines them, whatever is recomputed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from plait.model import LanguageModel, Layout, init_weights
from plait.model.losses import activation_loss, balance_loss, router_z_loss
from plait.parallel import Plan
from plait.train.config import LossConfig, TrainConfig
from plait.train.ema import Ema
from plait.train.recompute import recompute
from plait.train.step import pass_loss

LOSSES = LossConfig(balance=0.3, router_z=0.2, activation=0.1, logit_z=0.05)


def batch(config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor, Layout]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, config.model.vocab_size, (2, 16), generator=generator)
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    return ids, labels, Layout.packed([[16], [5, 11]], 16)


def loss_and_gradients(model: LanguageModel, config: TrainConfig) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    found = pass_loss(model, Plan(), *batch(config), LOSSES, n_labels=30)
    found.loss.backward()
    torch.testing.assert_close(found.loss.detach(), found.parts["loss"], rtol=1e-6, atol=0)
    return found.loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_it_is_the_definition(tiny_run: TrainConfig) -> None:
    model = init_weights(LanguageModel(tiny_run.model), seed=0).double()
    ids, labels, layout = batch(tiny_run)
    found, _ = loss_and_gradients(model, tiny_run)
    out = model(ids, layout, observe=True)
    logits = out.logits.flatten(0, 1)
    routers = [s.router_logits for s in out.stats if s.router_logits is not None]
    squares = (logits.logsumexp(-1).square() * (labels.flatten() != -100)).sum() / 30
    expected = F.cross_entropy(logits, labels.flatten()) + 0.05 * squares
    expected = expected + 0.3 * balance_loss(routers, 2) + 0.2 * router_z_loss(routers)
    expected = expected + 0.1 * activation_loss(out.stats, [0, 1, 3])
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["light", "selective", "full"])
def test_recomputing_changes_nothing(mode: str, tiny_run: TrainConfig) -> None:
    plain, again = (init_weights(LanguageModel(tiny_run.model), seed=0) for _ in range(2))
    loss, gradients = loss_and_gradients(plain, tiny_run)
    found, recomputed = loss_and_gradients(recompute(again, mode), tiny_run)
    assert torch.equal(loss, found)
    assert gradients.keys() == recomputed.keys()
    assert all(torch.equal(gradients[name], recomputed[name]) for name in gradients)


@pytest.mark.parametrize("mode", ["none", "light", "selective", "full"])
def test_less_is_kept(mode: str, tiny_run: TrainConfig) -> None:
    def kept(mode: str) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model = recompute(init_weights(LanguageModel(tiny_run.model), seed=0), mode)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = pass_loss(model, Plan(), *batch(tiny_run), LOSSES, n_labels=30)
            del found
        return sum(sizes.values())

    if mode == "none":
        assert kept("full") < kept("none")
    else:
        assert kept(mode) < kept("none")


def test_the_average_of_weights(tiny_run: TrainConfig) -> None:
    model = init_weights(LanguageModel(replace(tiny_run.model, n_layers=1)), seed=0)
    ema = Ema(model, 0.75)
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    ema.update(model)
    with ema.swapped_in(model):
        torch.testing.assert_close(model.embed.weight.detach(), before + 0.25)
    torch.testing.assert_close(model.embed.weight.detach(), before + 1.0)
