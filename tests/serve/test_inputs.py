"""Rows as tensors: packing for one copy, and page tables of which only what is new is sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.model.layout import Layout, Segment
from plait.serve.inputs import PageTables, Rows, layout_of, packed, unpacked
from plait.serve.plan import Row

CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.sampled_from(["int64", "int32", "bool"]), st.integers(1, 9)), min_size=1, max_size=6))
def test_packed_arrays_come_out_as_they_were(kinds: list[tuple[str, int]]) -> None:
    arrays = [np.random.default_rng(i).integers(0, 2, n).astype(kind) for i, (kind, n) in enumerate(kinds)]
    views = unpacked(torch.from_numpy(packed(arrays)), arrays)
    for array, view in zip(arrays, views, strict=True):
        assert view.numpy().dtype == array.dtype
        assert view.tolist() == array.tolist()


class DistantTables(PageTables):
    """Tables whose device half is memory of its own, as on a GPU."""

    _is_shared = False  # type: ignore[assignment]

    def __init__(self, n_slots: int, max_pages: int, n_pages: int) -> None:
        super().__init__(n_slots, max_pages, n_pages, CPU)
        self.device = self.device.clone()


ROWS = st.lists(
    st.tuples(st.sampled_from(["fresh", "resume", "decode", "device"]), st.integers(1, 9), st.integers(1, 20)),
    min_size=1,
    max_size=5,
)


def as_rows(drawn: Sequence[tuple[str, int, int]]) -> list[Row]:
    rows = []
    for slot, (mode, n, context) in enumerate(drawn):
        n = 1 if mode in ("decode", "device") else n
        context = 0 if mode == "fresh" else context
        tokens = None if mode == "device" else list(range(slot, slot + n))
        pages = [slot * 10 + i for i in range(9)]
        rows.append(Row(slot, "decode" if mode == "device" else mode, n, context, slot, pages, tokens, True))  # type: ignore[arg-type]
    return sorted(rows, key=lambda row: row.mode != "decode")


@given(drawn=ROWS)
def test_the_layout_is_the_one_of_its_segments(drawn: list[tuple[str, int, int]]) -> None:
    rows = as_rows(drawn)
    last = torch.arange(100, 105)
    tables = DistantTables(6, 12, 60)
    token_ids, layout = layout_of(Rows(rows, tables, 4, {i: i for i in range(5)}), tables, last)
    starts = np.cumsum([0, *(row.n_tokens for row in rows)]).tolist()
    n_pages = max(-(-(row.context_len + row.n_tokens) // 4) for row in rows)
    segments = [
        Segment(start, row.n_tokens, row.mode, row.slot, row.context_len, tuple(row.pages[:n_pages]))
        for start, row in zip(starts, rows, strict=False)
    ]
    expected = Layout.of(segments, 1, starts[-1])
    for name in ("cu_seqlens", "slots", "fresh", "context_lens", "prefill_cu_seqlens", "last_tokens"):
        assert getattr(layout, name).tolist() == getattr(expected, name).tolist(), name
        assert getattr(layout, name).dtype == getattr(expected, name).dtype, name
    assert (layout.n_decode, layout.n_tokens, layout.n_segments) == (
        expected.n_decode,
        expected.n_tokens,
        len(expected.segments),
    )
    for row, line in zip(rows, layout.page_table.tolist(), strict=True):
        n = -(-(row.context_len + row.n_tokens) // 4)
        assert line[:n] == row.pages[:n]
    tokens = [[100 + row.slot] if row.tokens is None else list(row.tokens) for row in rows]
    assert token_ids[0].tolist() == [token for of_row in tokens for token in of_row]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.booleans(), st.booleans()), max_size=20))
def test_the_devices_tables_follow_the_hosts(steps: list[tuple[int, int, bool, bool]]) -> None:
    """Lists that grow, equal lists that are other objects, and new pages: the device knows all that rows need."""
    tables = DistantTables(3, 12, 60)
    lists: list[list[int]] = [[], [], []]
    for number, (slot, n_more, is_new, is_copy) in enumerate(steps):
        if is_new or len(lists[slot]) + n_more > 12:
            lists[slot] = []
        elif is_copy:
            lists[slot] = list(lists[slot])
        lists[slot] += [(number * 7 + i) % 60 for i in range(n_more)]
        news: list[int] = []
        tables.learn(slot, lists[slot], len(lists[slot]), news)
        if news:
            tables.send(torch.tensor(news))
        assert tables.device[slot, : len(lists[slot])].tolist() == lists[slot]
        assert tables.host[slot, : len(lists[slot])].tolist() == lists[slot]
    for slot, pages in enumerate(lists):
        news = []
        tables.learn(slot, pages, len(pages), news)
        assert news == []


def test_a_table_begins_with_the_spare_when_its_slot_is_first_used() -> None:
    tables = PageTables(3, 4, 8, CPU)
    assert tables.device[2].tolist() == [8] * 4  # the spare slot's
    tables.host[:2] = -7  # whatever lay there
    tables.learn(1, [5], 1, [])
    assert tables.device[1].tolist() == [5, 8, 8, 8]
    tables.forget()
    tables.learn(1, [6, 7], 2, [])
    assert tables.device[1].tolist() == [6, 7, 8, 8]
    assert tables.device[0].tolist() == [-7] * 4


def test_decode_rows_come_first() -> None:
    tables = PageTables(2, 4, 8, CPU)
    rows = [Row(0, "fresh", 2, 0, 0, [0], [1, 2], True), Row(1, "decode", 1, 3, 1, [1], [5], True)]
    with pytest.raises(ValueError, match="sequence 1: decode rows come first"):
        Rows(rows, tables, 4, {})
