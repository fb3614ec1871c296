"""MinHash against exact Jaccard, pairs against all pairs, and no chains."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data.pipeline.near_duplicates import (
    find_duplicates,
    paragraph_hashes,
    run_hashes,
    signature,
    text_hash,
    word_hashes,
)

BANDS, ROWS = 25, 5


def found_in(texts: list[str], similarity: float = 0.7) -> dict[int, tuple[int, float]]:
    words = [word_hashes(text) for text in texts]
    found = find_duplicates(
        np.array([text_hash(each) for each in words], dtype=np.uint64),
        np.array([signature(each, 5, BANDS * ROWS) for each in words]),
        bands=BANDS,
        rows_per_band=ROWS,
        similarity=similarity,
    )
    return {d.index: (d.kept, d.similarity) for d in found}


def jaccard(a: str, b: str) -> float:
    x, y = (set(run_hashes(word_hashes(text), 5).tolist()) for text in (a, b))
    return len(x & y) / len(x | y)


def changed(text: str, n: int, seed: int) -> str:
    draw = random.Random(seed)
    words = text.split(" ")
    for place in draw.sample(range(len(words)), n):
        words[place] = f"other{draw.random()}"
    return " ".join(words)


@pytest.mark.parametrize("n_changes", [1, 10, 40, 120])
def test_signatures_estimate_the_jaccard_similarity(make_prose: Callable[..., str], n_changes: int) -> None:
    """125 minima: a standard deviation of at most 0.045."""
    a = make_prose("a", 60)
    b = changed(a, n_changes, 1)
    same = (signature(word_hashes(a), 5, 125) == signature(word_hashes(b), 5, 125)).mean()
    assert same == pytest.approx(jaccard(a, b), abs=4 * 0.045)


def test_planted_duplicates_are_found_and_others_are_not(make_prose: Callable[..., str]) -> None:
    """200 originals, 200 with one word in 60 changed (Jaccard 0.83), 200 pairs that share half (0.33)."""
    texts = [make_prose(k, 40) for k in range(200)]
    texts += [changed(texts[k], 12, k) for k in range(200)]
    halves = [make_prose(("half", k), 40) for k in range(200)]
    texts += [half + make_prose(("other", k, side), 40) for k, half in enumerate(halves) for side in (0, 1)]
    found = found_in(texts)
    planted = [k for k in range(200, 400) if found.get(k, (-1,))[0] == k - 200]
    false = [k for k in found if not 200 <= k < 400]
    assert len(planted) >= 198
    assert len(false) <= 6  # of 600


def test_case_spaces_and_signs_make_no_difference() -> None:
    texts = ["Hello, big world! Straße", "hello   BIG\nworld — STRASSE", "hello big worlds strasse"]
    assert found_in(texts, 1.0) == {1: (0, 1.0)}


def test_a_chain_does_not_remove_what_is_different(make_prose: Callable[..., str]) -> None:
    """Each text is like the one before it, the last not like the first: only neighbours of what stays go."""
    chain = [make_prose("chain", 60)]
    for k in range(6):
        chain.append(changed(chain[-1], 12, k))
    assert jaccard(chain[0], chain[1]) > 0.75
    assert jaccard(chain[0], chain[-1]) < 0.5
    found = found_in(chain)
    assert all(kept not in found for kept, _ in found.values())
    assert all(jaccard(chain[index], chain[kept]) > 0.55 for index, (kept, _) in found.items())
    assert len(chain) - len(found) >= 2


def test_many_copies_of_one_template_all_go(make_prose: Callable[..., str]) -> None:
    base = make_prose("template", 60)
    found = found_in([changed(base, 3, k) for k in range(100)])
    assert set(found) == set(range(1, 100))


def test_a_copy_of_a_dropped_text_names_the_one_that_stays(make_prose: Callable[..., str]) -> None:
    a = make_prose("a", 60)
    b = changed(a, 5, 0)
    found = found_in([a, b, b])
    assert [found[k][0] for k in (1, 2)] == [0, 0]


@given(texts=st.lists(st.text("ab ", max_size=12), max_size=12))
def test_exact_copies_are_those_with_the_same_words(texts: list[str]) -> None:
    first: dict[tuple[str, ...], int] = {}
    expected = {}
    for index, text in enumerate(texts):
        original = first.setdefault(tuple(text.split()), index)
        if original != index:
            expected[index] = original
    found = found_in(texts, 1.0) if texts else {}
    assert {index: kept for index, (kept, _) in found.items() if kept in expected.values()} == expected


def test_paragraphs_of_prose_and_their_places() -> None:
    code = "```\none two three four\n\none two three four\n```"
    text = f"# Title\n\nOne two three four.\n\n{code}\n\nONE two, three four\n\nx"
    found = paragraph_hashes(text, 3)
    assert [text[start:end] for _, start, end in found] == ["One two three four.", "ONE two, three four"]
    assert found[0][0] == found[1][0]


def test_hashes_never_change() -> None:
    """Stages of a build are resumed by other processes and versions: these numbers may not move."""
    words = word_hashes("The quick brown fox")
    assert int(words[1]) == int(word_hashes("QUICK")[0])
    assert text_hash(words) == FIXED_TEXT
    assert signature(words, 2, 3).tolist() == FIXED_SIGNATURE


FIXED_TEXT = 8331767664176209961
FIXED_SIGNATURE = [1712412938, 1464541251, 390332013]
