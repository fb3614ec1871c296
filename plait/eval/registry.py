"""All tasks by name."""

from __future__ import annotations

from difflib import get_close_matches

from plait.eval.bbh import BBH
from plait.eval.bfcl import BFCL
from plait.eval.chat_judged import ARENA_HARD, ARENA_HARD_JUDGE, WILD_BENCH, WILD_BENCH_JUDGE
from plait.eval.gsm8k import GSM8K
from plait.eval.human_eval import HUMANEVAL
from plait.eval.ifeval import IFEVAL
from plait.eval.infinite_bench import INFINITE_MC, INFINITE_QA
from plait.eval.recall import COPYING, RECALL
from plait.eval.ruler import RULER
from plait.eval.task import Task
from plait.eval.tenets import TENETS_JUDGE_TASK, TENETS_TASK
from plait.eval.toxicity import REAL_TOXICITY

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        RULER,
        RECALL,
        COPYING,
        GSM8K,
        BBH,
        IFEVAL,
        BFCL,
        HUMANEVAL,
        REAL_TOXICITY,
        INFINITE_MC,
        INFINITE_QA,
        ARENA_HARD,
        ARENA_HARD_JUDGE,
        WILD_BENCH,
        WILD_BENCH_JUDGE,
        TENETS_TASK,
        TENETS_JUDGE_TASK,
    )
}


def find_task(name: str) -> Task:
    """Raises ValueError, with what is close, for a name there isn't."""
    if name not in TASKS:
        known = [*TASKS, "harness"]
        close = get_close_matches(name, known, n=3)
        raise ValueError(
            f"there is no task {name!r}; {'did you mean ' + ' or '.join(close) if close else ', '.join(known)}"
        )
    return TASKS[name]
