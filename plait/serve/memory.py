"""Who holds which slot and page, and what has to go when there are none: decisions only, written down as copies.

A page belongs to the free list, to one node of the prefix tree, or to one sequence; a slot likewise. What a sequence
leaves behind, ended or preempted, goes into the tree as it lies: nothing is copied, the place changes hands. When
places run out, the least valuable states and pages move to the next tier (host, then disk), or are dropped at the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from plait.serve.plan import Copy, Place, Tier
from plait.serve.pools import KINDS, TIERS, Kind, Pools, PoolSizes
from plait.serve.prefix_tree import Match, Node, PrefixTree
from plait.serve.sequence import Sequence


class Memory:
    def __init__(
        self, sizes: PoolSizes, *, page_size: int, page_bytes: int = 1, state_bytes: int = 1, ladder: int = 4096
    ) -> None:
        """`page_bytes` and `state_bytes` weigh what is kept; `ladder` is the distance of states along a long prompt."""
        self.sizes, self.page_size, self.ladder = sizes, page_size, ladder
        self.pools = Pools(sizes)
        self.tree = PrefixTree(page_size)
        self.copies: list[Copy] = []  # to run before the rows of the plan being made, in order
        self.clock = 0
        self._bytes: dict[Kind, int] = {"page": max(page_bytes, 1), "state": max(state_bytes, 1)}
        self._victims: dict[tuple[Kind, Tier], list[Node]] = {(k, t): [] for (k, t), _ in self.pools.items()}
        self._held: Node | None = None  # its state is about to be copied from

    def n_pages_for(self, n_tokens: int) -> int:
        return -(-n_tokens // self.page_size)

    @property
    def n_available(self) -> int:
        """Pages on the device that are free, or could be made so."""
        return self.pools["page", "device"].n_free + self.tree.n_evictable

    # What a sequence begins with, gets more of, and leaves

    def match(self, sequence: Sequence, limit: int) -> Match:
        return self.tree.match(self.tree.root(sequence.salt), sequence.tokens, limit)

    def begin(self, sequence: Sequence, node: Node, headroom: int) -> bool:
        """Give a sequence a slot and pages for all its tokens, the state and pages of `node` (a root: none) in them.

        False, and nothing changed, if fewer than `headroom` pages would remain.
        """
        tail = node if node.pages and len(node.tokens) % self.page_size else None
        shared = node.parent if tail and node.parent else node
        self.tree.lock(node)
        path = list(shared.path())[::-1]
        n_own = self.n_pages_for(len(sequence.tokens)) - shared.end // self.page_size
        n_restored = sum(len(above.pages) for above in path if above.tier != "device")
        if self.n_available < n_own + n_restored + headroom:
            self.tree.unlock(node)
            return False
        for above in path:
            above.used = self.clock
            if above.tier != "device":
                self._restore(above)
        own = self._take("page", "device", n_own)
        assert own is not None
        sequence.pages = [page for above in path for page in above.pages] + own
        sequence.n_held = len(sequence.pages) * self.page_size
        sequence.n_fed, sequence.node = node.end, shared
        sequence.slot = self._slot_with_state_of(node)
        if tail:
            self.copies.append(Copy("page", Place(tail.tier, tail.pages[0]), Place("device", own[0])))
            self.tree.unlock_one(tail)
            tail.used = self.clock
            if tail.state is None:
                self._drop(tail)
        return True

    def _restore(self, node: Node) -> None:
        pages = self._take("page", "device", len(node.pages))
        assert pages is not None
        old = [Place(node.tier, page) for page in node.pages]
        self.copies += [Copy("page", o, Place("device", p)) for o, p in zip(old, pages, strict=True)]
        self.pools.give("page", old)
        self.tree.move(node, "device", pages)

    def _slot_with_state_of(self, node: Node) -> int:
        """A slot for a sequence; the node keeps its state unless there is no other slot."""
        self._held = node
        slot = self.take_slot()
        self._held = None
        if slot is None:
            assert node.state is not None
            assert node.state.tier == "device"
            slot, node.state = node.state.number, None
        elif node.state is not None:
            self.copies.append(Copy("state", node.state, Place("device", slot)))
        return slot

    def take_slot(self) -> int | None:
        """A slot on the device, at the cost of the least valuable state there if need be."""
        taken = self._take("state", "device", 1)
        return taken[0] if taken else None

    def give_slot(self, slot: int) -> None:
        self.pools["state", "device"].give([slot])

    def grow(self, sequence: Sequence) -> bool:
        """One page more. False if there is none."""
        taken = self._take("page", "device", 1)
        if taken is None:
            return False
        sequence.pages.append(taken[0])
        sequence.n_held += self.page_size
        return True

    def keep(self, sequence: Sequence, end: int, slot: int | None, is_rung: bool) -> None:
        """Share the pages of a running sequence's first `end` tokens, whole pages, and the state behind them, which
        the plan being made puts into `slot` (None: there was none to spare).
        """
        self._share(sequence, end)
        if slot is not None:
            self._attach(sequence.node, Place("device", slot), is_rung)
        if is_rung:
            for rung in self.tree.thinned(sequence.node, self.ladder):
                self._drop_state(rung)

    def leave(self, sequence: Sequence) -> None:
        """A sequence ended or is preempted: the tree takes over what it fed, pages and state as they lie."""
        n_known = min(sequence.n_fed, len(sequence.tokens))
        n_whole = n_known // self.page_size
        if n_known > sequence.node.end:
            self._share(sequence, n_whole * self.page_size)
        spare = sequence.pages[n_whole:]
        rest = sequence.tokens[n_whole * self.page_size : n_known]
        # A failed row brings no token, but the one behind it under way feeds some: that state is of no prompt.
        holder = self._tail_or_end(sequence.node, rest, spare) if n_known == sequence.n_fed else None
        if holder is not None:
            self._attach(holder, Place("device", sequence.slot), is_rung=False)
        else:
            self.give_slot(sequence.slot)
        self.pools["page", "device"].give(spare)
        self.tree.unlock(sequence.node)
        sequence.lose_places()

    def _tail_or_end(self, node: Node, rest: list[int], spare: list[int]) -> Node | None:
        """The node for a state `rest` tokens, less than a page, behind a node; a new tail takes its page from `spare`.
        None for no tokens at all.
        """
        if not rest:
            return node if node.parent is not None else None
        tail, is_new = self.tree.tail(node, rest, spare[0], self.clock)
        if is_new:
            del spare[0]
        return tail

    def forget(self, salt: Hashable) -> None:
        """Drop all that sequences of one salt left; none of them may be running."""
        root = self.tree.roots.pop(salt, None)
        for child in list(root.children.values()) if root else ():
            self._drop(child)

    def _share(self, sequence: Sequence, end: int) -> None:
        pages = list(sequence.pages)
        node, spare = self.tree.extend(sequence.node, sequence.tokens, end, pages, self.clock)
        self.tree.lock(node)
        self.tree.unlock(sequence.node)
        sequence.node = node
        if spare:
            sequence.pages = pages
            self.pools.give("page", spare)

    def _attach(self, node: Node, state: Place, is_rung: bool) -> None:
        if node.state is not None:
            self.pools.give("state", [state])
        else:
            node.state, node.is_rung = state, is_rung
        node.is_rung &= is_rung
        node.used = self.clock

    # What goes when there is no room

    def _take(self, kind: Kind, tier: Tier, n: int) -> list[int] | None:
        """n places of a tier, made free if need be; None, with perhaps some made free, if there are not as many."""
        pool = self.pools[kind, tier]
        while pool.n_free < n:
            victim = self._victim(kind, tier) if n <= pool.size else None
            if victim is None:
                return None
            if kind == "state":
                self._demote_state(victim, tier)
            else:
                self._demote_pages(victim, tier)
        return pool.take(n)

    def _victim(self, kind: Kind, tier: Tier) -> Node | None:
        """The least valuable on a tier. Candidates are ranked all at once and used up before they are ranked again."""
        queue = self._victims[kind, tier]
        for _ in range(2):
            while queue:
                node = queue.pop()
                if self._may_go(node, kind, tier):
                    return node
            queue += self._ranked(kind, tier)
        return None

    def _may_go(self, node: Node, kind: Kind, tier: Tier) -> bool:
        if not node.is_alive or node is self._held:
            return False
        if kind == "state":
            return node.state is not None and node.state.tier == tier
        return node.tier == tier and node.locks == 0 and all(c.tier != tier for c in node.children.values())

    def _ranked(self, kind: Kind, tier: Tier) -> list[Node]:
        """Most valuable first; a node before those under it, so that leaves go first."""
        if kind == "state":
            found = [n for n in self.tree.nodes if n.state is not None and n.state.tier == tier and n is not self._held]
            return sorted(found, key=lambda n: self._value(n, "state"), reverse=True)
        nodes = [n for n in self.tree.nodes if n.tier == tier and n.locks == 0 and n is not self._held]
        values: dict[Node, float] = {}
        for node in sorted(nodes, key=lambda n: -n.start):
            values[node] = max([self._value(node, "page"), *(values.get(c, 0.0) for c in node.children.values())])
        return sorted(nodes, key=lambda n: (-values[n], n.start))

    def _value(self, node: Node, kind: Kind) -> float:
        """Tokens that would be computed again for want of this, by byte and by steps since its last use."""
        if node.state is None:
            return 0.0
        n_bytes = self._bytes["state"] + (self._bytes["page"] * len(node.pages) if kind == "page" else 0)
        return (node.end - node.last_state()) / n_bytes / (self.clock - node.used + 1)

    def _demote_state(self, node: Node, tier: Tier) -> None:
        assert node.state is not None
        lower = self.pools.below("state", tier)
        taken = self._take("state", lower, 1) if lower else None
        if taken is None or lower is None:
            self._drop_state(node)
            return
        old, node.state = node.state, Place(lower, taken[0])
        self.copies.append(Copy("state", old, node.state))
        self.pools.give("state", [old])

    def _demote_pages(self, node: Node, tier: Tier) -> None:
        lower = self.pools.below("page", tier)
        is_useful = any(n.state is not None for n in node.below())
        taken = self._take("page", lower, len(node.pages)) if lower and is_useful else None
        if taken is None or lower is None:
            self._drop(node)
            return
        old = [Place(tier, page) for page in node.pages]
        self.copies += [Copy("page", o, Place(lower, p)) for o, p in zip(old, taken, strict=True)]
        self.pools.give("page", old)
        self.tree.move(node, lower, taken)

    def _drop_state(self, node: Node) -> None:
        if node.state is not None:
            self.pools.give("state", [node.state])
            node.state = None
        if len(node.tokens) % self.page_size and node.locks == 0:  # a tail is good for its state alone
            self._drop(node)

    def _drop(self, node: Node) -> None:
        for gone in reversed(list(node.below())):
            if gone.state is not None:
                self.pools.give("state", [gone.state])
                gone.state = None
            self.tree.remove(gone)
            self.pools.give("page", [Place(gone.tier, page) for page in gone.pages])

    def check(self, sequences: list[Sequence], spare_slots: list[int]) -> None:
        """AssertionError unless every place has exactly one owner, and locks are those of the running sequences."""
        pages, states = ({tier: self.pools[kind, tier].free for tier in TIERS} for kind in KINDS)
        states["device"] += [*(s.slot for s in sequences), *spare_slots]
        paths = [list(s.node.path()) for s in sequences]
        n_through = Counter(node for path in paths for node in path)
        n_evictable, page_size = 0, self.page_size
        for node in self.tree.nodes:
            tier, own, n_tokens, locks = node.tier, node.pages, len(node.tokens), node.locks
            pages[tier] += own
            if node.state is not None:
                states[node.state.tier].append(node.state.number)
            else:
                assert n_tokens % page_size == 0, "a tail without a state"
            assert locks == n_through.get(node, 0), f"{locks} locks, {n_through[node]} sequences"
            assert node.is_alive
            assert len(own) == -(-n_tokens // page_size)
            if locks == 0 and tier == "device":
                n_evictable += len(own)
        for s, path in zip(sequences, paths, strict=True):
            shared = [page for node in reversed(path) for page in node.pages]
            assert s.pages[: len(shared)] == shared
            assert s.n_held == len(s.pages) * self.page_size >= s.n_fed
            assert all(node.tier == "device" for node in path)
            pages["device"] += s.pages[len(shared) :]
        for kind, owned in zip(KINDS, (pages, states), strict=True):
            for tier, numbers in owned.items():
                assert sorted(numbers) == list(range(self.sizes.of(kind, tier))), f"{kind} {tier}: lost or owned twice"
        assert self.tree.n_evictable == n_evictable
        reached = list(self.tree.roots.values())
        for node in reached:
            reached += node.children.values()
        assert len(reached) == len(self.tree.roots) + len(self.tree.nodes)
        assert self.tree.nodes.keys() <= set(reached)
