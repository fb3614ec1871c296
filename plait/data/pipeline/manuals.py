"""Whole manuals: the pages of a book in the order in which they name each other as next, for long documents.

Documentation comes as pages of a few thousand tokens; read one after the other they are books of millions. Pages say
which is next (`rel="next"`: Sphinx, DocBook, mdBook and others write it), so no order has to be guessed. What is joined
are the pages that were kept, as tokens; held-out pages are not among them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import numpy as np

_NEXT = re.compile(rb"<(?:link|a)\s[^>]{0,500}?\brel=[\"']?next\b[^>]*>", re.IGNORECASE)
_HREF = re.compile(rb"\bhref=[\"']([^\"'#?]+)", re.IGNORECASE)


def next_page(page: bytes, name: str) -> str:
    """The file, by its path inside the source, that a page at `name` says comes next; empty if it says none."""
    found = _NEXT.search(page)
    link = found and _HREF.search(found[0])
    if not link or b"://" in link[1]:
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(link[1].decode("utf-8", "replace"))))


def reading_orders(following: Mapping[str, str]) -> list[list[str]]:
    """Chains of pages from `following`, page -> next. A page is in one at the most: of two that name the same next, the
    first has it.
    """
    preceded = {after for page, after in following.items() if after != page}
    starts = [page for page in following if page not in preceded]
    seen: set[str] = set()
    chains = []
    for start in [*starts, *following]:  # what is left after the starts are circles
        chain = []
        page = start
        while page and page not in seen:
            seen.add(page)
            chain.append(page)
            page = following.get(page, "")
        chains.append(chain)
    return [chain for chain in chains if len(chain) > 1]


def cut_to_size(pages: Sequence[int], lengths: np.ndarray, most_tokens: int) -> list[list[int]]:
    """A chain as documents of at most `most_tokens` (a longer page is one of its own), cut between pages; only those of
    two pages and more.
    """
    made: list[list[int]] = [[]]
    size = 0
    for page in pages:
        if made[-1] and size + int(lengths[page]) > most_tokens:
            made.append([])
            size = 0
        made[-1].append(page)
        size += int(lengths[page])
    return [each for each in made if len(each) > 1]
