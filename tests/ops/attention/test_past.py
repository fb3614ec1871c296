"""On a CPU a chunk reads its past block by block: the same result, without a mask, in memory that does not grow."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from plait.ops.attention import paged_attention, sdpa
from plait.ops.attention.reference import quantize
from plait.ops.dispatch import force


def _chunk(n: int, context: int, *, page_size: int, int8: bool, d_head: int = 16) -> dict[str, torch.Tensor]:
    """Of one sequence, whose pages lie in reverse; 6 query heads, 2 of keys."""
    generator = torch.Generator().manual_seed(n + context)
    n_pages = -(-(n + context) // page_size)
    pages = torch.randn(2, n_pages, page_size, 2, d_head, generator=generator)
    cache = {"k_pages": pages[0], "v_pages": pages[1]}
    if int8:
        (k, k_scales), (v, v_scales) = map(quantize, pages)
        cache = {"k_pages": k, "v_pages": v, "k_scales": k_scales, "v_scales": v_scales}
    return cache | {
        "q": torch.randn(n, 6, d_head, generator=generator),
        "page_table": torch.arange(n_pages, dtype=torch.int32).flip(0)[None],
        "cu_seqlens": torch.tensor([0, n], dtype=torch.int32),
        "context_lens": torch.tensor([context], dtype=torch.int32),
    }


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("context", [1, 15, 16, 17, 48, 95])
@pytest.mark.parametrize(("past", "page_size"), [(16, 16), (1, 5), (32, 7)])
def test_blocks_of_any_size_join_to_the_whole(
    past: int, page_size: int, context: int, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "PAST", past)
    given = _chunk(23, context, page_size=page_size, int8=int8)
    with force(attention="sdpa"):
        got = paged_attention(**given)
    with force(attention="reference"):
        expected = paged_attention(**{k: t.double() if t.dtype == torch.float32 else t for k, t in given.items()})
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("int8", [False, True])
def test_memory_does_not_grow_with_the_context(int8: bool) -> None:
    peaks = [_peak(_chunk(256, context, page_size=16, int8=int8, d_head=32)) for context in (8192, 32768)]
    assert peaks[1] <= 1.02 * peaks[0]
    assert peaks[1] < 256 * 32768  # less than a mask of bytes alone would take


def _peak(given: dict[str, torch.Tensor]) -> int:
    """Bytes that the call had allocated at its worst moment."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, force(attention="sdpa"):
        paged_attention(**given)
    live = peak = 0
    assert profiled.profiler is not None
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("implementation", ["native", "sdpa", "reference"])
def test_sequences_without_queries_have_no_output(implementation: str) -> None:
    given = _chunk(0, 20, page_size=16, int8=False) | {"cu_seqlens": torch.tensor([0, 0], dtype=torch.int32)}
    with force(attention=implementation):
        assert paged_attention(**given).shape == (0, 6, 16)
