"""Copies of states and pages: every way between tiers is exact, in order, and names the places it can't reach."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.accounting import recurrent_bytes
from plait.config import ModelConfig
from plait.model import Layout, Segment
from plait.model.checkpoint import load_model
from plait.model.state import State
from plait.serve.build import find_model
from plait.serve.plan import Copy, Place
from plait.serve.tiers import Tiers, int8_state

CONFIG = ModelConfig(
    vocab_size=50, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=2, attn_offset=1,
    n_experts=2, d_state=4, dtype="float32",
)  # fmt: skip
SIZES = {"device": 4, "host": 3, "disk": 3}


def make_tiers(disk: Path | None = None, *, int8_states: bool = False) -> Tiers:
    state = State.empty(CONFIG, n_slots=4, n_pages=4, page_size=2, kv_dtype=torch.bfloat16)
    for seed, pool in enumerate((state.conv, state.ssm, state.k, state.v)):
        pool.copy_(torch.randn(pool.shape, generator=torch.Generator().manual_seed(seed)))
    tiers = Tiers(state, host_states=3, host_pages=3, disk=disk, int8_states=int8_states)
    for pool in tiers.host.values():
        pool.fill_(torch.nan if pool.is_floating_point() else 99)
    return tiers


def read(tiers: Tiers, kind: str, place: Place) -> list[torch.Tensor]:
    """What lies there, over all layers."""
    names = tiers.parts[kind]
    if place.tier == "device":
        return [getattr(tiers.state, name)[:, place.number] for name in names]
    if place.tier == "host":
        return [tiers.host[name][place.number] for name in names]
    kept = tiers._load(kind, place.number)
    return [kept[name] for name in names]


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
            assert all(torch.equal(a, b) for a, b in zip(read(tiers, kind, place), expected, strict=True))
    tiers.close()


def test_int8_states_come_back_within_half_a_step_and_the_rest_as_it_was(tmp_path: Path) -> None:
    """Through every tier; between host and disk, and the second time round, not a bit changes."""
    tiers = make_tiers(tmp_path, int8_states=True)
    device, host, disk = ([Place(tier, n) for n in range(3)] for tier in SIZES)  # type: ignore[arg-type]
    state = tiers.state
    conv, ssm, k, v = (pool[:, n].clone() for pool, n in ((state.conv, 0), (state.ssm, 0), (state.k, 1), (state.v, 1)))
    tiers.run([
        Copy("state", device[0], host[1]), Copy("state", host[1], disk[2]), Copy("state", disk[2], host[0]),
        Copy("state", host[0], device[1]), Copy("state", device[0], disk[0]), Copy("state", disk[0], device[2]),
        Copy("page", device[1], host[2]), Copy("page", host[2], device[2]),
    ])  # fmt: skip
    there = state.ssm[:, 1]
    assert ((there - ssm).abs() <= ssm.abs().amax(-1, keepdim=True) / 253).all()
    assert not torch.equal(there, ssm)
    assert torch.equal(state.ssm[:, 2], there)
    assert all(torch.equal(state.conv[:, n], conv) for n in (1, 2))
    assert torch.equal(state.k[:, 2], k)
    assert torch.equal(state.v[:, 2], v)
    assert all(torch.equal(tiers.host[name][0], tiers.host[name][1]) for name in ("conv", "ssm", "ssm_scales"))
    again = there.clone()
    tiers.run([Copy("state", device[1], host[0]), Copy("state", host[0], device[0])])
    assert torch.equal(state.ssm[:, 0], again)
    kept = sum(tiers.host[name][0].nbytes for name in tiers.kept["state"])
    assert kept == recurrent_bytes(CONFIG, "float32", "int8")
    tiers.close()


def test_a_trained_model_hardly_notices_int8_states() -> None:
    """The demo's logits of 24 tokens behind a prompt of 48, its state once through the host."""
    model = load_model(find_model("demo"), dtype=torch.float32).eval()
    state = State.empty(model.config, n_slots=2, n_pages=5)
    tokens, pages = torch.randint(3, 512, (1, 72), generator=torch.Generator().manual_seed(0)), tuple(range(5))

    def logits(start: int, end: int) -> torch.Tensor:
        segment = Segment(0, end - start, "resume" if start else "fresh", 0, start, pages)
        layout = Layout.of([segment], 1, end - start, torch.device("cpu"))
        return model(tokens[:, start:end], layout, state).logits[0]

    with torch.inference_mode():
        logits(0, 48)
        before = state.save_slot(0)
        exact = logits(48, 72)
        state.load_slot(0, before)
        tiers = Tiers(state, host_states=1, int8_states=True)
        tiers.run(
            [Copy("state", Place("device", 0), Place("host", 0)), Copy("state", Place("host", 0), Place("device", 0))]
        )
        assert not torch.equal(state.ssm[:, 0], before.ssm)
        restored = logits(48, 72)
    assert 0 < (restored - exact).abs().max() < 0.02
    assert torch.equal(restored.argmax(-1), exact.argmax(-1))


def test_an_int8_state_of_odd_values() -> None:
    """Zeros stay zeros, tiny and huge channels keep their precision, and what isn't finite isn't afterwards."""
    sizes = torch.tensor([1, 0, 1e-30, 1e30, 1, 1])
    ssm = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)) * sizes[:, None]
    ssm[4, 3], ssm[5, 7] = torch.nan, -torch.inf
    values, scales = int8_state(ssm)
    back = values.float() * scales[:, None]
    assert values.dtype == torch.int8
    assert (back[1] == 0).all()
    for channel in (0, 2, 3):
        assert ((back - ssm).abs()[channel] <= ssm[channel].abs().max() / 253).all()
        assert values[channel].abs().max() == 127
    assert not back[4:].isfinite().any()


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
    assert [path.name for path in (tmp_path / "tier" / "engine_0").iterdir()] == ["lock"]


def test_what_an_earlier_engine_left_on_disk_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for folder in ("engine_0", "engine_1", "other"):
        (tmp_path / folder).mkdir()
        for name in ("state_3.safetensors", "page_7.tmp", "model.safetensors", "notes.tmp"):
            (tmp_path / folder / name).touch()
    make_tiers(tmp_path).close()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    others = {f"{folder}/{name}" for folder in ("engine_0", "engine_1") for name in ("model.safetensors", "notes.tmp")}
    assert left == others | {f"other/{path.name}" for path in (tmp_path / "other").iterdir()}


def test_engines_that_are_given_one_folder_do_not_share_it(tmp_path: Path) -> None:
    """As replicas of a server, or processes that share a model, are: each finds what it wrote itself."""
    tiers = [make_tiers(tmp_path) for _ in range(3)]
    for n, one in enumerate(tiers):
        one.state.ssm.fill_(n)
        one.run([Copy("state", Place("device", 0), Place("disk", 0))])
    tiers[1].close()
    later = make_tiers(tmp_path)
    assert [one.disk and one.disk.name for one in (*tiers, later)] == ["engine_0", "engine_1", "engine_2", "engine_1"]
    later.run([Copy("state", Place("device", 0), Place("disk", 0))])
    for n, one in ((0, tiers[0]), (2, tiers[2])):
        one.run([Copy("state", Place("disk", 0), Place("device", 1))])
        assert (one.state.ssm[:, 1] == n).all()
        one.close()
    later.close()


def test_a_file_is_no_folder_to_keep_things_in(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a folder")
    with pytest.raises(ValueError, match=r"disk='.*notes.txt' is a file"):
        make_tiers(file)
    assert file.read_text() == "not a folder"
