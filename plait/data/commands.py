"""Bodies of `plait data tokenizer` and `plait data inspect`: numbers as plain dicts, their rendering apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from plait.data.documents import Document, default_corpus, read_documents
from plait.data.mixture import open_mixture
from plait.data.shards import TextEncoder, TokenShards, open_shards, tokenizer_hash
from plait.text import Tokenizer, train_tokenizer


def train_tokenizer_command(
    texts: Sequence[Path],
    *,
    vocab_size: int,
    out: Path,
    held_out: Sequence[Path] = (),
    layout: Literal["published", "compact", "minimal"] | None = None,
) -> dict[str, Any]:
    """Train a tokenizer on `texts`, save it in the folder `out` and measure it on `held_out`.

    No `texts`: Emma, no `held_out`: Northanger Abbey, both from the package. `layout` is train_tokenizer's.
    """
    default_train, default_held_out = default_corpus()
    train = _read_all(texts) if texts else default_train
    held = _read_all(held_out) if held_out else default_held_out
    tokenizer = train_tokenizer((document.text for document in train), vocab_size, layout=layout)
    tokenizer.save(out)
    return {
        "tokenizer": str(out),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "train": _size(train),
        "held_out": {**_size(held), **fertility(tokenizer, held)},
        "by_language": fertility_by_language(tokenizer, held),
        "digits_split": len(tokenizer.encode("2026")) == 4,
        "every_byte": tokenizer.decode(tokenizer.encode(_UNSEEN)) == _UNSEEN,
        "control_ids": {name: tokenizer.control_ids[name] for name in _SHOWN_CONTROL if name in tokenizer.control_ids},
    }


_UNSEEN = "\u16a0\u2603\U0001f9f6\t\x01"  # a rune, a snowman, a ball of yarn, a control character: bytes
_SHOWN_CONTROL = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|bom|>", "<|eom|>", "<|assistant|>", "<tool_calls>")


def fertility_by_language(tokenizer: TextEncoder, documents: Iterable[Document]) -> dict[str, dict[str, float]]:
    """Fertility for each language that the identifier finds in the documents' paragraphs; {} without the data extra."""
    if find_spec("py3langid") is None:
        return {}
    from plait.data.pipeline.language import language_of

    texts: dict[str, list[Document]] = {}
    for document in documents:
        for paragraph in document.text.split("\n\n"):
            if len(paragraph) >= _LEAST_PARAGRAPH:
                language, score = language_of(paragraph)
                if score > 0.5:
                    texts.setdefault(language, []).append(Document(paragraph, document.source, document.index))
    return {language: fertility(tokenizer, texts[language]) for language in sorted(texts)}


_LEAST_PARAGRAPH = 120  # characters: shorter ones say little about their language


def _read_all(paths: Sequence[Path]) -> list[Document]:
    return [document for path in paths for document in read_documents(path)]


def _size(documents: Sequence[Document]) -> dict[str, Any]:
    return {
        "sources": list(dict.fromkeys(document.source for document in documents)),
        "n_documents": len(documents),
        "n_characters": sum(len(document.text) for document in documents),
        "n_words": sum(len(document.text.split()) for document in documents),
    }


def fertility(tokenizer: TextEncoder, documents: Iterable[Document]) -> dict[str, float]:
    """How many tokens the text takes; a word is what stands between white space, bos and eos are not counted."""
    n_tokens = n_words = n_characters = 0
    for document in documents:
        n_tokens += len(tokenizer.encode(document.text))
        n_words += len(document.text.split())
        n_characters += len(document.text)
    if not n_words:
        raise ValueError("there are no words to measure the tokenizer on: give other texts with --held-out")
    per_word, per_character = n_tokens / n_words, n_tokens / n_characters
    return {"n_tokens": n_tokens, "tokens_per_word": per_word, "tokens_per_character": per_character}


def tokenizer_table(report: dict[str, Any]) -> RenderableType:
    """What train_tokenizer_command returned, for a terminal."""
    table = Table("", "trained on", "held out", title=f"{report['tokenizer']}: {report['vocab_size']:,} entries")
    table.add_row("sources", *(", ".join(report[part]["sources"]) for part in ("train", "held_out")))
    for key in ("n_documents", "n_characters", "n_words"):
        table.add_row(key, f"{report['train'][key]:,}", f"{report['held_out'][key]:,}")
    table.add_row("n_tokens", "", f"{report['held_out']['n_tokens']:,}")
    for key in ("tokens_per_word", "tokens_per_character"):
        table.add_row(key, "", f"{report['held_out'][key]:.3f}")
    by_language = Table("language", "tokens", "tokens per word", "tokens per character", title="held out, by language")
    for language, found in report["by_language"].items():
        ratios = (f"{found[key]:.3f}" for key in ("tokens_per_word", "tokens_per_character"))
        by_language.add_row(language, f"{found['n_tokens']:,}", *ratios)
    facts = Text(
        f"digits one by one: {'yes' if report['digits_split'] else 'no'}; every byte comes back: "
        f"{'yes' if report['every_byte'] else 'no'}; control tokens: "
        + ", ".join(f"{name} {token_id}" for name, token_id in report["control_ids"].items())
    )
    return Group(table, *([by_language] if report["by_language"] else []), facts)


def inspect_command(
    shards: Path, *, tokenizer: Path | None = None, n_samples: int = 3, sample_tokens: int = 64
) -> dict[str, Any]:
    """Counts, lengths and the beginnings of a few documents; as text when the folder of their tokenizer is given."""
    opened = open_shards(shards)
    metadata = opened.metadata
    lengths = np.diff(opened.offsets)
    return {
        "shards": str(shards),
        "n_tokens": opened.n_tokens,
        "n_documents": opened.n_documents,
        "n_shards": metadata.n_shards,
        "vocab_size": metadata.vocab_size,
        "dtype": metadata.dtype.name,
        "tokenizer_hash": metadata.tokenizer_hash,
        "sources": [vars(source) for source in metadata.sources],
        "document_tokens": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "p95": float(np.percentile(lengths, 95)),
            "max": int(lengths.max()),
        },
        "documents_by_length": documents_by_length(lengths),
        "samples": _samples(opened, tokenizer, n_samples, sample_tokens),
    }


def inspect_mixture(text: str) -> dict[str, Any]:
    """Shares and sizes of a mixture's sources, and how many tokens of the mixture one pass over each lasts."""
    mixture = open_mixture(text)
    total = sum(part.weight for part in mixture.parts)
    sources = []
    for part in mixture.parts:
        lengths = np.diff(part.shards.offsets)
        taken = lengths[(lengths >= part.min_tokens) & (lengths <= (part.max_tokens or lengths.max()))]
        share = part.weight / total
        sources.append(
            {
                "shards": str(part.shards.path),
                "share": share,
                "n_documents": len(taken),
                "n_tokens": int(taken.sum()),
                "pass_tokens": round(int(taken.sum()) / share),
                "documents_by_length": documents_by_length(taken) if len(taken) else [],
            }
        )
    return {"mixture": text, "sources": sources}


def mixture_table(report: dict[str, Any]) -> RenderableType:
    """What inspect_mixture returned, for a terminal."""
    table = Table("shards", "share", "documents", "tokens", "one pass lasts (tokens)", title="mixture")
    for source in report["sources"]:
        numbers = (f"{source[key]:,}" for key in ("n_documents", "n_tokens", "pass_tokens"))
        table.add_row(source["shards"], f"{source['share']:.1%}", *numbers)
    by_length: dict[int, list[int]] = {}
    for number, source in enumerate(report["sources"]):
        for row in source["documents_by_length"]:
            tokens = by_length.setdefault(row["min_tokens"], [0] * len(report["sources"]))
            tokens[number] = row["n_tokens"]
    lengths = Table("tokens a document", *(Path(s["shards"]).name for s in report["sources"]), title="tokens by length")
    for least, counts in sorted(by_length.items()):
        lengths.add_row(f"{least:,} to {2 * least - 1:,}", *(f"{n:,}" for n in counts))
    return Group(table, lengths)


def documents_by_length(lengths: np.ndarray) -> list[dict[str, int]]:
    """Documents and tokens per power of two: lengths min_tokens .. max_tokens, both included; empty ends left out."""
    powers = np.frexp(lengths.astype(np.float64))[1]  # 2^(p - 1) <= length < 2^p
    return [
        {
            "min_tokens": 1 << (p - 1),
            "max_tokens": (1 << p) - 1,
            "n_documents": int((powers == p).sum()),
            "n_tokens": int(lengths[powers == p].sum()),
        }
        for p in range(int(powers.min()), int(powers.max()) + 1)
    ]


def _samples(
    shards: TokenShards, tokenizer_path: Path | None, n_samples: int, sample_tokens: int
) -> list[dict[str, Any]]:
    """Documents spread evenly over the shards."""
    tokenizer = None if tokenizer_path is None else Tokenizer.from_folder(tokenizer_path)
    if tokenizer is not None and tokenizer_hash(tokenizer) != shards.metadata.tokenizer_hash:
        raise ValueError(
            f"{tokenizer_path} did not write {shards.path} (its hash differs): give the one that did, or none"
        )
    samples = []
    for index in sorted({i * shards.n_documents // n_samples for i in range(n_samples)}):
        tokens = shards.document(index)
        shown = tokens[:sample_tokens].tolist()
        text = None if tokenizer is None else tokenizer.decode(shown)
        samples.append({"document": index, "n_tokens": len(tokens), "token_ids": shown, "text": text})
    return samples


def inspect_table(report: dict[str, Any]) -> RenderableType:
    """What inspect_command returned, for a terminal."""
    each = report["document_tokens"]
    summary = Text(
        f"{report['n_tokens']:,} tokens, {report['n_documents']:,} documents, {report['n_shards']} file(s) of "
        f"{report['dtype']}, vocab_size {report['vocab_size']:,}\n"
        f"tokens a document: {each['min']:,} to {each['max']:,}, median {each['median']:,.0f}, mean {each['mean']:,.0f}"
    )
    sources = Table("source", "documents", "tokens", "tokens per character")
    for source in report["sources"]:
        ratio = source["n_tokens"] / source["n_characters"]
        sources.add_row(source["source"], f"{source['n_documents']:,}", f"{source['n_tokens']:,}", f"{ratio:.3f}")
    by_length = Table("tokens a document", "documents", "tokens")
    for row in report["documents_by_length"]:
        lengths = f"{row['min_tokens']:,} to {row['max_tokens']:,}"
        by_length.add_row(lengths, f"{row['n_documents']:,}", f"{row['n_tokens']:,}")
    samples = Table("document", "tokens", "begins")
    for sample in report["samples"]:
        begins = " ".join(map(str, sample["token_ids"])) if sample["text"] is None else sample["text"]
        samples.add_row(str(sample["document"]), f"{sample['n_tokens']:,}", Text(begins))
    return Group(summary, sources, by_length, samples)
