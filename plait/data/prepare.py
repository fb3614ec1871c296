"""From texts to what a run reads: a tokenizer and token shards, made once per folder and reused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plait.data.documents import Document, default_corpus, read_documents
from plait.data.mixture import Mixture, Packing, is_mixture, open_mixture
from plait.data.shards import METADATA_FILE, TokenShards, open_shards, tokenizer_hash, write_shards
from plait.text import Tokenizer, train_tokenizer

PREPARED = "prepared.json"
TOKENIZER_CHARACTERS = 50_000_000  # a tokenizer is trained on this much text at the most


@dataclass(frozen=True)
class Prepared:
    """Training and held-out tokens, and the folder of the tokenizer that made them."""

    train: TokenShards | Mixture
    heldout: TokenShards
    tokenizer: Path


def prepare(
    out: Path,
    *,
    train: str,
    heldout: str,
    tokenizer: str,
    vocab_size: int,
    packing: Packing = "stream",
    stage: str = "",
    long_tokens: int = 0,
    long_share: float = 0.0,
) -> Prepared:
    """Tokenize `train` and `heldout` into `out`, with the tokenizer folder named or, for "train", one trained on the
    training text.

    Sources are "default" (the corpus that ships), a shards folder, or a text file, JSONL file or folder of them;
    `train` may also be a mixture of shards folders (mixture.py, as are the last four). A second call with the same
    arguments reads what the first wrote; other arguments for the same folder raise ValueError, and so do shards that
    another tokenizer made.
    """
    asked: dict[str, object] = {"train": train, "heldout": heldout, "tokenizer": tokenizer, "vocab_size": vocab_size}
    drawn = {"packing": packing, "stage": stage, "long_tokens": long_tokens, "long_share": long_share}
    is_plain = drawn == {"packing": "stream", "stage": "", "long_tokens": 0, "long_share": 0.0}
    asked |= {} if is_plain else drawn
    if not out.exists():
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _make(partial, train, heldout, tokenizer, vocab_size)
            (partial / PREPARED).write_text(json.dumps(asked))
            os.rename(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    if not (out / PREPARED).exists():
        raise ValueError(f"{out} has no {PREPARED}, so it holds something else; give another folder, or delete it")
    if (made := json.loads((out / PREPARED).read_text())) != asked:
        raise ValueError(f"{out} was prepared with {made}, not {asked}; give another folder, or delete it")
    held = open_shards(_shards_path(out, "heldout", heldout))
    where = train if is_mixture(train) else str(_shards_path(out, "train", train))
    trained: TokenShards | Mixture
    if is_plain and not is_mixture(train):
        trained = open_shards(where)
    else:
        trained = open_mixture(where, packing=packing, stage=stage, long_tokens=long_tokens, long_share=long_share)
    expected = tokenizer_hash(Tokenizer.from_folder(out / "tokenizer"))
    for name, opened in (("train", trained), ("heldout", held)):
        if opened.metadata.tokenizer_hash != expected:
            raise ValueError(
                f"{name} shards in {opened.path} were made by another tokenizer; name theirs in data.tokenizer"
            )
    return Prepared(trained, held, out / "tokenizer")


def _sources(train: str, heldout: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("train", train), ("heldout", heldout)


def _make(out: Path, train: str, heldout: str, tokenizer: str, vocab_size: int) -> None:
    if tokenizer == "train":
        if _is_shards(train):
            raise ValueError(f"data.tokenizer must name the tokenizer that made the shards in {train}")
        made = train_tokenizer(_prefix(_documents(train, "train"), TOKENIZER_CHARACTERS), vocab_size)
    else:
        made = Tokenizer.from_folder(tokenizer)
        if made.vocab_size > vocab_size:
            raise ValueError(f"{tokenizer} has {made.vocab_size} tokens; the model's vocab_size is {vocab_size}")
    made.save(out / "tokenizer")
    for name, source in _sources(train, heldout):
        if not _is_shards(source):
            write_shards(_documents(source, name), made, out / name)


def _is_shards(source: str) -> bool:
    return (Path(source) / METADATA_FILE).exists() or is_mixture(source)


def _shards_path(out: Path, name: str, source: str) -> Path:
    return Path(source) if _is_shards(source) else out / name


def _documents(source: str, name: str) -> Iterable[Document]:
    if source == "default":
        return default_corpus()[0 if name == "train" else 1]
    if not Path(source).exists():
        raise ValueError(f"data.{name}={source!r} must be 'default', a text or JSONL file, or a folder that exists")
    return read_documents(Path(source))


def _prefix(documents: Iterable[Document], characters: int) -> Iterator[str]:
    """Texts until `characters` of them were given."""
    given = 0
    for document in documents:
        yield document.text
        given += len(document.text)
        if given >= characters:
            return
