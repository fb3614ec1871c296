"""What to do with a step whose loss is not finite, or far above the ones before it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any, Literal

from plait.train.config import GuardConfig

LEAST = 8  # losses before a spike can be told

Verdict = Literal["taken", "skip", "rewind"]


class Guard:
    """Remembers the losses of the steps that were taken. Every process sees the same numbers, and so decides alike."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)
        self.in_a_row = 0
        self.shift = 0  # batches left out by rewinding: step s reads batch s + shift

    @property
    def most_loss(self) -> float:
        """A step with a greater loss is not to be taken."""
        if not self.config.spike or len(self.losses) < min(LEAST, self.config.window):
            return math.inf
        return self.config.spike * statistics.median(self.losses)

    def judge(self, step: int, record: dict[str, float]) -> Verdict:
        """Of step `step`, which `train_step` took or skipped. Raises FloatingPointError where the run can't go on."""
        if "skipped" not in record:
            self.losses.append(record["loss"])
            self.in_a_row = 0
            return "taken"
        self.in_a_row += 1
        why = f"step {step}: loss {record['loss']}, gradient norm {record['grad_norm']}"
        if self.config.action == "stop":
            raise FloatingPointError(
                f"{why}; start anew, in another --out, with a lower optim.lr (what was saved before this step is "
                "whole), or set guard.action=skip"
            )
        if self.in_a_row > self.config.most:
            raise FloatingPointError(
                f"{why}; {self.config.most} in a row were left out: start anew with a lower optim.lr"
            )
        return self.config.action

    def rewound(self, step: int, to: int) -> None:
        """The run goes on from step `to` with the batches after that of `step`."""
        self.shift += step - to

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "in_a_row": self.in_a_row, "shift": self.shift}

    def load(self, state: dict[str, Any], *, keep_count: bool = False) -> None:
        """Put a saved state back; `keep_count`, when rewinding, all but the counts of what was left out."""
        self.losses = deque(state["losses"], maxlen=self.config.window)
        if not keep_count:
            self.in_a_row, self.shift = state["in_a_row"], state["shift"]
