"""Whole manuals: what a page says is next, chains of it, and a build that joins pages across tasks."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data.pipeline.build import build
from plait.data.pipeline.manuals import cut_to_size, next_page, reading_orders
from plait.data.pipeline.recipe import BuildRecipe, Source, Tokens
from plait.data.shards import open_shards
from plait.text import Tokenizer

Prose = Callable[..., str]


@pytest.mark.parametrize(
    ("page", "following"),
    [
        ('<head><link rel="prev" href="a.html" /><link rel="next" href="c.html" title="C" /></head>', "doc/c.html"),
        ('<a rel="next" href="../other/c%20d.html#top" class="nav">', "other/c d.html"),
        ('<a rel="next prefetch" title="x" href="c.html">', "doc/c.html"),
        ("<LINK REL=NEXT HREF='c.html'>", "doc/c.html"),
        ('<link href="c.html" rel="next">', "doc/c.html"),
        ('<link rel="next" href="https://elsewhere.org/c.html">', ""),
        ('<link rel="next">', ""),
        ('<p>Press next. <a href="c.html">next</a> <a rel="nextish" href="c.html">', ""),
        ("", ""),
    ],
)
def test_what_a_page_says_is_next(page: str, following: str) -> None:
    assert next_page(page.encode(), "doc/b.html") == following


def test_chains_begin_where_nothing_leads_to() -> None:
    links = {"3": "4", "1": "2", "2": "3", "x": "y", "alone": "", "self": "self"}
    assert reading_orders(links) == [["1", "2", "3", "4"], ["x", "y"]]
    assert reading_orders({"a": "b", "b": "c", "c": "a"}) == [["a", "b", "c"]]  # a circle
    assert reading_orders({"a": "m", "b": "m", "m": "n"}) == [["a", "m", "n"]]  # two say the same
    assert reading_orders({}) == []


@given(st.dictionaries(st.integers(0, 12).map(str), st.integers(0, 12).map(str), max_size=13))
def test_every_page_is_in_one_chain_at_the_most(links: dict[str, str]) -> None:
    chains = reading_orders(links)
    pages = [page for chain in chains for page in chain]
    assert len(set(pages)) == len(pages)
    assert all(links[a] == b for chain in chains for a, b in pairwise(chain))


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 100))
def test_manuals_are_cut_between_pages(sizes: list[int], most: int) -> None:
    made = cut_to_size(range(len(sizes)), np.array(sizes), most)
    assert all(len(manual) > 1 and sum(sizes[k] for k in manual) <= most for manual in made)
    pages = [k for manual in made for k in manual]
    assert pages == sorted(pages)
    assert sorted([*pages, *alone(sizes, most)]) == list(range(len(sizes)))


def alone(sizes: list[int], most: int) -> list[int]:
    """Pages that fill a manual by themselves, counted the plain way."""
    found: list[int] = []
    group: list[int] = []
    for k, size in enumerate(sizes):
        if group and sum(sizes[i] for i in group) + size > most:
            found += group if len(group) == 1 else []
            group = []
        group.append(k)
    return found + (group if len(group) == 1 else [])


def write_manual(folder: Path, make_prose: Prose, n_pages: int) -> list[str]:
    """Pages whose names are in another order than their contents; returns the texts in reading order."""
    folder.mkdir(parents=True)
    names = [f"{(7 * k) % n_pages:02d}.html" for k in range(n_pages)]
    texts = [make_prose(("manual", k), 20).strip() for k in range(n_pages)]
    for k, name in enumerate(names):
        after = f'<link rel="next" href="{names[k + 1]}">' if k + 1 < n_pages else ""
        paragraphs = "".join(f"<p>{p}</p>" for p in texts[k].split("\n\n"))
        (folder / name).write_text(f"<html><head>{after}</head><body>{paragraphs}</body></html>")
    return texts


def test_a_build_joins_the_pages_that_it_kept(tmp_path: Path, make_prose: Prose) -> None:
    texts = write_manual(tmp_path / "in" / "book", make_prose, 10)
    (tmp_path / "in" / "single.html").write_text(f"<html><body><p>{make_prose('single', 30)}</p></body></html>")
    (tmp_path / "in" / "book" / "35.html").write_text("<html><body><p>Too short.</p></body></html>")
    source = Source("docs", "files", path=str(tmp_path / "in"))
    recipe = BuildRecipe("r", (source,), tokens=Tokens(vocab_size=600, heldout_share=0.2), task_megabytes=0.006)
    built = build(recipe, tmp_path / "out")
    assert len(list(next((tmp_path / "out" / "work").glob("extract-*")).glob("documents/*"))) > 2  # across tasks
    tokenizer = Tokenizer.from_folder(tmp_path / "out" / "tokenizer")
    held = open_shards(tmp_path / "out" / "heldout")
    held_out = [tokenizer.decode(held.document(k)[1:-1].tolist()).strip() for k in range(held.n_documents)]
    assert 0 < len(held_out) < 10
    manual = open_shards(tmp_path / "out" / "manuals" / "docs")
    assert manual.n_documents == 1
    ids = manual.document(0).tolist()
    assert (ids[0], ids[-1]) == (manual.metadata.bos_id, manual.metadata.eos_id)
    assert manual.metadata.bos_id not in ids[1:]
    assert tokenizer.decode(ids[1:-1]) == "\n\n".join(text for text in texts if text not in held_out) + "\n"
    (count,) = built.funnel["manuals"]
    assert (count["source"], count["n_documents"], count["n_tokens"]) == ("docs/manuals", 1, manual.n_tokens)
    assert "Whole manuals" in (tmp_path / "out" / "funnel.html").read_text()
    assert [s["folder"] for s in built.manifest["shards"]] == ["shards/docs", "manuals/docs", "heldout"]


def test_no_manuals_where_none_are_asked_for(tmp_path: Path, make_prose: Prose) -> None:
    write_manual(tmp_path / "in" / "book", make_prose, 10)
    source = Source("docs", "files", path=str(tmp_path / "in"))
    recipe = BuildRecipe("r", (source,), tokens=Tokens(vocab_size=600, manual_tokens=0))
    built = build(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "manuals").exists()
    assert built.funnel["manuals"] == []
    assert "Whole manuals" not in (tmp_path / "out" / "funnel.html").read_text()
