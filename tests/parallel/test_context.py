"""Sequences cut over processes: the pieces, the fold of states, and a whole mixer in fp64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.parallel.context import Piece, _pieces, fold

ROWS = [[32], [3, 29], [16, 16], [1, 2, 14, 1, 14], [12, 8, 12]]


CASES = {world: [{"name": "scan", "kind": "scan", "lengths": ROWS}] for world in (2, 4)}


@pytest.mark.parametrize("world", [2, 4])
def test_a_cut_mixer_equals_a_whole_one(found: Callable[[int, str], Any], world: int) -> None:
    """Outputs, and gradients of input and parameters, within 1e-12 in fp64."""
    for result in found(world, "scan"):
        assert result["difference"] < 1e-12


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4))
def test_pieces_of_all_cuts_are_the_documents(lengths: list[int], cuts: int) -> None:
    total = sum(lengths)
    bounds = [total * i // cuts for i in range(cuts + 1)]
    pieces = [piece for a, b in pairwise(bounds) for piece in _pieces(lengths, a, b)]
    assert sum(piece.length for piece in pieces) == total
    assert [p.start for p in pieces] == [0, *torch.tensor([p.length for p in pieces]).cumsum(0).tolist()[:-1]]
    firsts = [0, *torch.tensor(lengths).cumsum(0).tolist()[:-1]]
    assert sorted({p.first for p in pieces}) == firsts


def test_a_piece_knows_where_its_document_began() -> None:
    assert _pieces([3, 7], 2, 6) == [Piece(first=0, start=2, length=1), Piece(first=3, start=3, length=3)]


def test_fold_is_the_recurrence() -> None:
    ended, decay = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([0.5, 0.25, 0.0])
    assert fold(ended[:, None], decay[:, None])[:, 0].tolist() == [0.0, 1.0, 10.25]
