"""Mixtures: exact shares, any rank, any order of asking; and what can't be mixed."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.data import IGNORE, Loader, TokenShards
from plait.data.mixture import Mixture, Part, is_mixture, open_mixture, place_in_mixture

MakeShards = Callable[..., TokenShards]
WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


@given(weights=WEIGHTS, n=st.integers(1, 300))
def test_shares_are_exact_to_a_row_a_source(weights: list[float], n: int) -> None:
    places = [place_in_mixture(weights, i) for i in range(n)]
    counts = Counter(source for source, _ in places)
    for source, weight in enumerate(weights):
        assert abs(counts[source] - n * weight / sum(weights)) <= source + 1


@given(weights=WEIGHTS, n=st.integers(1, 300))
def test_each_source_gives_its_rows_in_order(weights: list[float], n: int) -> None:
    places = [place_in_mixture(weights, i) for i in range(n)]
    for source in range(len(weights)):
        rows = [row for each, row in places if each == source]
        assert rows == list(range(len(rows)))


def test_shares_of_a_million_rows() -> None:
    weights = [0.5, 0.3, 0.15, 0.05]
    n = 1_000_000
    rows_before = Counter(place_in_mixture(weights, i)[0] for i in range(n, n + 2000))
    assert [rows_before[k] for k in range(4)] == [1000, 600, 300, 100]


@pytest.mark.parametrize("packing", ["stream", "planned"])
def test_batches_are_the_same_on_any_number_of_ranks(make_shards: MakeShards, packing: str) -> None:
    mixture = Mixture((Part(make_shards([5, 9, 30]), 0.7), Part(make_shards([50]), 0.3)), packing, "s")  # type: ignore[arg-type]
    whole = [Loader(mixture, seq=8, batch=6, seed=4).batch(k) for k in range(8)]
    for world in (2, 3, 6):
        fresh = Loader(mixture, seq=8, batch=6, seed=4)
        for k in (7, 0, 3):
            parts = [fresh.batch(k, rank, world) for rank in range(world)]
            assert np.array_equal(np.concatenate([part.token_ids for part in parts]), whole[k].token_ids)
            assert np.array_equal(np.concatenate([part.labels for part in parts]), whole[k].labels)
            assert [s.tolist() for part in parts for s in part.segment_lengths] == [
                s.tolist() for s in whole[k].segment_lengths
            ]
    assert all(sum(lengths) == 8 for batch in whole for lengths in batch.segment_lengths)


def test_tokens_of_each_source_follow_the_weights(make_shards: MakeShards) -> None:
    a, b = make_shards([80] * 4), make_shards([14] * 4)  # 16 tokens: a row is one document of b, or has one bos in five
    mixture = Mixture((Part(b, 0.25), Part(a, 0.75)))
    batch = Loader(mixture, seq=16, batch=400, seed=0).batch(0)
    assert (
        sum(ids[0] == 1 and labels[-1] == IGNORE for ids, labels in zip(batch.token_ids, batch.labels, strict=True))
        == 100
    )


def test_long_share_is_the_share_of_tokens_from_long_documents(make_shards: MakeShards) -> None:
    shards = make_shards([8] * 40 + [98] * 4)
    mixture = open_mixture(str(shards.path), long_tokens=50, long_share=0.6)
    assert [(p.weight, p.min_tokens, p.max_tokens) for p in mixture.parts] == [(0.6, 50, 0), (0.4, 0, 49)]
    batch = Loader(mixture, seq=10, batch=1000, seed=0).batch(0)
    long_rows = [lengths for lengths, ids in zip(batch.segment_lengths, batch.token_ids, strict=True) if 1 not in ids]
    assert len(long_rows) == 540  # of 600: 100 tokens are ten rows, one of which begins with bos


def test_a_line_of_text_names_a_mixture(make_shards: MakeShards) -> None:
    a, b = make_shards([5]), make_shards([80, 3])
    mixture = open_mixture(f"{a.path}:0.25,{b.path}@10-:3", stage="x")
    assert [(p.shards.path, p.weight, p.min_tokens, p.max_tokens) for p in mixture.parts] == [
        (a.path, 0.25, 0, 0),
        (b.path, 3.0, 10, 0),
    ]
    assert is_mixture(f"{a.path}:1,{b.path}:2")
    assert not is_mixture(str(a.path))
    assert not is_mixture("default")
    assert not is_mixture("nowhere:0.5")


def test_what_cannot_be_mixed_is_named(make_shards: MakeShards) -> None:
    a = make_shards([5, 9])
    with pytest.raises(ValueError, match="greater than 0"):
        Mixture((Part(a, 0.0),))
    with pytest.raises(ValueError, match="must be a shards folder"):
        open_mixture("nowhere:0.5")
    with pytest.raises(ValueError, match="need packing"):
        open_mixture(f"{a.path}@3-:1", packing="stream")
    with pytest.raises(ValueError, match="no document has at least 100 tokens"):
        open_mixture(str(a.path), long_tokens=100, long_share=0.5)
    with pytest.raises(ValueError, match="both or neither"):
        open_mixture(str(a.path), long_tokens=100)
    with pytest.raises(ValueError, match="not both"):
        open_mixture(f"{a.path}@3-:1", long_tokens=8, long_share=0.5)


def test_padding_has_no_labels(make_shards: MakeShards) -> None:
    batch = Loader(Mixture((Part(make_shards([3])),)), seq=8, batch=2, seed=0).batch(0)
    assert batch.labels.tolist() == [[*make_shards([3]).document(0)[1:].tolist(), IGNORE, IGNORE, IGNORE, IGNORE]] * 2
    assert [s.tolist() for s in batch.segment_lengths] == [[5, 3], [5, 3]]
