import pytest

from plait.accounting import kv_bytes, recurrent_bytes
from plait.config import ModelConfig, presets
from plait.serve.fit import GIB, Fitted, fit_pools
from plait.serve.options import EngineOptions

MINI = presets["jamba-1.5-mini"]


def fitted(config: ModelConfig = MINI, gib: float = 20, **options: object) -> Fitted:
    return fit_pools(
        config, EngineOptions("m", **options), page_size=16, dtype="bfloat16", kv_dtype="bfloat16",
        free_bytes=int(gib * GIB),
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("gib", [4.5, 5, 20, 60])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_what_is_set_aside_fits_and_holds_the_longest_sequence(gib: float, prefix_cache: bool) -> None:
    got = fitted(gib=gib, prefix_cache=prefix_cache)
    used = got.sizes.slots * got.state_bytes + got.sizes.pages * got.page_bytes
    assert 0.95 * min(gib, 16 * 4) * GIB < used <= gib * GIB
    assert got.max_context == MINI.max_context
    assert got.sizes.pages * 16 >= got.max_context
    assert got.sizes.slots > 16 if prefix_cache and gib > 5 else got.sizes.slots >= 16
    assert (got.page_bytes, got.state_bytes) == (kv_bytes(MINI, 16), recurrent_bytes(MINI))


def test_a_context_that_does_not_fit() -> None:
    got = fitted(gib=2)  # the model's own 256K would take 4 GiB
    assert 100_000 < got.max_context < MINI.max_context
    assert got.max_context <= got.sizes.pages * 16
    with pytest.raises(ValueError, match=r"max_context=262144 with max_running=16 needs 4.24 GiB .* there are 2.00"):
        fitted(gib=2, max_context=262_144)
    with pytest.raises(ValueError, match="needs"):
        fitted(gib=0.1)


def test_a_cache_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cache_tokens=99999999999 take .* GiB, there are"):
        fitted(cache_tokens=99_999_999_999)
    with pytest.raises(ValueError, match="cache_tokens=64 can't hold one answer of max_context=200 tokens"):
        fitted(cache_tokens=64, max_context=200)
    asked = EngineOptions("m", cache_tokens=200_000, max_context=100_000)  # 3.05 GiB
    sizes = {"page_size": 16, "dtype": "bfloat16", "kv_dtype": "bfloat16", "free_bytes": 2 * GIB}
    with pytest.raises(ValueError, match=r"take 3.05 GiB, there are 1.76"):
        fit_pools(MINI, asked, **sizes)  # type: ignore[arg-type]
    assert fit_pools(MINI, asked, **sizes, all_bytes=8 * GIB).sizes.pages == 12_500  # type: ignore[arg-type]


def test_given_sizes_are_taken_as_they_are() -> None:
    got = fitted(cache_tokens=1000, cached_states=5, max_running=3, host_gib=1, disk="d", disk_gib=2)
    assert (got.sizes.pages, got.sizes.slots, got.max_context) == (63, 8, 1008)
    host = got.sizes.host_slots * got.state_bytes + got.sizes.host_pages * got.page_bytes
    assert 0.97 * GIB < host <= GIB
    assert got.sizes.disk_pages == pytest.approx(2 * got.sizes.host_pages, abs=2)
    small = fitted(host_gib=1, disk="d", disk_gib=2, host_state_dtype="int8")
    assert small.host_state_bytes == recurrent_bytes(MINI, "bfloat16", "int8") < 0.35 * small.state_bytes
    assert small.sizes.host_slots * small.host_state_bytes == pytest.approx(0.2 * GIB, rel=0.05)
    assert small.sizes.disk_slots > 2.9 * got.sizes.disk_slots
    assert small.sizes.host_pages == got.sizes.host_pages
    assert fitted(prefix_cache=False).sizes.slots == 16
    assert fitted(prefix_cache=False, n_drafts=3).sizes.slots == 32  # else no draft would ever have a place


def test_int8_pages_are_counted_with_their_scales() -> None:
    options = EngineOptions("m", cache_tokens=1600)
    sizes = {"page_size": 16, "dtype": "bfloat16", "kv_dtype": "int8", "free_bytes": 20 * GIB}
    n_heads = MINI.n_attention_layers * MINI.n_kv_heads
    page_bytes = 2 * 16 * n_heads * (MINI.d_head + 4)
    assert fit_pools(MINI, options, **sizes).page_bytes == page_bytes  # type: ignore[arg-type]
    assert fit_pools(MINI, options, **sizes, split=8).page_bytes == page_bytes  # type: ignore[arg-type]
    assert fit_pools(MINI, options, **sizes, split=16).page_bytes == 2 * page_bytes  # a head is not split  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"host_state_dtype": "int8"}, "give host_gib, or disk"),
        ({"host_state_dtype": "int4", "host_gib": 1}, "host_state_dtype='int4' must be float32 or int8"),
        ({"disk": "d"}, "go together"),
    ],
)
def test_options_that_contradict_each_other(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineOptions("m", **given)  # type: ignore[arg-type]


def test_models_with_one_kind_of_memory() -> None:
    only_attention = fitted(ModelConfig(**{**vars(MINI), "attn_period": 1, "attn_offset": 0}))
    assert only_attention.state_bytes == 0
    only_mamba = fitted(ModelConfig(**{**vars(MINI), "attn_period": 99, "attn_offset": 98}))
    assert (only_mamba.page_bytes, only_mamba.max_context) == (0, MINI.max_context)
