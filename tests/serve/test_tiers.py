"""Copies of states and pages: every way between tiers is exact, in order, and names the places it can't reach."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.config import ModelConfig
from plait.model.state import State
from plait.serve.plan import Copy, Place
from plait.serve.tiers import Tiers

CONFIG = ModelConfig(
    vocab_size=50, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=2, attn_offset=1,
    n_experts=2, d_state=4, dtype="float32",
)  # fmt: skip
SIZES = {"device": 4, "host": 3, "disk": 3}


def make_tiers(disk: Path | None = None) -> Tiers:
    state = State.empty(CONFIG, n_slots=4, n_pages=4, page_size=2, kv_dtype=torch.bfloat16)
    for seed, pool in enumerate((state.conv, state.ssm, state.k, state.v)):
        pool.copy_(torch.randn(pool.shape, generator=torch.Generator().manual_seed(seed)))
    tiers = Tiers(state, host_states=3, host_pages=3, disk=disk)
    for pool in tiers.host.values():
        pool.fill_(torch.nan)
    return tiers


def places() -> st.SearchStrategy[Place]:
    return st.sampled_from([Place(tier, n) for tier, size in SIZES.items() for n in range(size)])  # type: ignore[arg-type]


@given(data=st.data())
def test_any_chain_of_copies_is_that_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Copies run in order though many travel together: each place holds what the same steps put in a dictionary."""
    tiers = make_tiers(tmp_path_factory.mktemp("tier"))
    parts = {"state": (tiers.state.conv, tiers.state.ssm), "page": (tiers.state.k, tiers.state.v)}
    books = {
        kind: {Place("device", n): [pool[:, n].clone() for pool in pools] for n in range(4)}
        for kind, pools in parts.items()
    }
    copies = []
    for _ in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["state", "page"]))
        source, target = data.draw(st.sampled_from(sorted(books[kind]))), data.draw(places())
        books[kind][target] = books[kind][source]
        copies.append(Copy(kind, source, target))
    tiers.run(copies)
    for kind, book in books.items():
        for place, expected in book.items():
            here = tiers._read(kind, place)
            assert all(torch.equal(a, b) for a, b in zip(here.values(), expected, strict=True))
    tiers.close()


@pytest.mark.parametrize(
    ("kind", "place", "message"),
    [
        ("state", Place("device", 4), "there are 4 places for a state on the device"),
        ("page", Place("host", -1), "there are 3 places for a page on the host"),
        ("state", Place("disk", 0), "keeps nothing on disk"),
    ],
)
def test_places_that_are_not_there_are_refused(kind: str, place: Place, message: str) -> None:
    tiers = make_tiers()
    before = tiers.state.ssm.clone()
    for source, target in product([Place("device", 0)], [place]):
        with pytest.raises(ValueError, match=message):
            tiers.run([Copy(kind, source, target)])  # type: ignore[arg-type]
    assert torch.equal(tiers.state.ssm, before)


def test_a_failing_disk_is_told_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiers = make_tiers(tmp_path / "tier")

    def full(pieces: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("plait.serve.tiers.save_file", full)
    tiers.run([Copy("state", Place("device", 0), Place("disk", 0))])
    with pytest.raises(OSError, match="no space left"):
        tiers.run([Copy("state", Place("disk", 0), Place("device", 1))])
    assert list((tmp_path / "tier").iterdir()) == []


def test_what_an_earlier_engine_left_on_disk_is_removed_and_nothing_else(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in ("state_3.safetensors", "page_0.safetensors", "page_7.tmp")]
    others = [tmp_path / name for name in ("model.safetensors", "notes.tmp", "state.txt")]
    for path in (*mine, *others):
        path.touch()
    make_tiers(tmp_path).close()
    assert sorted(tmp_path.iterdir()) == sorted(others)
