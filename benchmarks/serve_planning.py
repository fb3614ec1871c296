"""What planning and bookkeeping cost beside a step: `python benchmarks/serve_planning.py [--running 128]`.

All sequences decode; the executor does nothing but hand back one token per row. Reported are microseconds of processor
time of plan + commit for a step, without the executor: the median, and the 5th and 95th percentile over the steps.
"""

import argparse
import statistics
import time
from collections import deque

from plait.serve.engine import Engine
from plait.serve.plan import RowResult, StepPlan, StepResult
from plait.serve.pools import PoolSizes
from plait.serve.request import Request
from plait.serve.scheduler import Limits
from plait.text import SamplingParams


class InstantExecutor:
    def __init__(self) -> None:
        self.done: deque[StepResult] = deque()
        self.seconds = 0.0

    def launch(self, plan: StepPlan) -> None:
        begin = time.thread_time()
        self.done.append(StepResult(plan.number, [RowResult(row.sequence, (1,) * row.draws) for row in plan.rows]))
        self.seconds += time.thread_time() - begin

    def collect(self) -> StepResult:
        return self.done.popleft()

    def reset(self) -> None:
        self.done.clear()


def measure(n_running: int, prompt: int, overlap: bool, n_steps: int) -> list[float]:
    """Microseconds of each step."""
    executor = InstantExecutor()
    pages = n_running * (-(-(prompt + n_steps + 64) // 16))
    engine = Engine(
        executor, PoolSizes(2 * n_running, pages), page_size=16, limits=Limits(2**20, n_running), overlap=overlap
    )  # fmt: skip
    for i in range(n_running):
        engine.add(Request((i, *range(prompt - 1)), SamplingParams(max_tokens=n_steps + 50, ignore_eos=True)))
    while engine.stats().generated_tokens_total < 8 * n_running:
        engine.step()
    taken = []
    for _ in range(n_steps):
        executor.seconds, begin = 0.0, time.thread_time()
        outputs = engine.step()
        taken.append((time.thread_time() - begin - executor.seconds) * 1e6)
        assert len(outputs) == n_running
    return taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    for prompt in (100, 4000, 32_000):
        for overlap in (False, True):
            taken = measure(args.running, prompt, overlap, args.steps)
            low, middle, high = (statistics.quantiles(taken, n=20)[i] for i in (0, 9, 18))
            spread = f"{middle:.0f} us ({low:.0f}-{high:.0f})"
            print(f"{args.running} running, prompts of {prompt:6}, overlap {overlap!s:5}: {spread}")
