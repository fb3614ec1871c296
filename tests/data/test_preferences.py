"""Pairs from a file: text is continued as it stands, messages go through the chat template, and mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.data.preferences import read_pairs
from plait.text.tokenizer import Tokenizer

DEMO = Path(plait.__file__).parent / "demo"


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_text_and_messages(tmp_path: Path) -> None:
    words = Tokenizer.from_folder(DEMO)
    text = {"prompt": "Emma said", "chosen": " yes.", "rejected": " no, never."}
    chat = {**text, "prompt": [{"role": "user", "content": "Well?"}]}
    plain, turns = read_pairs(written(tmp_path / "pairs.jsonl", text, chat), DEMO, most_tokens=64)
    assert plain.prompt == (words.bos_id, *words.encode("Emma said"))
    assert plain.chosen == (*words.encode(" yes."), words.eos_ids[0])
    assert words.decode(list(plain.rejected[:-1])) == " no, never."
    assert turns.prompt[0] == words.bos_id
    assert words.decode(list(turns.chosen[:-1])).strip() == "yes."
    assert words.decode(list(turns.rejected[:-1])).strip() == "no, never."
    assert turns.chosen[-1] in words.eos_ids
    assert turns.prompt[-1] not in words.encode(" yes.")


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"prompt": "a", "chosen": "b"}, "line 1: a pair must have chosen, prompt, rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "line 1: chosen and rejected must be text"),
        ({"prompt": "a " * 99, "chosen": "b", "rejected": "c"}, "tokens; set seq to as many"),
        ({"prompt": [{"role": "nobody"}], "chosen": "b", "rejected": "c"}, "line 1: "),
    ],
)
def test_what_is_wrong_is_named(record: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        read_pairs(written(tmp_path / "pairs.jsonl", record), DEMO, most_tokens=64)


def test_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no pairs"):
        read_pairs(written(tmp_path / "pairs.jsonl"), DEMO, most_tokens=64)
    with pytest.raises(ValueError, match="must be a file of pairs"):
        read_pairs(tmp_path / "nothing.jsonl", DEMO, most_tokens=64)
