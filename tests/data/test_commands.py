"""The numbers that `plait data tokenizer` and `plait data inspect` report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from plait.data import Document, TokenShards, default_corpus, write_shards
from plait.data.commands import (
    documents_by_length,
    fertility,
    fertility_by_language,
    inspect_command,
    inspect_mixture,
    inspect_table,
    mixture_table,
    tokenizer_table,
    train_tokenizer_command,
)
from plait.text import Tokenizer

MakeShards = Callable[..., TokenShards]


def shown(renderable: object) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_tokenizer_on_own_texts(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.txt", tmp_path / "held.jsonl"
    train.write_text("to be or not to be, that is the question\n" * 50)
    held_out.write_text('{"text": "to be or not"}\n{"text": "to see"}\n')
    report = train_tokenizer_command([train], vocab_size=400, out=tmp_path / "tokenizer", held_out=[held_out])
    assert report["train"] == {"sources": ["train.txt"], "n_documents": 1, "n_characters": 2050, "n_words": 500}
    tokenizer = Tokenizer.from_folder(tmp_path / "tokenizer")
    n_tokens = len(tokenizer.encode("to be or not")) + len(tokenizer.encode("to see"))
    assert report["held_out"] == {
        "sources": ["held.jsonl"],
        "n_documents": 2,
        "n_characters": 18,
        "n_words": 6,
        "n_tokens": n_tokens,
        "tokens_per_word": pytest.approx(n_tokens / 6),
        "tokens_per_character": pytest.approx(n_tokens / 18),
    }
    assert report["vocab_size"] == tokenizer.vocab_size == 400
    json.dumps(report)
    text = shown(tokenizer_table(report))
    assert "400 entries" in text
    assert f"{n_tokens / 6:.3f}" in text


@pytest.mark.parametrize(
    ("layout", "n_tokens", "per_word"), [("published", 121_957, 1.582), ("compact", 112_151, 1.455)]
)
def test_tokenizer_on_the_corpus_in_the_package(tmp_path: Path, layout: Any, n_tokens: int, per_word: float) -> None:
    """Loose by 1 %: merges depend a little on the version of the tokenizers library."""
    report = train_tokenizer_command([], vocab_size=4096, out=tmp_path, layout=layout)
    assert report["train"]["sources"] == ["emma"]
    assert report["held_out"]["sources"] == ["northanger_abbey"]
    assert (report["train"]["n_documents"], report["held_out"]["n_documents"]) == (55, 31)
    assert report["held_out"]["n_tokens"] == pytest.approx(n_tokens, rel=0.01)
    assert report["held_out"]["tokens_per_word"] == pytest.approx(per_word, rel=0.01)


def test_the_corpus_is_lossless_under_our_tokenizer(tmp_path: Path) -> None:
    train_tokenizer_command([], vocab_size=4096, out=tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_folder(tmp_path / "tokenizer")
    held_out = default_corpus()[1]
    shards = write_shards(held_out, tokenizer, tmp_path / "shards")
    assert [tokenizer.decode(shards.document(i).tolist()) for i in range(31)] == [d.text for d in held_out]


def test_fertility_counts_neither_bos_nor_eos(tokenizer: Any) -> None:
    documents = [Document("two words", "s", 0), Document("größe", "s", 1)]
    assert fertility(tokenizer, documents) == {
        "n_tokens": 16,
        "tokens_per_word": 16 / 3,
        "tokens_per_character": 16 / 14,
    }


def test_inspect_counts(make_shards: MakeShards) -> None:
    shards = make_shards([0, 1, 2, 3, 30], tokens_per_shard=20)
    report = inspect_command(shards.path, n_samples=2, sample_tokens=4)
    assert report["document_tokens"] == {"min": 2, "median": 4.0, "mean": 9.2, "p95": pytest.approx(26.6), "max": 32}
    assert (report["n_tokens"], report["n_documents"], report["n_shards"], report["dtype"]) == (46, 5, 3, "uint16")
    assert report["sources"] == [{"source": "letters", "n_documents": 5, "n_tokens": 46, "n_characters": 36}]
    assert report["documents_by_length"] == [
        {"min_tokens": 2, "max_tokens": 3, "n_documents": 2, "n_tokens": 5},
        {"min_tokens": 4, "max_tokens": 7, "n_documents": 2, "n_tokens": 9},
        {"min_tokens": 8, "max_tokens": 15, "n_documents": 0, "n_tokens": 0},
        {"min_tokens": 16, "max_tokens": 31, "n_documents": 0, "n_tokens": 0},
        {"min_tokens": 32, "max_tokens": 63, "n_documents": 1, "n_tokens": 32},
    ]
    assert [(s["document"], s["n_tokens"], s["token_ids"], s["text"]) for s in report["samples"]] == [
        (0, 2, [1, 2], None),
        (2, 4, [1, 3 + ord('"'), 3 + ord("#"), 2], None),
    ]
    json.dumps(report)
    text = shown(inspect_table(report))
    assert "46 tokens, 5 documents, 3 file(s) of uint16" in text
    assert "32 to 63" in text


def test_lengths_at_powers_of_two_fall_in_the_right_row() -> None:
    lengths = np.array([1, 2, 4, 7, 8])
    assert [(row["min_tokens"], row["n_documents"]) for row in documents_by_length(lengths)] == [
        (1, 1),
        (2, 1),
        (4, 2),
        (8, 1),
    ]


def test_inspect_decodes_with_the_tokenizer_that_wrote(tmp_path: Path, make_shards: MakeShards) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some [bold]text[/bold] to be cut here")
    train_tokenizer_command([text], vocab_size=300, out=tmp_path / "tokenizer", held_out=[text])
    tokenizer = Tokenizer.from_folder(tmp_path / "tokenizer")
    write_shards([Document(text.read_text(), "s", 0)], tokenizer, tmp_path / "shards")
    report = inspect_command(tmp_path / "shards", tokenizer=tmp_path / "tokenizer", sample_tokens=100)
    assert [sample["text"] for sample in report["samples"]] == [text.read_text()]
    assert "[bold]text[/bold]" in shown(inspect_table(report))  # text is not markup
    with pytest.raises(ValueError, match="did not write"):
        inspect_command(make_shards([3]).path, tokenizer=tmp_path / "tokenizer")


def test_a_tokenizer_says_what_it_promises(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the old harbour and the quiet library " * 50)
    report = train_tokenizer_command([text], vocab_size=600, out=tmp_path / "tokenizer", held_out=[text])
    assert report["digits_split"] is True
    assert report["every_byte"] is True
    assert report["control_ids"]["<|startoftext|>"] == 1
    assert report["control_ids"]["<|eom|>"] == 518
    assert "every byte comes back: yes" in shown(tokenizer_table(report))


def test_fertility_by_language(tokenizer: Any) -> None:
    pytest.importorskip("py3langid")
    english = "All human beings are born free and equal in dignity and rights, and should act towards one another so. "
    german = "Alle Menschen sind frei und gleich an Würde und Rechten geboren und sollen einander so begegnen. "
    found = fertility_by_language(tokenizer, [Document(f"{english * 2}\n\n{german * 2}\n\nshort", "s", 0)])
    assert set(found) == {"de", "en"}
    assert found["de"]["n_tokens"] == len((german * 2).encode())
    assert found["en"]["tokens_per_character"] == 1.0


def test_inspect_a_mixture(make_shards: MakeShards) -> None:
    a, b = make_shards([8, 98]), make_shards([28])
    report = inspect_mixture(f"{a.path}@50-:1,{b.path}:3")
    assert [(s["share"], s["n_documents"], s["n_tokens"], s["pass_tokens"]) for s in report["sources"]] == [
        (0.25, 1, 100, 400),
        (0.75, 1, 30, 40),
    ]
    assert "25.0%" in shown(mixture_table(report))
