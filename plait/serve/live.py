"""What somebody watching an engine wants to see beside its figures: the batch and the prefix tree, in token counts."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest

from plait.serve.prefix_tree import Node, PrefixTree
from plait.serve.sequence import Sequence
from plait.serve.service import RunningAnswer, TreeBranch

MAX_ANSWERS = 64
MAX_BRANCHES = 32


def running_answers(running: Iterable[Sequence]) -> tuple[RunningAnswer, ...]:
    """The first of the batch, in the order of their turns."""
    shown = [RunningAnswer(s.n_prompt, s.prefix.usable, s.n_fed, len(s.tokens) - s.n_prompt) for s in running]
    return tuple(shown[:MAX_ANSWERS])


def tree_branches(tree: PrefixTree) -> tuple[TreeBranch, ...]:
    """The branches used last, with those they hang from, each before its children, the last used child first."""
    shown: dict[Node, None] = {}
    for node in nlargest(MAX_BRANCHES, tree.nodes, key=lambda node: node.used):
        shown |= dict.fromkeys(node.path())
    found: list[TreeBranch] = []
    stack = [(0, node) for node in sorted(shown, key=lambda node: node.used) if _is_first(node)]
    while stack and len(found) < MAX_BRANCHES:
        depth, node = stack.pop()
        found.append(TreeBranch(depth, len(node.tokens), node.state is not None, node.locks, node.tier))
        below = sorted((child for child in node.children.values() if child in shown), key=lambda child: child.used)
        stack += [(depth + 1, child) for child in below]
    return tuple(found)


def _is_first(node: Node) -> bool:
    return node.parent is not None and node.parent.parent is None
