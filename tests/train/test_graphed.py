"""Which steps a graph may serve. The graph itself needs a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from plait.model import Layout
from plait.train.graphed import BEFORE, Cut, Graphs


def cut(*lengths: int, device: str = "cpu") -> list[Cut]:
    n = sum(lengths)
    ids = torch.arange(n, device=device).view(1, n)
    return [(ids, ids + 1, Layout.packed([lengths], n, device))]


def test_on_a_cpu_every_step_runs_as_usual() -> None:
    seen: list[int] = []

    def gradients(cuts: Sequence[Cut]) -> dict[str, Tensor]:
        seen.append(len(cuts[0][2].segments))
        return {"loss": cuts[0][0].sum().double()}

    graphs = Graphs(nn.Linear(2, 2), gradients)
    for lengths in [(3, 4)] * 5 + [(7,)]:
        assert float(graphs(cut(*lengths))["loss"]) == 21
    assert seen == [2] * 5 + [1]
    assert graphs.seen == 1  # counted anew where the rows are cut otherwise


@pytest.mark.gpu
def test_a_graph_computes_what_each_step_would() -> None:
    model = nn.Linear(1, 1, device="cuda")

    def gradients(cuts: Sequence[Cut]) -> dict[str, Tensor]:
        ids, labels, _ = cuts[0]
        loss = (model(ids.flatten()[:, None].float())[:, 0] - labels.flatten()).square().mean()
        loss.backward()
        return {"loss": loss.detach().double()}

    graphs = Graphs(model, gradients)
    for step in range(BEFORE + 4):
        ids, labels, layout = cut(3, 4, device="cuda")[0]
        found = float(graphs([(ids + step, labels, layout)])["loss"])
        grad = model.weight.grad.clone()
        model.zero_grad()
        expected = float(gradients([(ids + step, labels, layout)])["loss"])
        assert found == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(grad, model.weight.grad)
        model.zero_grad()
    assert graphs.kept is not None
