import pytest

from plait.serve.plan import Place
from plait.serve.pools import Pool, Pools, PoolSizes


def test_numbers_are_taken_once_and_the_last_given_comes_first() -> None:
    pool = Pool(5)
    assert pool.take(0) == []
    assert sorted(pool.take(3)) == [0, 1, 2]
    pool.give([0])
    assert (pool.n_free, sorted(pool.free)) == (3, [0, 3, 4])
    assert pool.take(1) == [0]


def test_the_tier_below_is_the_next_that_exists() -> None:
    pools = Pools(PoolSizes(slots=2, pages=3, host_pages=4, disk_slots=5))
    assert pools.below("state", "device") == "disk"
    assert pools.below("page", "device") == "host"
    assert pools.below("page", "host") is None
    pools["page", "host"].take(4)
    pools.give("page", [Place("host", 2)])
    assert pools["page", "host"].free == [2]


@pytest.mark.parametrize(("name", "value"), [("slots", 0), ("pages", 0), ("host_slots", -1), ("disk_pages", -1)])
def test_sizes_that_no_engine_can_have(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} must be at least"):
        PoolSizes(**{"slots": 1, "pages": 1, name: value})
