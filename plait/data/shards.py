"""Tokenized documents on disk: flat token files read through memory maps.

A shards folder holds
    tokens-00000.bin …  all documents end to end, each bos + tokens + eos; little-endian uint16, or uint32 where
                        vocab_size > 65,536. Every file but the last holds `tokens_per_shard` tokens, so that token i
                        lies in file i // tokens_per_shard; a document may run over into the next file.
    documents.bin       int64: where each document begins, then n_tokens.
    loss_mask.bin       where only some tokens are to be learned: a byte per token, 1 for those. Metadata says whether
                        there is one, so that a lost mask can't pass for none.
    metadata.json       ShardsMetadata; written last: without it the folder doesn't open.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from plait.data.documents import Document, default_corpus

FORMAT_VERSION = 1
METADATA_FILE = "metadata.json"
DOCUMENTS_FILE = "documents.bin"
MASK_FILE = "loss_mask.bin"
TOKENS_PER_SHARD = 1 << 27  # 256 MiB of uint16
SCAN_TOKENS = 1 << 22  # tokens looked at together when a folder is checked


class TextEncoder(Protocol):
    """What writing shards needs of a tokenizer; `plait.text.Tokenizer` has it."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_ids(self) -> Iterable[int]: ...
    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class SourceCount:
    """What one source gave; `n_tokens` counts bos and eos."""

    source: str
    n_documents: int = 0
    n_tokens: int = 0
    n_characters: int = 0


@dataclass(frozen=True)
class ShardsMetadata:
    tokenizer_hash: str
    vocab_size: int
    bos_id: int
    eos_id: int
    n_tokens: int
    n_documents: int
    tokens_per_shard: int
    sources: tuple[SourceCount, ...]
    has_loss_mask: bool = False
    format_version: int = FORMAT_VERSION

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @property
    def n_shards(self) -> int:
        return -(-self.n_tokens // self.tokens_per_shard)


class TokenShards:
    """Read access to a shards folder; memory use doesn't grow with it, beyond the pages the system keeps."""

    def __init__(self, path: Path, metadata: ShardsMetadata) -> None:
        self.path = path
        self.metadata = metadata
        self.offsets = _map_file(path / DOCUMENTS_FILE, np.dtype("<i8"), metadata.n_documents + 1)  # [n_documents + 1]
        self._files = [
            _map_file(path / _tokens_file(k), metadata.dtype, min(metadata.tokens_per_shard, metadata.n_tokens - start))
            for k, start in enumerate(range(0, metadata.n_tokens, metadata.tokens_per_shard))
        ]
        self.loss_mask = (  # uint8 [n_tokens], 1 where the token is to be learned; None: all are
            _map_file(path / MASK_FILE, np.dtype("u1"), metadata.n_tokens) if metadata.has_loss_mask else None
        )

    @property
    def n_tokens(self) -> int:
        return self.metadata.n_tokens

    @property
    def n_documents(self) -> int:
        return self.metadata.n_documents

    def document(self, index: int) -> np.ndarray:
        """Tokens of document `index`, with its bos and eos."""
        if not 0 <= index < self.n_documents:
            raise IndexError(f"document {index} of {self.n_documents}")
        return self.read(int(self.offsets[index]), int(self.offsets[index + 1]))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of all documents end to end: a read-only view, or a copy where files meet."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start}..{stop} of {self.n_tokens}")
        per_file = self.metadata.tokens_per_shard
        if start == stop:
            return np.empty(0, self.metadata.dtype)
        first, last = start // per_file, (stop - 1) // per_file
        if first == last:
            return self._files[first][start - first * per_file : stop - first * per_file]
        pieces = [self._files[k][max(start - k * per_file, 0) : stop - k * per_file] for k in range(first, last + 1)]
        return np.concatenate(pieces)


def open_shards(path: Path | str, *, check_tokens: bool = True) -> TokenShards:
    """Open a shards folder after checking that it is whole: file sizes, document offsets, every id below vocab_size.

    `check_tokens=False` leaves out the last, the one check that reads all tokens.
    """
    path = Path(path)
    shards = TokenShards(path, _read_metadata(path))
    steps = np.diff(shards.offsets)
    if shards.offsets[0] != 0 or shards.offsets[-1] != shards.n_tokens or not (steps > 0).all():
        raise ValueError(
            f"{path / DOCUMENTS_FILE} is damaged: offsets must rise from 0 to n_tokens={shards.n_tokens}; "
            "write the shards again"
        )
    if check_tokens:
        _check_ids(shards)
    return shards


def _check_ids(shards: TokenShards) -> None:
    vocab_size = shards.metadata.vocab_size
    for start in range(0, shards.n_tokens, SCAN_TOKENS):
        largest = int(shards.read(start, min(start + SCAN_TOKENS, shards.n_tokens)).max())
        if largest >= vocab_size:
            raise ValueError(
                f"{shards.path} holds token id {largest}, its vocab_size is {vocab_size}: files damaged or mixed up; "
                "write the shards again"
            )


def _read_metadata(path: Path) -> ShardsMetadata:
    try:
        fields = json.loads((path / METADATA_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} has no {METADATA_FILE}: not a shards folder, or its writing was interrupted"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path / METADATA_FILE} is damaged: {error}") from None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format_version {version}, {FORMAT_VERSION} is read here: write the shards again")
    try:
        sources = tuple(SourceCount(**source) for source in fields.pop("sources"))
        metadata = ShardsMetadata(**fields, sources=sources)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / METADATA_FILE} is damaged: {error}") from None
    if min(metadata.n_tokens, metadata.n_documents, metadata.tokens_per_shard, metadata.vocab_size) < 1:
        raise ValueError(f"{path / METADATA_FILE} is damaged: every count must be at least 1")
    return metadata


def _tokens_file(k: int) -> str:
    return f"tokens-{k:05d}.bin"


def _map_file(path: Path, dtype: np.dtype[Any], length: int) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is missing: write the shards again")
    n_bytes, expected = path.stat().st_size, length * dtype.itemsize
    if n_bytes != expected:
        raise ValueError(f"{path} has {n_bytes} bytes where {expected} belong: write the shards again")
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))  # as a plain array, which is faster to slice


def add_loss_mask(shards: TokenShards, mask_file: Path) -> TokenShards:
    """Move a file with a byte per token into the folder of `shards` and say so in its metadata; returns it reopened.

    Between the two a reader sees the folder without the mask: do it before the folder gets its final name.
    """
    metadata = replace(shards.metadata, has_loss_mask=True)
    _map_file(mask_file, np.dtype("u1"), metadata.n_tokens)  # its size is checked before anything changes
    os.replace(mask_file, shards.path / MASK_FILE)
    unfinished = shards.path / f".{METADATA_FILE}.tmp"
    with unfinished.open("wb") as file:
        file.write(json.dumps(asdict(metadata), indent=2).encode())
        _sync(file)
    os.replace(unfinished, shards.path / METADATA_FILE)
    return TokenShards(shards.path, metadata)


def tokenizer_hash(tokenizer: TextEncoder) -> str:
    """Tells tokenizers apart by what they do, whatever their class: size, special ids, a chapter and many scripts."""
    chapter = default_corpus()[1][0].text
    scripts = "".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x700), *range(0x4E00, 0x4E40)]))
    ids = [tokenizer.encode(text) for text in (chapter, scripts)]
    facts = [tokenizer.vocab_size, tokenizer.bos_id, list(tokenizer.eos_ids), ids]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def write_shards(
    documents: Iterable[Document], tokenizer: TextEncoder, out: Path | str, *, tokens_per_shard: int = TOKENS_PER_SHARD
) -> TokenShards:
    """Tokenize `documents`, one in memory at a time, into the new folder `out`; returns it opened.

    The work happens under a temporary name beside `out`, which appears whole or not at all.
    """
    if tokens_per_shard < 1:
        raise ValueError(f"tokens_per_shard={tokens_per_shard} must be at least 1")
    _write_folder(Path(out), lambda folder: _write_documents(documents, tokenizer, folder, tokens_per_shard))
    return open_shards(out)


def _write_folder(out: Path, write: Callable[[Path], ShardsMetadata]) -> None:
    """`write` fills a folder with a temporary name, which gets its own when all is there."""
    if out.exists():
        raise ValueError(f"{out} exists already: remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    unfinished.mkdir()
    try:
        metadata = write(unfinished)
        with (unfinished / METADATA_FILE).open("wb") as file:
            file.write(json.dumps(asdict(metadata), indent=2).encode())
            _sync(file)
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_documents(
    documents: Iterable[Document], tokenizer: TextEncoder, folder: Path, tokens_per_shard: int
) -> ShardsMetadata:
    metadata = ShardsMetadata(
        tokenizer_hash=tokenizer_hash(tokenizer),
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=next(iter(tokenizer.eos_ids)),
        n_tokens=0,
        n_documents=0,
        tokens_per_shard=tokens_per_shard,
        sources=(),
    )
    counts: dict[str, SourceCount] = {}
    n_tokens = 0
    with _TokenFiles(folder, tokens_per_shard) as token_files, (folder / DOCUMENTS_FILE).open("wb") as index_file:
        index_file.write(np.array(0, dtype="<i8").tobytes())
        for document in documents:
            tokens = _document_tokens(document, tokenizer, metadata)
            token_files.append(tokens)
            n_tokens += len(tokens)
            index_file.write(np.array(n_tokens, dtype="<i8").tobytes())
            count = counts.get(document.source, SourceCount(document.source))
            counts[document.source] = replace(
                count,
                n_documents=count.n_documents + 1,
                n_tokens=count.n_tokens + len(tokens),
                n_characters=count.n_characters + len(document.text),
            )
        _sync(index_file)
    if not counts:
        raise ValueError("there is no document to write: the input is empty")
    n_documents = sum(count.n_documents for count in counts.values())
    return replace(metadata, n_tokens=n_tokens, n_documents=n_documents, sources=tuple(counts.values()))


def _document_tokens(document: Document, tokenizer: TextEncoder, metadata: ShardsMetadata) -> np.ndarray:
    """bos + tokens + eos, checked against what the shards' type can hold."""
    ids = tokenizer.encode(document.text)
    where = f"document {document.index} of {document.source}"
    if ids and ids[0] == metadata.bos_id:
        raise ValueError(f"{where}: encode gives bos (id {metadata.bos_id}) first; give a tokenizer that leaves it out")
    tokens = np.array([metadata.bos_id, *ids, metadata.eos_id])
    if tokens.min() < 0 or tokens.max() >= metadata.vocab_size:
        ids_range = f"{tokens.min()}..{tokens.max()}"
        raise ValueError(f"{where}: the tokenizer gave ids {ids_range}, its vocab_size is {metadata.vocab_size}")
    return tokens.astype(metadata.dtype)


def merge_shards(
    parts: Sequence[TokenShards], out: Path | str, *, tokens_per_shard: int = TOKENS_PER_SHARD
) -> TokenShards:
    """The documents of `parts` end to end, in a new folder `out` that appears whole or not at all. All parts must be of
    one tokenizer and without a loss mask.
    """
    if not parts:
        raise ValueError("there is nothing to merge: give at least one shards folder")
    for part in parts:
        if part.metadata.tokenizer_hash != parts[0].metadata.tokenizer_hash or part.metadata.has_loss_mask:
            raise ValueError(f"{part.path} has another tokenizer than {parts[0].path}, or a loss mask: can't be merged")
    _write_folder(Path(out), lambda folder: _merge(parts, folder, tokens_per_shard))
    return open_shards(out, check_tokens=False)


def join_documents(
    shards: TokenShards, groups: Sequence[Sequence[int]], separator: Sequence[int], out: Path | str, source: str
) -> TokenShards:
    """Each group of documents as one: bos, their tokens with `separator` between them, eos; in a new folder `out` that
    appears whole or not at all. All count as of `source`; their characters are estimated by the shards' mean.
    """
    if not groups or not all(groups):
        raise ValueError("there is nothing to join: give groups of at least one document")
    _write_folder(Path(out), lambda folder: _join(shards, groups, list(separator), folder, source))
    return open_shards(out, check_tokens=False)


def _join(
    shards: TokenShards, groups: Sequence[Sequence[int]], separator: list[int], folder: Path, source: str
) -> ShardsMetadata:
    metadata, ends = shards.metadata, [0]
    between = np.array(separator, dtype=metadata.dtype)
    with _TokenFiles(folder, metadata.tokens_per_shard) as token_files:
        for group in groups:
            pieces: list[np.ndarray] = [np.array([metadata.bos_id], dtype=metadata.dtype)]
            for document in group:
                pieces += [shards.document(document)[1:-1], between]
            pieces[-1] = np.array([metadata.eos_id], dtype=metadata.dtype)
            tokens = np.concatenate(pieces)
            token_files.append(tokens)
            ends.append(ends[-1] + len(tokens))
    np.array(ends, dtype="<i8").tofile(folder / DOCUMENTS_FILE)
    per_token = sum(s.n_characters for s in metadata.sources) / metadata.n_tokens
    count = SourceCount(source, len(groups), ends[-1], round(per_token * ends[-1]))
    return replace(metadata, n_tokens=ends[-1], n_documents=len(groups), sources=(count,))


def _merge(parts: Sequence[TokenShards], folder: Path, tokens_per_shard: int) -> ShardsMetadata:
    counts: dict[str, SourceCount] = {}
    n_tokens = 0
    with _TokenFiles(folder, tokens_per_shard) as token_files, (folder / DOCUMENTS_FILE).open("wb") as index_file:
        index_file.write(np.array(0, dtype="<i8").tobytes())
        for part in parts:
            for start in range(0, part.n_tokens, SCAN_TOKENS):
                token_files.append(part.read(start, min(start + SCAN_TOKENS, part.n_tokens)))
            index_file.write((part.offsets[1:] + n_tokens).astype("<i8").tobytes())
            n_tokens += part.n_tokens
            for own in part.metadata.sources:
                sums = counts.get(own.source, SourceCount(own.source))
                counts[own.source] = SourceCount(
                    own.source,
                    sums.n_documents + own.n_documents,
                    sums.n_tokens + own.n_tokens,
                    sums.n_characters + own.n_characters,
                )
        _sync(index_file)
    return replace(
        parts[0].metadata,
        n_tokens=n_tokens,
        n_documents=sum(part.n_documents for part in parts),
        tokens_per_shard=tokens_per_shard,
        sources=tuple(counts.values()),
    )


class _TokenFiles(ExitStack):
    """Token files filled one after the other, each to exactly `tokens_per_shard`."""

    def __init__(self, folder: Path, tokens_per_shard: int) -> None:
        super().__init__()
        self.folder = folder
        self.tokens_per_shard = tokens_per_shard
        self.n_files = 0
        self.room = 0  # tokens that the open file still takes

    def append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self.room == 0:
                self._next_file()
            self.file.write(tokens[: self.room].tobytes())
            tokens, self.room = tokens[self.room :], max(self.room - len(tokens), 0)

    def _next_file(self) -> None:
        self.close()
        self.file = self.enter_context((self.folder / _tokens_file(self.n_files)).open("wb"))
        self.callback(_sync, self.file)
        self.n_files += 1
        self.room = self.tokens_per_shard


def _sync(file: BinaryIO) -> None:
    """Its data must be on the disk before the folder gets its final name."""
    file.flush()
    os.fsync(file.fileno())
