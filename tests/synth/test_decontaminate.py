import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.synth.decontaminate import Decontaminator, read_evaluation_set
from plait.synth.record import Record

ITEM = "A farmer has seventeen sheep and sells all but nine of them; how many sheep does the farmer have left?"


def record(answer: str, **more: object) -> Record:
    messages = ({"role": "user", "content": "Tell me."}, {"role": "assistant", "content": answer})
    return Record("r", "s", messages=messages, **more)


def test_a_shared_gram_is_found_wherever_it_stands() -> None:
    found = Decontaminator({"gsm": [ITEM]})
    middle = " ".join(ITEM.split()[3:16])
    assert found.reject(record(f"Well. {middle.upper()}, I'd say.")).startswith("contaminated by gsm: 'seventeen sheep")
    assert found.reject(record("ok", documents=({"title": "t", "text": ITEM},))) is not None
    assert found.reject(record(" ".join(ITEM.split()[3:15]))) is None, "twelve words are no match"
    assert found.report() == {"n": 13, "sets": [{"name": "gsm", "texts": 1, "too_short": 0, "found": 2}]}


def test_short_items_match_whole_or_are_left_out_and_counted() -> None:
    found = Decontaminator({"a": ["What is the capital of France?", "Paris", "Yes or no"]})
    assert found.reject(record("They asked: what is the capital of France? I knew.")) is not None
    assert found.reject(record("Paris, yes or no")) is None
    assert found.report()["sets"][0] == {"name": "a", "texts": 1, "too_short": 2, "found": 1}


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=4),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=12).map(" ".join),
)
def test_it_finds_what_a_plain_search_finds(items: list[str], answer: str) -> None:
    n, shortest = 4, 2
    words = answer.split()
    grams = {tuple(item.split()[i : i + n]) for item in items for i in range(max(1, len(item.split()) - n + 1))}
    grams = {gram for gram in grams if len(gram) >= shortest}
    is_shared = any(tuple(words[i : i + len(gram)]) == gram for gram in grams for i in range(len(words)))
    found = Decontaminator({"x": items}, n=n, shortest=shortest).reject(record(answer))
    assert (found is not None) == is_shared


def test_evaluation_files_are_read_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps({"q": "one", "options": ["two", {"deep": "three"}], "n": 4}) + "\n\n")
    assert list(read_evaluation_set(path)) == ["one", "two", "three"]
    (tmp_path / "e.txt").write_text("all of it")
    assert list(read_evaluation_set(tmp_path / "e.txt")) == ["all of it"]
    (tmp_path / "e.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"e\.txt is not text in UTF-8"):
        list(read_evaluation_set(tmp_path / "e.txt"))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="n=3 must be at least shortest=6"):
        Decontaminator({}, n=3)
