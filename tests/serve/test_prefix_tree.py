"""The tree against a list of all sequences ever put into it."""

import random
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from plait.serve.plan import Place
from plait.serve.prefix_tree import Node, PrefixTree

PAGE = 2

paths = st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=14).map(lambda p: p[: len(p) // 2 * 2]), max_size=8)


def whole_pages_alike(one: list[int], other: list[int]) -> int:
    n = 0
    while n + PAGE <= min(len(one), len(other)) and one[n : n + PAGE] == other[n : n + PAGE]:
        n += PAGE
    return n


def built(paths: list[list[int]]) -> tuple[PrefixTree, Node]:
    """Pages are numbered in the order they come; a path's end has a state of its number."""
    tree, numbers = PrefixTree(PAGE), count()
    root = tree.root("")
    for nth, path in enumerate(paths):
        pages = [next(numbers) for _ in range(len(path) // PAGE)]
        given = list(pages)
        node, spare = tree.extend(root, path, len(path), pages, nth)
        assert sorted([*pages, *(p.number for p in spare)]) == sorted(given + [p for p in pages if p not in given])
        node.state = Place("device", nth)
        assert [p for above in reversed(list(node.path())) for p in above.pages] == pages
    return tree, root


@given(paths, st.lists(st.integers(0, 1), max_size=15), st.integers(0, 15))
def test_a_match_is_the_longest_there_is(paths: list[list[int]], prompt: list[int], limit: int) -> None:
    tree, root = built(paths)
    match = tree.match(root, prompt, limit)
    assert match.matched == match.fork == max([whole_pages_alike(p, prompt) for p in paths], default=0)
    usable = [p for p in paths if len(p) <= limit and prompt[: len(p)] == p]
    assert match.node.end == max(map(len, usable), default=0)
    assert tree.match(tree.root("other"), prompt, limit).matched == 0


@given(paths)
def test_every_page_has_one_node_and_removing_all_leaves_nothing(paths: list[list[int]]) -> None:
    tree, _ = built(paths)
    pages = [page for node in tree.nodes for page in node.pages]
    distinct = {tuple(p[:n]) for p in paths for n in range(PAGE, len(p) + 1, PAGE)}
    assert len(pages) == len(set(pages)) == len(distinct) == tree.n_evictable
    some = list(tree.nodes)
    for node in some:
        tree.lock(node)
    assert tree.n_evictable == 0
    for node in some:
        tree.unlock(node)
    assert tree.n_evictable == len(pages)
    for node in sorted(some, key=lambda n: -n.start):
        tree.remove(node)
    assert (tree.n_evictable, len(tree.nodes)) == (0, 0)


def test_a_tail_is_found_at_its_end_only() -> None:
    tree = PrefixTree(4)
    root = tree.root("")
    node, _ = tree.extend(root, [1, 2, 3, 4], 4, [0], 0)
    tail, is_new = tree.tail(node, [5, 6], 1, 0)
    tail.state = Place("device", 0)
    assert is_new
    assert tree.tail(node, [5, 6], 2, 1) == (tail, False)
    assert tree.match(root, [1, 2, 3, 4, 5, 6, 7], 6) == (6, tail, 4)
    assert tree.match(root, [1, 2, 3, 4, 5, 6], 5) == (6, root, 4)  # one token must be left to feed
    assert tree.match(root, [1, 2, 3, 4, 5], 4) == (4, root, 4)


def test_pages_elsewhere_are_replaced_by_those_of_a_sequence_that_has_them_here() -> None:
    tree = PrefixTree(2)
    root = tree.root("")
    node, _ = tree.extend(root, [1, 2, 3, 4], 4, [0, 1], 0)
    tree.move(node, "host", [7, 8])
    assert tree.n_evictable == 0
    pages = [5, 6]
    again, spare = tree.extend(root, [1, 2, 3, 4], 4, pages, 1)
    assert (again, spare, pages) == (node, [Place("host", 7), Place("host", 8)], [5, 6])
    assert (node.tier, node.pages, tree.n_evictable) == ("device", [5, 6], 2)


def test_a_long_path_keeps_rungs_at_distances_that_grow_with_their_age() -> None:
    tree, spacing, n = PrefixTree(1), 10, 2560
    rng = random.Random(0)
    tokens = [rng.randrange(100) for _ in range(n)]
    node = tree.root("")
    for end in range(spacing, n + 1, spacing):
        node, _ = tree.extend(node, tokens, end, list(range(end)), 0)
        node.state, node.is_rung = Place("device", end), True
        for rung in tree.thinned(node, spacing):
            rung.state = None
    kept = [n - above.end for above in node.path() if above.state is not None]  # how far back, nearest first
    gaps = [far - near for near, far in zip(kept, [*kept[1:], n], strict=True)]
    assert all(gap <= max(spacing, (near + gap) / 8 + spacing) for near, gap in zip(kept, gaps, strict=True))
    assert 25 <= len(kept) <= 50  # of 256
    assert kept[:5] == [0, 10, 20, 30, 40]
