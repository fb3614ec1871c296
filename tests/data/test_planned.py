"""Planned rows over shards: all tokens once an epoch, any row at any time, memory that doesn't grow with the shards."""

import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data import TokenShards
from plait.data.planned import PlannedRows
from plait.data.shards import ShardsMetadata, SourceCount

MakeShards = Callable[..., TokenShards]
LENGTHS = st.lists(st.integers(0, 25), min_size=1, max_size=12)


def rows_of(rows: PlannedRows, n: int) -> list[tuple[list[int], list[int], list[int]]]:
    return [tuple(part.tolist() for part in rows.row(k)) for k in range(n)]  # type: ignore[misc]


@given(n_letters=LENGTHS, seq=st.integers(2, 30), seed=st.integers(0, 99), block=st.integers(1, 50))
def test_an_epoch_has_every_token_once(
    make_shards: MakeShards, n_letters: list[int], seq: int, seed: int, block: int
) -> None:
    shards = make_shards(n_letters)
    rows = PlannedRows(shards, seq=seq, seed=seed, block_tokens=block)
    eos = shards.metadata.eos_id
    tokens: Counter[int] = Counter()
    for ids, labels, lengths in rows_of(rows, rows.n_rows()):
        assert sum(lengths) == seq == len(ids) == len(labels)
        tokens.update(ids)
    every = Counter(shards.read(0, shards.n_tokens).tolist())
    padding = tokens[eos] - every[eos]
    assert 0 <= padding == rows.n_rows() * seq - shards.n_tokens
    assert tokens == every + Counter({eos: padding})


@given(n_letters=LENGTHS, seq=st.integers(2, 30))
def test_labels_are_the_next_tokens_of_the_document(make_shards: MakeShards, n_letters: list[int], seq: int) -> None:
    shards = make_shards(n_letters)
    rows = PlannedRows(shards, seq=seq, seed=0)
    following: Counter[tuple[int, int]] = Counter()
    for k in range(shards.n_documents):
        document = shards.document(k).tolist()
        following.update(pairwise(document))
    found: Counter[tuple[int, int]] = Counter()
    for ids, labels, _ in rows_of(rows, rows.n_rows()):
        found.update((a, b) for a, b in zip(ids, labels, strict=True) if b >= 0)
    assert found == following


def test_rows_are_a_function_of_seed_stage_and_index(make_shards: MakeShards) -> None:
    shards = make_shards(list(range(30)))
    first = PlannedRows(shards, seq=16, seed=1, stage="a", block_tokens=40)
    n = 3 * first.n_rows()
    rows = rows_of(first, n)
    again = PlannedRows(shards, seq=16, seed=1, stage="a", block_tokens=40)
    assert [tuple(p.tolist() for p in again.row(k)) for k in reversed(range(n))] == rows[::-1]
    for other in ({"seed": 2, "stage": "a"}, {"seed": 1, "stage": "b"}):
        assert rows_of(PlannedRows(shards, seq=16, block_tokens=40, **other), n) != rows  # type: ignore[arg-type]
    assert sorted(rows[: n // 3]) != sorted(rows[n // 3 : 2 * n // 3])  # epochs are packed anew


def test_only_documents_of_the_lengths_asked_for(make_shards: MakeShards) -> None:
    shards = make_shards([3, 10, 30, 5, 40])
    rows = PlannedRows(shards, seq=8, seed=0, min_tokens=12, max_tokens=32)
    assert rows.n_tokens == 12 + 32
    assert rows.n_rows() == 6
    with pytest.raises(ValueError, match="at least 100 tokens"):
        PlannedRows(shards, seq=8, seed=0, min_tokens=100)


def test_these_rows_never_change(make_shards: MakeShards) -> None:
    """A run resumed under other versions must see the same rows: these numbers may not move."""
    rows = PlannedRows(make_shards([4, 9, 2, 7]), seq=10, seed=3)
    assert [rows.row(k)[2].tolist() for k in range(rows.n_rows())] == FIXED


FIXED: list[list[int]] = [[6, 4], [9, 1], [10]]


def sparse_shards(path: Path, n_tokens: int, document_tokens: int) -> None:
    """`n_tokens` zeros that take no disk, in documents of one length."""
    path.mkdir()
    n_documents = n_tokens // document_tokens
    metadata = ShardsMetadata("none", 65_536, 1, 2, n_tokens, n_documents, n_tokens, (SourceCount("sparse"),))
    with (path / "tokens-00000.bin").open("wb") as file:
        file.truncate(2 * n_tokens)
    index = np.memmap(path / "documents.bin", dtype="<i8", mode="w+", shape=(n_documents + 1,))
    index[:] = np.arange(n_documents + 1, dtype=np.int64) * document_tokens
    index.flush()
    (path / "metadata.json").write_text(json.dumps(asdict(metadata)))


_READ = """
import resource, sys
from pathlib import Path
from plait.data.planned import PlannedRows
from plait.data.shards import TokenShards, _read_metadata
path = Path(sys.argv[1])
rows = PlannedRows(TokenShards(path, _read_metadata(path)), seq=4096, seed=0)
n = rows.n_rows()
for k in (0, 1, n // 3, n - 1, 5 * n):
    assert len(rows.row(k)[0]) == 4096
anonymous = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
print(int(anonymous[0].split()[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sparse files and /proc are Linux's")
def test_a_terabyte_takes_no_more_memory_than_a_gigabyte(tmp_path: Path) -> None:
    """500 G tokens in documents of a million, in a file without blocks; what a reader holds of its own, in kB."""
    held = {}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert limit[0] in (resource.RLIM_INFINITY, -1) or limit[0] > 10**12
    for name, n_tokens in (("small", 500 << 20), ("large", 500_000 << 20)):
        sparse_shards(tmp_path / name, n_tokens, 1 << 20)
        done = subprocess.run(
            [sys.executable, "-c", _READ, str(tmp_path / name)], capture_output=True, text=True, check=True
        )
        held[name] = int(done.stdout)
    assert held["large"] < held["small"] + 60_000
