"""The checker of the books, which every schedule test relies on, finds what it is there for."""

from collections.abc import Callable

import pytest

from plait.serve.memory import Memory
from plait.serve.pools import PoolSizes
from plait.serve.scheduler import Limits
from tests.serve.engine_run import Run


def lose_a_page(memory: Memory) -> None:
    memory.pools["page", "device"].take(1)


def free_a_page_twice(memory: Memory) -> None:
    memory.pools["page", "device"].give(memory.pools["page", "device"].free[:1])


def free_a_page_that_the_tree_has(memory: Memory) -> None:
    memory.pools["page", "device"].give(next(iter(memory.tree.nodes)).pages[:1])


def lose_a_state(memory: Memory) -> None:
    next(node for node in memory.tree.nodes if node.state is not None and not len(node.tokens) % 4).state = None


def lock_without_a_sequence(memory: Memory) -> None:
    next(iter(memory.tree.nodes)).locks += 1


def miscount(memory: Memory) -> None:
    memory.tree.n_evictable += 1


def cut_off_a_branch(memory: Memory) -> None:
    memory.tree.roots[""].children.clear()


@pytest.mark.parametrize(
    "damage",
    [
        lose_a_page, free_a_page_twice, free_a_page_that_the_tree_has, lose_a_state, lock_without_a_sequence, miscount,
        cut_off_a_branch,
    ],
)  # fmt: skip
def test_damaged_books_are_found(damage: Callable[[Memory], None]) -> None:
    run = Run(PoolSizes(slots=6, pages=20), limits=Limits(16, 2))
    for prompt in ([1, 2, 3, 4] * 5, [1, 2, 3, 4, 4, 3, 2, 1, 0]):
        run.ask(prompt)
    run.engine.check()
    damage(run.engine.memory)
    with pytest.raises(AssertionError):
        run.engine.check()
