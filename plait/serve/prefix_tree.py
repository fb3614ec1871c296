"""The prefix tree: which token sequences have pages, and at which positions a recurrent state was kept.

Keys and values can be used again at any position, a recurrent state only where it was saved. So a node is a run of
tokens with their pages, and may have one state, at its end; a hit is the deepest node on a prompt's path with a state.
Runs are whole pages, so that no page is ever shared by two branches and none is written while shared. The one exception
is a *tail*: a leaf of less than a page, which holds the state at the end of an answer. It is never extended; a sequence
that goes on from it gets a copy of its page.

One tree has many roots: sequences of different roots never share anything (`salt` of a request).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from plait.serve.plan import Place, Tier


class Node:
    """Tokens start .. end of a path, their pages (all on one tier), and perhaps the state behind the last of them."""

    __slots__ = (
        "children", "is_alive", "is_rung", "locks", "pages", "parent", "start", "state", "tier", "tokens", "used",
    )  # fmt: skip

    def __init__(
        self, parent: Node | None, tokens: Sequence[int], start: int, pages: list[int], tier: Tier, used: int
    ) -> None:
        self.parent, self.tokens, self.start = parent, list(tokens), start
        self.pages, self.tier = pages, tier
        self.children: dict[tuple[int, ...], Node] = {}
        self.state: Place | None = None
        self.is_rung = False  # the state is of the ladder, and may be thinned out
        self.locks = 0  # running sequences whose pages run through this node
        self.used = used  # the step of its last use
        self.is_alive = True

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def path(self) -> Iterator[Node]:
        """This node and those above it, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def below(self) -> Iterator[Node]:
        """This node and all under it."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def last_state(self) -> int:
        """Where the nearest state above this node lies; 0 if there is none."""
        assert self.parent is not None
        return next((node.end for node in self.parent.path() if node.state is not None), 0)


class Match(NamedTuple):
    """How much of a prompt a tree knows."""

    matched: int  # tokens with pages
    node: Node  # the deepest with a state that the prompt can start from; the root if there is none
    fork: int  # whole pages' tokens of `matched`: a state here would have been of use


class PrefixTree:
    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.roots: dict[Hashable, Node] = {}
        self.nodes: dict[Node, None] = {}  # all but roots, oldest first
        self.n_evictable = 0  # device pages of nodes that nobody locks

    def root(self, salt: Hashable) -> Node:
        return self.roots.setdefault(salt, Node(None, (), 0, [], "device", 0))

    def match(self, root: Node, tokens: list[int], limit: int) -> Match:
        """The longest known beginning of `tokens`; the hit is at most `limit` long."""
        node = best = root
        at, size = 0, self.page_size
        while at + size <= len(tokens):
            child = node.children.get(tuple(tokens[at : at + size]))
            if child is None:
                break
            n = n_alike(child.tokens, tokens, at, len(tokens), size)
            at += n
            if n < len(child.tokens):
                return Match(at, best, at)
            node = child
            if node.state is not None and at <= limit:
                best = node
        tail = self._tail(node, tokens, at)
        if tail is None:
            return Match(at, best, at)
        return Match(tail.end, tail if tail.state is not None and tail.end <= limit else best, at)

    def _tail(self, node: Node, tokens: list[int], at: int) -> Node | None:
        for n in range(min(self.page_size - 1, len(tokens) - at), 0, -1):
            tail = node.children.get(tuple(tokens[at : at + n]))
            if tail is not None:
                return tail
        return None

    def extend(self, node: Node, tokens: list[int], end: int, pages: list[int], used: int) -> tuple[Node, list[Place]]:
        """Make the path of `tokens[:end]`, whole pages, below `node`, which lies on it.

        `pages` are a sequence's, on the device. Those that the tree lacks become its own; where it has some already,
        they replace the sequence's in `pages`. Returns the node that ends at `end`, and the places no longer needed.
        """
        spare: list[Place] = []
        at, size = node.end, self.page_size
        assert end % size == 0
        while at < end:
            key = tuple(tokens[at : at + size])
            child = node.children.get(key)
            if child is None:
                child = Node(node, tokens[at:end], at, pages[at // size : end // size], "device", used)
                node.children[key] = child
                self._add(child)
                return child, spare
            n = n_alike(child.tokens, tokens, at, end, size)
            if n < len(child.tokens):
                child = self._split(child, n)
            spare += self._merge(child, pages, at // size)
            child.used = used
            node, at = child, child.end
        return node, spare

    def _merge(self, node: Node, pages: list[int], first: int) -> list[Place]:
        last = first + len(node.pages)
        if node.tier == "device":
            spare = [Place("device", page) for page in pages[first:last]]
            pages[first:last] = node.pages
            return spare
        spare = [Place(node.tier, page) for page in node.pages]
        self.move(node, "device", pages[first:last])
        return spare

    def _split(self, node: Node, n: int) -> Node:
        """Cut a node behind its first n tokens; returns the new upper part. The node itself stays the lower one, so
        that locks and its state stay where they are.
        """
        assert node.parent is not None
        size = self.page_size
        upper = Node(node.parent, node.tokens[:n], node.start, node.pages[: n // size], node.tier, node.used)
        upper.locks = node.locks
        node.parent.children[tuple(node.tokens[:size])] = upper
        node.parent, node.start = upper, node.start + n
        node.tokens, node.pages = node.tokens[n:], node.pages[n // size :]
        upper.children[tuple(node.tokens[:size])] = node
        self.nodes[upper] = None
        return upper

    def tail(self, node: Node, tokens: list[int], page: int, used: int) -> tuple[Node, bool]:
        """The leaf of these tokens, less than a page, and whether it is new and took the page."""
        key = tuple(tokens)
        if key in node.children:
            return node.children[key], False
        tail = node.children[key] = Node(node, tokens, node.end, [page], "device", used)
        self._add(tail)
        return tail, True

    def _add(self, node: Node) -> None:
        self.nodes[node] = None
        self.n_evictable += len(node.pages)

    def move(self, node: Node, tier: Tier, pages: list[int]) -> None:
        """Note that a node's pages are elsewhere now."""
        self._count(node, -1)
        node.tier, node.pages = tier, pages
        self._count(node, 1)

    def lock(self, node: Node) -> None:
        """A sequence's pages run down to this node: none of them may go."""
        for above in node.path():
            self._count(above, -1)
            above.locks += 1

    def unlock(self, node: Node) -> None:
        for above in node.path():
            self.unlock_one(above)

    def unlock_one(self, node: Node) -> None:
        node.locks -= 1
        self._count(node, 1)

    def _count(self, node: Node, sign: int) -> None:
        if node.locks == 0 and node.tier == "device":
            self.n_evictable += sign * len(node.pages)

    def remove(self, node: Node) -> None:
        """Take a node without children out of the tree."""
        assert node.parent is not None
        assert not node.children
        assert node.locks == 0
        self._count(node, -1)
        del node.parent.children[tuple(node.tokens[: self.page_size])]
        del self.nodes[node]
        node.is_alive = False

    def thinned(self, node: Node, spacing: int) -> list[Node]:
        """The rungs above `node` whose states the ladder no longer needs: around a rung d tokens back a gap of d / 8
        is enough: what is computed again from a fork d tokens back is at most an eighth of d, and a path of 256K tokens
        keeps 33 rungs instead of 63.
        """
        states = [above for above in node.path() if above.state is not None]  # deepest first
        out: list[Node] = []
        newer = node.end
        olders = [*(state.end for state in states[2:]), 0]
        for rung, older in zip(states[1:], olders, strict=False):  # of none and one there is nothing to thin
            if rung.is_rung and newer - older <= max(spacing, (node.end - newer) // 8):
                out.append(rung)
            else:
                newer = rung.end
        return out


def n_alike(run: list[int], tokens: list[int], at: int, end: int, page_size: int) -> int:
    """How many tokens of a run stand in `tokens[at:end]` from its first on, in whole pages."""
    if at + len(run) <= end and tokens[at : at + len(run)] == run:
        return len(run) // page_size * page_size
    n = 0
    while n + page_size <= min(len(run), end - at) and run[n : n + page_size] == tokens[at + n : at + n + page_size]:
        n += page_size
    return n
