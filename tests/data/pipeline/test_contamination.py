"""Evaluation items in training text, however they are written."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.data.pipeline.contamination import EvaluationIndex, index_evaluation_sets
from plait.data.pipeline.near_duplicates import word_hashes

ITEM = "Natalia sold clips to forty eight of her friends in April and then she sold half as many clips in May"


def index_of(path: Path, content: str, least: int = 8) -> EvaluationIndex:
    path.write_text(content, encoding="utf-8")
    return index_evaluation_sets((str(path),), n_words=13, least_words=least)


@pytest.mark.parametrize(
    "written",
    [
        ITEM,
        ITEM.upper(),
        ITEM.replace(" ", "\n"),
        "“" + ITEM.replace(" and", " — and") + "?”",
        " ".join(ITEM.split()[4:17]),
        "**" + ITEM + "**",
    ],
)
def test_any_run_of_thirteen_words_is_a_hit(tmp_path: Path, make_prose: Callable[..., str], written: str) -> None:
    index = index_of(tmp_path / "set.json", json.dumps({"data": [{"q": ITEM, "n": 3}]}))
    assert index.hit(word_hashes(f"{make_prose(1)} {written} {make_prose(2)}")) == "set.json"


def test_packed_files_and_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps({"q": ITEM}).encode()))
    (tmp_path / "set" / "LICENSE.md").write_text("not an item")
    index = index_evaluation_sets((str(tmp_path / "set"),), n_words=13, least_words=8)
    assert (index.n_items, index.hit(word_hashes(ITEM))) == (1, "a.jsonl.gz")


def test_twelve_words_are_none(tmp_path: Path, make_prose: Callable[..., str]) -> None:
    index = index_of(tmp_path / "set.txt", ITEM)
    assert index.hit(word_hashes(make_prose(1) + " ".join(ITEM.split()[4:16]) + ".\n" + make_prose(2))) == ""


def test_short_items_are_looked_for_whole_and_very_short_ones_counted(tmp_path: Path) -> None:
    index = index_of(tmp_path / "set.jsonl", json.dumps(["yes", "one two three four five six seven eight nine"]) + "\n")
    assert (index.n_items, index.n_short) == (2, 1)
    assert index.hit(word_hashes("x one two three four five six seven eight nine y")) == "set.jsonl"
    assert index.hit(word_hashes("x one two three four five six seven eight y yes")) == ""


def test_no_sets_no_hits() -> None:
    assert index_evaluation_sets((), n_words=13, least_words=8).hit(word_hashes(ITEM)) == ""


def test_a_set_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        index_evaluation_sets((str(tmp_path / "nowhere"),), n_words=13, least_words=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no text"):
        index_evaluation_sets((str(tmp_path / "empty"),), n_words=13, least_words=8)
