"""How fast a run is, and how much of the hardware it uses."""

from __future__ import annotations

import time

import torch

from plait.accounting import account
from plait.parallel.plan import Plan
from plait.train.config import TrainConfig

# Dense bf16 products a second, as NVIDIA's data sheets say (without sparsity).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "B200": 2250e12}


def peak_flops(device: torch.device) -> float | None:
    """Of one device, in bf16; None for one that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


class Clock:
    """Seconds in training steps since the line logged last, and what they mean."""

    def __init__(self, config: TrainConfig, device: torch.device, plan: Plan) -> None:
        self.config, self.device, self.plan = config, device, plan
        self.seconds, self.steps, self.began = 0.0, 0, 0.0
        peak = peak_flops(device)
        self.flops = account(config.model, config.name, context=config.seq).flops.training
        self.peak = None if peak is None else peak * (plan.mesh.config.world if plan.mesh else 1)

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.seconds, self.steps = self.seconds + time.perf_counter() - self.began, self.steps + 1

    def rates(self) -> dict[str, float]:
        """Tokens per second (of all processes), the slowest process's step, and MFU where the peak is known. Starts
        anew.
        """
        rates = {"tokens_per_second": self.steps * self.config.tokens_per_step / self.seconds}
        if self.plan.mesh is not None:
            own = torch.tensor(1000 * self.seconds / self.steps, device=self.device)
            rates["slowest_step_ms"] = float(self.plan.largest(own))
        if self.peak is not None:
            rates["mfu"] = rates["tokens_per_second"] * self.flops / self.peak
        self.seconds, self.steps = 0.0, 0
        return rates
