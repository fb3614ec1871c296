"""Direct preference optimisation (Rafailov et al., 2023), which the paper compares its post-training with (section
5.4).

    loss = -log sigmoid(beta * ((log p(chosen) - log p_0(chosen)) - (log p(rejected) - log p_0(rejected))))

p_0 is the model that the run began with. Its log-probabilities don't change, so they are computed once (`reference`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.data.preferences import Pair
from plait.model.layout import Layout, Segment
from plait.model.network import LanguageModel


@dataclass(frozen=True)
class Preferences:
    """The loss of some pairs, and what is watched: all means over the pairs."""

    loss: Tensor
    accuracy: Tensor  # how often the chosen answer's reward is the greater one
    margin: Tensor  # beta times how much further apart the answers are than for p_0


def answer_log_probs(model: LanguageModel, pairs: Sequence[Pair]) -> Tensor:
    """[pairs, 2]: the log-probability of each chosen and rejected answer after its prompt, fp32 or wider.

    All run packed in one call; only positions that predict an answer's token meet the head.
    """
    sequences = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    device = model.embed.weight.device
    ids: list[int] = []
    where: list[int] = []  # positions that predict an answer's token
    targets: list[int] = []
    owner: list[int] = []
    segments = []
    for i, (prompt, answer) in enumerate(sequences):
        start = len(ids)
        ids += [*prompt, *answer[:-1]]
        segments.append(Segment(start, len(ids) - start))
        where += range(start + len(prompt) - 1, len(ids))
        targets += answer
        owner += [i] * len(answer)
    layout = Layout.of(segments, 1, len(ids), device)
    hidden = model(torch.tensor([ids], device=device), layout, keep="none").hidden
    logits = model.logits(hidden[torch.tensor(where, device=device)])
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = -F.cross_entropy(wide, torch.tensor(targets, device=device), reduction="none")
    sums = log_probs.new_zeros(len(sequences)).index_add(0, torch.tensor(owner, device=device), log_probs)
    return sums.view(-1, 2)


@torch.no_grad()
def reference(model: LanguageModel, pairs: Sequence[Pair], *, batch: int = 8) -> Tensor:
    """`answer_log_probs` of the model as it is, [pairs, 2], some pairs at a time."""
    return torch.cat([answer_log_probs(model, pairs[i : i + batch]) for i in range(0, len(pairs), batch)])


def dpo_loss(log_probs: Tensor, reference_log_probs: Tensor, *, beta: float = 0.1) -> Preferences:
    """Both [pairs, 2], chosen first. ValueError for a beta that isn't positive."""
    if not beta > 0:
        raise ValueError(f"beta={beta} must be greater than 0")
    rewards = beta * (log_probs - reference_log_probs)
    margin = rewards[:, 0] - rewards[:, 1]
    return Preferences(-F.logsigmoid(margin).mean(), (margin > 0).float().mean(), margin.mean())
