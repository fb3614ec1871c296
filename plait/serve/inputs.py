"""A step's rows as the tensors the model reads, with one copy from host to device and little Python.

Page tables stay on the device, a line per slot, and only what is new in them is sent. What else a step needs goes in
one piece through pinned memory, so that sending it waits for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from plait.model.layout import Exports, Layout
from plait.serve.plan import Row


class PageTables:
    """Which pages each slot's sequence has: on the host, and the same on the device."""

    def __init__(self, n_slots: int, max_pages: int, n_pages: int, device: torch.device) -> None:
        """Pages run from 0 to n_pages - 1; the one behind them is the spare, with which the tables begin: the last
        slot's at once, another's when that is first used. They may have 64 MiB, which only slots in use shall take.
        """
        self.n_pages = n_pages
        self.host = np.empty((n_slots, max_pages), np.int32)
        self._is_begun = [False] * n_slots
        self._begin(n_slots - 1)
        self.forget()
        if device.type == "cpu":
            self.device = torch.from_numpy(self.host)  # the same memory
        else:
            self.device = torch.full(self.host.shape, n_pages, dtype=torch.int32, device=device)

    def _begin(self, slot: int) -> None:
        self.host[slot], self._is_begun[slot] = self.n_pages, True

    def forget(self) -> None:
        """Send all pages anew."""
        self._known: list[tuple[Sequence[int], int]] = [((), 0)] * len(self.host)  # a slot's list, how much is known

    def learn(self, slot: int, pages: Sequence[int], n: int, news: list[int]) -> None:
        """Note the first n of a slot's pages; what the device doesn't know goes into `news` as place, page, place, page
        and so on. A list that is the same object as before has at most grown; others are compared.
        """
        known, n_same = self._known[slot]
        if pages is not known and list(pages[:n_same]) != list(known[:n_same]):
            n_same = 0
        if n <= n_same:
            return
        self._known[slot] = pages, n
        if n > self.host.shape[1]:
            raise ValueError(f"{n} pages of one sequence; max_context has room for {self.host.shape[1]}")
        if not self._is_begun[slot]:
            self._begin(slot)
        line = self.host[slot]
        line[n_same:n] = new = pages[n_same:n]
        if min(new) < 0 or max(new) >= self.n_pages:
            raise ValueError(f"page {min(new) if min(new) < 0 else max(new)} is not between 0 and {self.n_pages - 1}")
        if not self._is_shared:
            place = slot * len(line)
            for nth in range(n_same, n):
                news += (place + nth, pages[nth])

    @property
    def _is_shared(self) -> bool:
        return self.device.device.type == "cpu"

    def send(self, news: Tensor) -> None:
        """news [2 n] int64 on the device, as `learn` wrote them."""
        self.device.view(-1).index_copy_(0, news[::2], news[1::2].to(torch.int32))


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device, without waiting: through pinned memory, which torch reuses once it has arrived."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def sent_together(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """One-dimensional arrays on the device, dtypes kept, in one copy."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return unpacked(sent(packed(arrays), device), arrays)


def packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays as bytes, one behind the other, each at a multiple of 16 bytes: Triton compiles for other addresses apart,
    and requests would wait for that.
    """
    places = _places(arrays)
    out = np.empty(places[-1], np.uint8)
    for array, place in zip(arrays, places, strict=False):
        out[place : place + array.nbytes] = array.view(np.uint8)
    return out


def unpacked(there: Tensor, arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Views of what `packed` made, wherever it has gone."""
    return [
        there[place : place + array.nbytes].view(TORCH_TYPES[array.dtype.name])
        for array, place in zip(arrays, _places(arrays), strict=False)
    ]


def _places(arrays: Sequence[np.ndarray]) -> list[int]:
    return np.cumsum([0, *(-(-array.nbytes // 16) * 16 for array in arrays)]).tolist()


TORCH_TYPES = {"int64": torch.int64, "int32": torch.int32, "bool": torch.bool}


class Rows:
    """The numbers of a step's rows on the host, gathered in one pass."""

    def __init__(self, rows: Sequence[Row], tables: PageTables, page_size: int, seats: dict[int, int]) -> None:
        """`seats`: where each sequence's last drawn token is kept. Raises ValueError for rows that contradict
        themselves.
        """
        self.rows = rows
        self.n_decode = 0
        slots: list[int] = []
        contexts: list[int] = []
        lengths: list[int] = []
        known: list[int] = []  # token ids, -1 where the device holds it
        seated: list[int] = []
        news: list[int] = []
        self.exports: list[tuple[int, int, int]] = []  # segment (counted behind those that decode), tokens, slot
        most_pages = 0
        for row in rows:
            total = row.context_len + row.n_tokens
            if row.mode == "decode":
                if self.n_decode != len(slots):
                    raise ValueError(f"row of sequence {row.sequence}: decode rows come first in a plan")
                self.n_decode += 1
            n_pages = -(-total // page_size)
            if len(row.pages) < n_pages:
                raise ValueError(f"sequence {row.sequence}: {len(row.pages)} pages don't hold {total} tokens")
            if row.export is not None:
                if row.mode == "decode" or not 0 < row.export[0] < row.n_tokens:
                    raise ValueError(f"sequence {row.sequence}: no state inside {row.n_tokens} tokens at {row.export}")
                self.exports.append((len(slots) - self.n_decode, *row.export))
            if row.tokens is None:
                known.append(-1)
                seated.append(seats[row.sequence])
            else:
                known += row.tokens
                seated += [0] * row.n_tokens
            slots.append(row.slot)
            contexts.append(row.context_len)
            lengths.append(row.n_tokens)
            most_pages = max(most_pages, n_pages)
            tables.learn(row.slot, row.pages, n_pages, news)
        if len(known) != sum(lengths):
            raise ValueError(f"the rows say {sum(lengths)} tokens and bring {len(known)}")
        self.n_tokens = len(known)
        self.width = most_pages
        self.starts = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(lengths, out=self.starts[1:])
        self.slots = np.array(slots, np.int64)
        self.contexts = np.array(contexts, np.int32)
        self.known, self.seats = np.array(known, np.int64), np.array(seated, np.int64)
        self.lengths = lengths
        self.news = np.array(news, np.int64)
        self.some_on_device = -1 in known

    def fresh(self) -> np.ndarray:
        return np.array([row.mode == "fresh" for row in self.rows])

    def exported(self) -> list[np.ndarray]:
        """What `Exports` has, in its order."""
        at = np.array(self.lengths[self.n_decode :], np.int32)
        segments, tokens, slots = (np.array(column, np.int64) for column in zip(*self.exports, strict=True))
        at[segments] = tokens
        return [at, segments, slots]


def layout_of(rows: Rows, tables: PageTables, last: Tensor) -> tuple[Tensor, Layout]:
    """token_ids [1, n_tokens] and their layout, of exactly these rows; `last` [n_seats] holds drawn tokens."""
    sections: list[np.ndarray] = [rows.known, rows.slots, rows.starts, rows.contexts, rows.fresh()]
    if rows.exports:
        sections += rows.exported()
    if rows.some_on_device:
        sections.append(rows.seats)
    if len(rows.news):
        sections.append(rows.news)
    token_ids, slots, starts, contexts, fresh, *more = sent_together(sections, last.device)
    if len(rows.news):
        tables.send(more.pop())
    exports = Exports(*more[:3]) if rows.exports else None
    if rows.some_on_device:
        token_ids = torch.where(token_ids < 0, last[more.pop()], token_ids)
    layout = Layout.flat(
        n_tokens=rows.n_tokens,
        n_decode=rows.n_decode,
        cu_seqlens=starts,
        slots=slots,
        fresh=fresh,
        context_lens=contexts,
        page_table=tables.device[:, : rows.width][slots],
        exports=exports,
        lengths=(rows.starts.tolist(), rows.contexts.tolist()),
    )
    return token_ids[None], layout
