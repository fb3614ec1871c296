"""Token shards: what is written is read back, and nothing damaged opens."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data import Document, TokenShards, open_shards, tokenizer_hash, write_shards
from plait.data.shards import join_documents, merge_shards

MakeShards = Callable[..., TokenShards]
DOCUMENTS = [Document("abc", "first", 0), Document("", "first", 1), Document("größe", "second", 0)]
TOKENS = [[1, 100, 101, 102, 2], [1, 2], [1, 106, 117, 198, 185, 198, 162, 104, 2]]


def edit_metadata(path: Path, **changes: object) -> None:
    metadata = json.loads((path / "metadata.json").read_text())
    (path / "metadata.json").write_text(json.dumps(metadata | changes))


@pytest.mark.parametrize("tokens_per_shard", [1, 2, 3, 5, 8, 16, 100])
def test_documents_come_back_whatever_the_file_size(tmp_path: Path, tokenizer: Any, tokens_per_shard: int) -> None:
    shards = write_shards(DOCUMENTS, tokenizer, tmp_path / "out", tokens_per_shard=tokens_per_shard)
    assert (shards.n_tokens, shards.n_documents) == (16, 3)
    assert [shards.document(i).tolist() for i in range(3)] == TOKENS
    flat = [token for document in TOKENS for token in document]
    for start in range(17):
        for stop in range(start, 17):
            assert shards.read(start, stop).tolist() == flat[start:stop]
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("tokens-*.bin"))]
    assert sum(sizes) == 2 * 16
    assert sizes[:-1] == [2 * tokens_per_shard] * (len(sizes) - 1)


def test_metadata_says_what_is_inside(tmp_path: Path, tokenizer: Any) -> None:
    write_shards(DOCUMENTS, tokenizer, tmp_path / "out", tokens_per_shard=10)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "documents.bin",
        "metadata.json",
        "tokens-00000.bin",
        "tokens-00001.bin",
    ]
    assert json.loads((tmp_path / "out" / "metadata.json").read_text()) == {
        "format_version": 1,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "vocab_size": 259,
        "bos_id": 1,
        "eos_id": 2,
        "n_tokens": 16,
        "n_documents": 3,
        "tokens_per_shard": 10,
        "sources": [
            {"source": "first", "n_documents": 2, "n_tokens": 7, "n_characters": 3},
            {"source": "second", "n_documents": 1, "n_tokens": 9, "n_characters": 5},
        ],
        "has_loss_mask": False,
    }


class WideTokenizer:
    """Code points as ids: more than uint16 can hold."""

    bos_id, eos_ids = 0x110000, (0x110001, 7)

    def __init__(self, vocab_size: int = 0x110002) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    shards = write_shards([Document("a😀", "s", 0)], WideTokenizer(), tmp_path / "out")
    assert shards.document(0).tolist() == [0x110000, 97, 0x1F600, 0x110001]
    assert (tmp_path / "out" / "tokens-00000.bin").read_bytes() == b"\0\0\x11\0a\0\0\0\0\xf6\1\0\1\0\x11\0"


def test_65536_ids_fit_in_two_bytes(tmp_path: Path) -> None:
    tokenizer = WideTokenizer(1 << 16)
    tokenizer.bos_id, tokenizer.eos_ids = 1, (2, 0)
    shards = write_shards([Document("\uffff", "s", 0)], tokenizer, tmp_path / "out")
    assert (tmp_path / "out" / "tokens-00000.bin").read_bytes() == b"\1\0\xff\xff\2\0"
    assert shards.document(0).tolist() == [1, 0xFFFF, 2]


@given(n_letters=st.lists(st.integers(0, 30), min_size=1, max_size=8), tokens_per_shard=st.integers(1, 40))
def test_documents_end_to_end_are_the_flat_tokens(
    make_shards: MakeShards, n_letters: list[int], tokens_per_shard: int
) -> None:
    shards = make_shards(n_letters, tokens_per_shard)
    documents = [shards.document(i) for i in range(shards.n_documents)]
    assert [len(document) for document in documents] == [n + 2 for n in n_letters]
    assert np.array_equal(np.concatenate(documents), shards.read(0, shards.n_tokens))


def test_out_of_range_is_an_index_error(make_shards: MakeShards) -> None:
    shards = make_shards([3, 4])
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"document {index} of 2"):
            shards.document(index)
    for start, stop in ((-1, 2), (5, 4), (0, 12)):
        with pytest.raises(IndexError, match="of 11"):
            shards.read(start, stop)


def test_tokens_are_read_only(make_shards: MakeShards) -> None:
    with pytest.raises(ValueError, match="read-only"):
        make_shards([3]).document(0)[0] = 5


class StopHere(Exception):
    pass


def interrupted() -> Iterator[Document]:
    yield DOCUMENTS[0]
    raise StopHere


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(StopHere):
        write_shards(interrupted(), tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_write_leaves_nothing_that_opens(tmp_path: Path, tokenizer: Any) -> None:
    """A killed process removes nothing, but what it wrote has a temporary name and no metadata."""
    killed = os.fork()
    if killed == 0:
        try:
            write_shards(killing(), tokenizer, tmp_path / "out")
        finally:
            os._exit(1)
    _, status = os.waitpid(killed, 0)
    assert os.WTERMSIG(status) == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    with pytest.raises(ValueError, match="has no metadata"):
        open_shards(left)
    assert write_shards(DOCUMENTS, tokenizer, tmp_path / "out").n_tokens == 16  # and nothing is in the next one's way


def killing() -> Iterator[Document]:
    yield DOCUMENTS[0]
    os.kill(os.getpid(), 9)


def test_refusals_while_writing(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no document to write"):
        write_shards([], tokenizer, tmp_path / "out")
    with pytest.raises(ValueError, match="tokens_per_shard=0"):
        write_shards(DOCUMENTS, tokenizer, tmp_path / "out", tokens_per_shard=0)
    wrong = WideTokenizer(100)
    wrong.bos_id, wrong.eos_ids = 98, (99,)
    with pytest.raises(ValueError, match=r"document 4 of s: the tokenizer gave ids 98\.\.252, its vocab_size is 100"):
        write_shards([Document("ü", "s", 4)], wrong, tmp_path / "out")
    with pytest.raises(ValueError, match="encode gives bos"):
        write_shards([Document(chr(0x110000 - 1), "s", 0)], DoubleBos(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists already"):
        write_shards(DOCUMENTS, tokenizer, tmp_path / "out")


class DoubleBos(WideTokenizer):
    def encode(self, text: str) -> list[int]:
        return [self.bos_id, *super().encode(text)]


def test_damage_is_found_on_opening(tmp_path: Path, make_shards: MakeShards) -> None:
    def damaged(name: str, data: bytes | None) -> Path:
        path = make_shards([3, 4]).path
        (path / name).unlink()
        if data is not None:
            (path / name).write_bytes(data)
        return path

    def offsets(*values: int) -> bytes:
        return np.array(values, dtype="<i8").tobytes()

    cases: list[tuple[str, bytes | None, str]] = [
        ("tokens-00000.bin", None, "tokens-00000.bin is missing"),
        ("tokens-00000.bin", b"\1\0" * 10, "tokens-00000.bin has 20 bytes where 22 belong"),
        ("tokens-00000.bin", b"\xff\xff" * 11, "holds token id 65535, its vocab_size is 259"),
        ("documents.bin", offsets(0, 5), "documents.bin has 16 bytes where 24 belong"),
        ("documents.bin", offsets(0, 5, 10), "offsets must rise from 0 to n_tokens=11"),
        ("documents.bin", offsets(1, 5, 11), "offsets must rise from 0 to n_tokens=11"),
        ("documents.bin", offsets(0, 12, 11), "offsets must rise from 0 to n_tokens=11"),
        ("metadata.json", None, "has no metadata.json: not a shards folder"),
        ("metadata.json", b"{", "metadata.json is damaged"),
        ("metadata.json", b"[]", "has format_version None"),
        ("metadata.json", b'{"format_version": 1}', "metadata.json is damaged: 'sources'"),
    ]
    for name, data, message in cases:
        with pytest.raises(ValueError, match=message):
            open_shards(damaged(name, data))
    with pytest.raises(ValueError, match=r"has no metadata\.json"):
        open_shards(tmp_path / "nowhere")
    late = damaged("tokens-00000.bin", b"\xff\xff" * 11)
    assert open_shards(late, check_tokens=False).n_tokens == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "has format_version 2, 1 is read here"),
        ({"n_documents": 0}, "every count must be at least 1"),
        ({"colour": "blue"}, "unexpected keyword argument 'colour'"),
        ({"vocab_size": 70_000}, "has 22 bytes where 44 belong"),
    ],
)
def test_other_metadata_is_refused(make_shards: MakeShards, change: dict[str, object], message: str) -> None:
    path = make_shards([3, 4]).path
    edit_metadata(path, **change)
    with pytest.raises(ValueError, match=message):
        open_shards(path)


def test_tokenizer_hash_tells_tokenizers_apart(tokenizer: Any) -> None:
    class Shifted(type(tokenizer)):  # type: ignore[misc]
        def encode(self, text: str) -> list[int]:
            return [id_ ^ (id_ == 200) for id_ in super().encode(text)]

    same, other_size, other_ids = type(tokenizer)(), type(tokenizer)(), Shifted()
    other_size.vocab_size = 260
    assert tokenizer_hash(same) == tokenizer_hash(tokenizer)
    assert len({tokenizer_hash(t) for t in (same, other_size, other_ids)}) == 3


@given(
    parts=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=5), min_size=1, max_size=4),
    tokens_per_shard=st.integers(1, 60),
)
def test_merged_shards_are_their_documents_end_to_end(
    make_shards: MakeShards,
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[list[int]],
    tokens_per_shard: int,
) -> None:
    opened = [make_shards(n_letters, 7) for n_letters in parts]
    out = tmp_path_factory.mktemp("merged") / "out"
    merged = merge_shards(opened, out, tokens_per_shard=tokens_per_shard)
    expected = [part.document(k).tolist() for part in opened for k in range(part.n_documents)]
    assert [merged.document(k).tolist() for k in range(merged.n_documents)] == expected
    (count,) = merged.metadata.sources
    assert (count.n_documents, count.n_tokens) == (len(expected), sum(map(len, expected)))
    assert count.n_characters == sum(n for part in parts for n in part)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_only_shards_of_one_tokenizer_are_merged(make_shards: MakeShards, tmp_path: Path) -> None:
    a, b = make_shards([3]), make_shards([4])
    edit_metadata(b.path, tokenizer_hash="other")
    with pytest.raises(ValueError, match="another tokenizer"):
        merge_shards([a, open_shards(b.path)], tmp_path / "out")
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_shards([], tmp_path / "out")
    with pytest.raises(ValueError, match="exists already"):
        merge_shards([a], a.path)
    assert not (tmp_path / "out").exists()


@given(n_letters=st.lists(st.integers(1, 30), min_size=2, max_size=8), data=st.data())
def test_joined_documents_are_their_tokens_with_a_separator_between(
    make_shards: MakeShards, tmp_path_factory: pytest.TempPathFactory, n_letters: list[int], data: st.DataObject
) -> None:
    shards = make_shards(n_letters, 7)
    groups = data.draw(st.lists(st.lists(st.integers(0, len(n_letters) - 1), min_size=1), min_size=1, max_size=4))
    out = tmp_path_factory.mktemp("joined") / "out"
    joined = join_documents(shards, groups, [5, 6], out, "manuals")
    assert (joined.n_documents, joined.metadata.sources[0].source) == (len(groups), "manuals")
    for k, group in enumerate(groups):
        inside = [token for page in group for token in (5, 6, *shards.document(page)[1:-1].tolist())][2:]
        assert joined.document(k).tolist() == [shards.metadata.bos_id, *inside, shards.metadata.eos_id]
    assert open_shards(out).n_tokens == joined.n_tokens


def test_nothing_to_join_is_an_error(make_shards: MakeShards, tmp_path: Path) -> None:
    for groups in ([], [[0], []]):
        with pytest.raises(ValueError, match="nothing to join"):
            join_documents(make_shards([3]), groups, [], tmp_path / "out", "x")
    assert not (tmp_path / "out").exists()
