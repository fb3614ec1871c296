"""Which steps a graph may serve. The graph itself needs a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from plait.model import Layout
from plait.train.config import OptimConfig
from plait.train.graphed import BEFORE, Cut, Graphs, Step
from plait.train.optimizer import AdamW


def cut(*lengths: int, device: str = "cpu") -> list[Cut]:
    n = sum(lengths)
    ids = torch.arange(n, device=device).view(1, n)
    return [(ids, ids + 1, Layout.packed([lengths], n, device))]


def test_on_a_cpu_every_step_runs_as_usual() -> None:
    seen: list[int] = []

    def step(cuts: Sequence[Cut], most: Tensor) -> dict[str, Tensor]:
        seen.append(len(cuts[0][2].segments))
        return {"loss": cuts[0][0].sum().double(), "most": most}

    graphs = Graphs(step)
    for lengths in [(3, 4)] * 5 + [(7,)]:
        found = graphs(cut(*lengths), torch.tensor(5.0))
        assert (float(found["loss"]), float(found["most"])) == (21, 5)
    assert seen == [2] * 5 + [1]
    assert graphs.seen == 1  # counted anew where the rows are cut otherwise


@pytest.mark.gpu
def test_a_graph_computes_what_each_step_would() -> None:
    models = [nn.Linear(1, 1, device="cuda") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [AdamW([{"params": list(m.parameters()), "weight_decay": 0.1}], OptimConfig(lr=0.1)) for m in models]

    def stepper(i: int) -> Step:
        def step(cuts: Sequence[Cut], most: Tensor) -> dict[str, Tensor]:
            ids, labels, _ = cuts[0]
            loss = (models[i](ids.flatten()[:, None].float())[:, 0] - labels.flatten()).square().mean()
            loss.backward()
            optimizers[i].step(torch.where(loss.detach() <= most, 1.0, -1.0))
            optimizers[i].zero_grad()
            return {"loss": loss.detach().double()}

        return step

    plain = stepper(0)
    graphs = Graphs(stepper(1))
    for number in range(BEFORE + 6):
        ids, labels, layout = cut(3, 4, device="cuda")[0]
        most = torch.tensor(-1.0 if number == BEFORE + 2 else 1e9, device="cuda", dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.rate.fill_(0.1 / (1 + number))
        before = models[1].weight.detach().clone()
        expected = float(plain([(ids + number, labels, layout)], most)["loss"])
        found = float(graphs([(ids + number, labels, layout)], most)["loss"])
        assert found == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(models[1].weight, models[0].weight)
        assert torch.equal(models[1].weight, before) == (number == BEFORE + 2)  # whose step was not taken
    assert graphs.kept is not None
    assert float(optimizers[1].steps) == BEFORE + 5
