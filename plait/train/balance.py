"""Balance without a loss (Wang et al., 2024): a bias on each expert's probability, for the choice alone, that rises
while the expert gets fewer tokens than its share and falls while it gets more.

The public layout has no place for such a bias, and the model that is exported must be the one that was trained. So over
the last DECAY_SHARE of a run the bias goes to zero, linearly, and what is exported chooses without one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plait.model.feed_forward import MoE
from plait.model.network import LanguageModel

DECAY_SHARE = 0.1  # of all steps


class ChoiceBias:
    """The biases of all mixtures, [mixtures, n_experts], fp32, the same on every process. `rate` 0: there is none.

    Gives each mixture its row as `choice_bias`, and changes it in place.
    """

    def __init__(self, model: LanguageModel, rate: float, device: torch.device) -> None:
        self.rate = rate
        mixtures = [ffn for ffn in model.feed_forwards() if isinstance(ffn, MoE)]
        if rate and not mixtures:
            raise ValueError(f"losses.choice_bias={rate}: the model has no experts")
        self.values = torch.zeros(len(mixtures), model.config.n_experts, device=device)
        for row, ffn in enumerate(mixtures if rate else []):
            ffn.choice_bias = self.values[row]

    def after(self, record: dict[str, Any], step: int, steps: int) -> None:
        """`update` with the loads that a step reports."""
        if self.rate:
            load = [record[name] for name in sorted(record) if name.startswith("load/")]
            self.update(torch.tensor(load, device=self.values.device), step, steps)

    def update(self, load: Tensor, step: int, steps: int) -> None:
        """After step 0 <= step < steps, in which experts had `load` [mixtures, n_experts]; 1 is an equal share."""
        left = steps - 1 - step
        decaying = max(1, round(DECAY_SHARE * steps))
        if left >= decaying:
            self.values.add_(torch.sign(1 - load).to(self.values), alpha=self.rate)
        else:
            self.values.mul_(left / (left + 1))

    def state(self) -> Any:
        """For JSON."""
        return self.values.tolist() if self.rate else []

    def load(self, state: Any) -> None:
        if self.rate and state:
            self.values.copy_(torch.tensor(state))
