"""Planned packing: every token once, rows full, few documents cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data.packing import pack


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), seq=st.integers(1, 16))
def test_every_token_is_in_one_row_and_rows_are_full(lengths: list[int], seq: int) -> None:
    packed = pack(np.array(lengths), seq)
    assert len(packed.rows) == -(-sum(lengths) // seq)
    filled = sorted(sum(size for _, _, size in row) for row in packed.rows)
    assert filled[-1] <= seq
    assert sum(filled) == sum(lengths)
    pieces = sorted(piece for row in packed.rows for piece in row)
    seen = dict.fromkeys(range(len(lengths)), 0)
    for document, start, size in pieces:
        assert start == seen[document]  # in order, no gap, nothing twice
        assert size > 0
        seen[document] += size
    assert list(seen.values()) == lengths


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), seq=st.integers(1, 16))
def test_padding_is_less_than_a_row(lengths: list[int], seq: int) -> None:
    rows = pack(np.array(lengths), seq).rows
    assert sum(seq - sum(size for _, _, size in row) for row in rows) < seq


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), seq=st.integers(1, 16))
def test_cuts_are_counted(lengths: list[int], seq: int) -> None:
    packed = pack(np.array(lengths), seq)
    n_pieces = sum(map(len, packed.rows))
    assert n_pieces == sum(-(-length // seq) for length in lengths) + packed.n_cuts


def test_what_fits_exactly_is_not_cut() -> None:
    packed = pack(np.array([3, 5, 4, 4, 8, 2, 6]), 8)
    assert packed.n_cuts == 0
    assert {tuple(sorted(size for _, _, size in row)) for row in packed.rows} == {(8,), (3, 5), (4, 4), (2, 6)}


def test_few_documents_are_cut_where_a_stream_cuts_one_a_row() -> None:
    """Log-normal lengths, median 300 tokens, rows of 2,048: a stream cuts 488 of 1,000 rows' ends or more."""
    lengths = np.maximum(2, np.random.Generator(np.random.PCG64(1)).lognormal(np.log(300), 1.0, 4000)).astype(np.int64)
    packed = pack(lengths, 2048)
    ends = np.cumsum(lengths)
    cut_by_stream = np.setdiff1d(np.arange(2048, ends[-1], 2048), ends).size - int((lengths // 2048).sum())
    assert cut_by_stream > 700
    assert packed.n_cuts < 0.02 * cut_by_stream


@pytest.mark.parametrize("seq", [1, 7, 4096])
def test_one_document(seq: int) -> None:
    packed = pack(np.array([4096]), seq)
    assert packed.n_cuts == 0
    assert len(packed.rows) == -(-4096 // seq)
