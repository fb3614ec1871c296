"""FlashInfer's kernels, where they are installed: what it is asked, what is refused, and results over pages."""

import functools
import sys
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.ops.attention import (
    IMPLEMENTATIONS,
    PAGED_IMPLEMENTATIONS,
    attention,
    flashinfer,
    paged_attention,
    reference,
)
from plait.ops.attention.cases import FORWARD, PAGED
from plait.ops.attention.flashinfer import Chunks, chunks, places
from plait.ops.case import Case, OpCases
from plait.ops.dispatch import force

REASON = flashinfer.why_not(torch.empty(0, dtype=torch.bfloat16, device="cuda" if torch.cuda.is_available() else "cpu"))
on_gpu = pytest.mark.skipif(REASON is not None, reason=f"flashinfer: {REASON}")


def test_sequences_without_queries_are_left_out_and_pages_are_counted() -> None:
    part = chunks([0, 1, 1, 33, 34], [63, 5, 0, 64], 16)
    assert part == Chunks(rows=[0, 2, 3], bounds=[0, 1, 33, 34], page_bounds=[0, 4, 6, 11], in_last_page=[16, 16, 1])


def test_page_numbers_stand_in_their_rows_of_the_table() -> None:
    part = Chunks(rows=[0, 2], bounds=[0, 1, 2], page_bounds=[0, 2, 5], in_last_page=[1, 1])
    assert places(part, 4, "cpu").tolist() == [0, 1, 8, 9, 10]


def test_a_table_too_narrow_for_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="a sequence has 3 pages and its row of the page table 2"):
        places(chunks([0, 1], [32], 16), 2, "cpu")


@given(
    fed=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 90)), min_size=1, max_size=6).filter(
        lambda fed: any(n for n, _ in fed)
    ),
    page_size=st.sampled_from([1, 7, 16]),
)
def test_every_token_of_the_sequences_with_queries_is_in_the_pages(fed: list[tuple[int, int]], page_size: int) -> None:
    bounds = torch.tensor([0, *(n for n, _ in fed)]).cumsum(0).tolist()
    context = [c for _, c in fed]
    part = chunks(bounds, context, page_size)
    assert [b - a for a, b in pairwise(part.bounds)] == [n for n, _ in fed if n]
    held = [
        (b - a - 1) * page_size + last
        for (a, b), last in zip(pairwise(part.page_bounds), part.in_last_page, strict=True)
    ]
    assert held == [n + c for n, c in fed if n]
    assert all(1 <= last <= page_size for last in part.in_last_page)
    table = torch.arange(len(fed) * 200).view(len(fed), 200)
    found = table.flatten()[places(part, 200, "cpu")]
    expected = [table[i, : -(-(n + c) // page_size)] for i, (n, c) in enumerate(fed) if n]
    assert torch.equal(found, torch.cat(expected))


def _paged_inputs(d_head: int = 64, dtype: torch.dtype = torch.bfloat16, pages: torch.dtype | None = None) -> dict:
    return {
        "q": torch.zeros(1, 2, d_head, dtype=dtype),
        "k_pages": torch.zeros(2, 4, 1, d_head, dtype=pages or dtype),
        "v_pages": torch.zeros(2, 4, 1, d_head, dtype=pages or dtype),
        "page_table": torch.zeros(1, 1, dtype=torch.int32),
        "cu_seqlens": torch.tensor([0, 1], dtype=torch.int32),
        "context_lens": torch.tensor([0], dtype=torch.int32),
    }


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (_paged_inputs(), None),
        (_paged_inputs(128, torch.float16), None),
        (_paged_inputs(24), "takes heads of 64, 128, 256, got d_head=24"),
        (_paged_inputs(pages=torch.int8), "keys and values of q's type, torch.bfloat16, got torch.int8"),
        (_paged_inputs() | {"v_pages": torch.zeros(2, 4, 1, 64)}, "got torch.float32"),
        (_paged_inputs() | {"k_pages": torch.zeros(2, 2, 4, 64).bfloat16().transpose(1, 2)}, "contiguous pages only"),
        ({name: torch.zeros(1, 2, 20).bfloat16() for name in "qkv"}, "got d_head=20"),
        ({name: torch.zeros(1, 2, 64).bfloat16() for name in "qkv"}, None),
    ],
)
def test_what_it_takes(inputs: dict, told: str | None) -> None:
    reason = flashinfer.why_not_these(inputs)
    assert (reason is None) if told is None else (told in (reason or ""))


def test_inputs_it_does_not_take_are_refused_by_the_op_itself() -> None:
    with pytest.raises(ValueError, match="'flashinfer' was asked for and can't run: takes heads of 64, 128, 256, got"):
        flashinfer.paged_attention(**_paged_inputs(24))
    with pytest.raises(ValueError, match="'flashinfer' was asked for and can't run: takes heads of"):
        flashinfer.attention(*(torch.zeros(1, 2, 24) for _ in "qkv"), torch.tensor([0, 1]))


@pytest.mark.parametrize("installed", [False, True])
def test_asked_for_where_it_can_not_run(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer, "_is_installed", lambda: installed)
    told = "needs a CUDA tensor, got one on cpu" if installed else "FlashInfer is not installed: pip install"
    with force(attention="flashinfer"), pytest.raises(ValueError, match=f"can't run: {told}"):
        paged_attention(**_paged_inputs())
    with force(attention="flashinfer"), pytest.raises(ValueError, match=f"can't run: {told}"):
        attention(*(torch.zeros(1, 2, 64) for _ in "qkv"), cu_seqlens=torch.tensor([0, 1], dtype=torch.int32))


@pytest.mark.parametrize("implementations", [IMPLEMENTATIONS, PAGED_IMPLEMENTATIONS])
def test_it_is_never_the_default(implementations: dict) -> None:
    """Before it stands one that runs everything."""
    names = list(implementations)
    assert names.index("flashinfer") > names.index("sdpa")
    assert implementations["sdpa"].why_not(torch.empty(0)) is None


def test_cases_it_takes_are_those_of_its_sizes_and_types() -> None:
    taken = [case.name for case in PAGED.cases if PAGED.takes("flashinfer", case, torch.bfloat16)]
    assert "chunks and decodes, heads of 64" in taken
    assert "mini chunk, 8K after 56K" in taken
    assert "chunk" not in taken
    assert not any("int8" in name for name in taken)
    assert all(PAGED.takes("sdpa", case, torch.bfloat16) for case in PAGED.cases)


def _step(lengths: list[int], context: list[int], seed: int, device: str = "cuda") -> tuple[dict, tuple]:
    n_pages = 64
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    k, v = torch.randn(2, n_pages, 16, 2, 64, generator=generator).bfloat16().to(device)
    inputs = {
        "q": torch.randn(sum(lengths), 6, 64, generator=generator).bfloat16().to(device),
        "k_pages": k,
        "v_pages": v,
        "page_table": torch.randperm(n_pages, generator=generator).int().view(4, -1)[: len(lengths)].to(device),
        "cu_seqlens": bounds.to(device),
        "context_lens": torch.tensor(context).int().to(device),
    }
    return inputs, (bounds.tolist(), context)


def _run(name: str, inputs: dict, on_host: tuple | None = None) -> torch.Tensor:
    with force(attention=name):
        return paged_attention(**inputs, on_host=on_host)


class _Wrapper:
    """What is used of FlashInfer's two wrappers, on the CPU: the same calls, and the reference's results."""

    def __init__(self, workspace: torch.Tensor, kv_layout: str, backend: str) -> None:
        assert (workspace.dtype, kv_layout) == (torch.uint8, "NHD")
        self.plans = 0

    def run(self, q: torch.Tensor, *cache: object) -> torch.Tensor:
        q_bounds, *pages = self.planned
        assert (q.shape[1:], q.dtype) == self.kind
        out = torch.full_like(q, torch.nan)
        for i, (a, b) in enumerate(pairwise(q_bounds.tolist())):
            k, v = self.of(i, *pages, *cache)
            out[a:b] = reference.attend(q[a:b], k, v)
        return out

    def _keep(
        self, n_heads: int, n_kv: int, d_head: int, causal: bool, q_data_type: torch.dtype, *counts: object
    ) -> None:
        assert causal
        assert n_heads % n_kv == 0
        assert all(t.dtype == torch.int32 for t in counts)  # type: ignore[attr-defined]
        self.plans += 1
        self.kind, self.planned = ((n_heads, d_head), q_data_type), counts


class _Paged(_Wrapper):
    def plan(self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
             head_dim_qk, page_size, *, causal, q_data_type) -> None:  # fmt: skip
        self._keep(num_qo_heads, num_kv_heads, head_dim_qk, causal, q_data_type, qo_indptr, paged_kv_indptr,
                   paged_kv_indices, paged_kv_last_page_len)  # fmt: skip

    def of(self, i, indptr, indices, last, cache) -> list[torch.Tensor]:
        ids = indices[indptr[i] : indptr[i + 1]].long()
        n = (len(ids) - 1) * cache[0].shape[1] + int(last[i])
        return [reference.read_pages(pages, None, ids, pages.dtype)[:n] for pages in cache]


class _Ragged(_Wrapper):
    def plan(self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, *, causal, q_data_type) -> None:
        self._keep(num_qo_heads, num_kv_heads, head_dim_qk, causal, q_data_type, qo_indptr, kv_indptr)

    def of(self, i, indptr, k, v) -> list[torch.Tensor]:
        return [t[indptr[i] : indptr[i + 1]] for t in (k, v)]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> flashinfer._Device:
    """FlashInfer's wrappers and the GPU replaced, so that what is asked of them shows."""
    package = SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=_Paged, BatchPrefillWithRaggedKVCacheWrapper=_Ragged)
    monkeypatch.setitem(sys.modules, "flashinfer", package)
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the only one")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(synchronize=lambda: None, record=lambda: None))
    place = flashinfer._Device(torch.device("cpu"))
    monkeypatch.setattr(flashinfer, "_device", lambda device: place)
    return place


def test_what_is_asked_of_its_wrappers_gives_the_references_results(stand_in: flashinfer._Device) -> None:
    for ops, run in ((FORWARD, flashinfer.attention), (PAGED, flashinfer.paged_attention)):
        for case in ops.cases:
            if case.large or not ops.takes("flashinfer", case, torch.bfloat16):
                continue
            inputs = ops.cast(case.inputs(torch.Generator().manual_seed(0)), "cpu", torch.bfloat16)
            assert torch.equal(run(**inputs), ops.run("reference", inputs)["out0"]), case.name
    assert (stand_in.packed.wrapper.plans, stand_in.paged.wrapper.plans) == (2, 3)


def test_lengths_are_planned_once_and_pages_read_every_time(stand_in: flashinfer._Device) -> None:
    inputs, on_host = _step([1, 0, 9, 1], [40, 7, 100, 200], 0, device="cpu")
    for _ in range(3):
        inputs["page_table"].copy_(inputs["page_table"].flip(0, 1))
        assert torch.equal(flashinfer.paged_attention(**inputs, on_host=on_host), _run("reference", inputs))
    assert stand_in.paged.wrapper.plans == 1
    inputs["context_lens"][0] += 1
    assert torch.equal(flashinfer.paged_attention(**inputs), _run("reference", inputs))
    assert stand_in.paged.wrapper.plans == 2


def test_a_step_without_tokens_plans_nothing(stand_in: flashinfer._Device) -> None:
    inputs, on_host = _step([0, 0], [40, 7], 0, device="cpu")
    assert flashinfer.paged_attention(**inputs, on_host=on_host).shape == (0, 6, 64)
    assert flashinfer.attention(*(torch.zeros(0, 2, 64) for _ in "qkv"), torch.tensor([0])).shape == (0, 2, 64)
    assert stand_in.paged.wrapper.plans == stand_in.packed.wrapper.plans == 0


def _its_cases() -> list:
    return [
        pytest.param(ops, case, dtype, id=f"{'paged ' if ops is PAGED else ''}{case.name}-{str(dtype)[6:]}")
        for ops in (FORWARD, PAGED)
        for case in ops.cases
        for dtype in (torch.bfloat16, torch.float16)
        if not case.large and ops.takes("flashinfer", case, dtype)
    ]


@on_gpu
@pytest.mark.gpu
@pytest.mark.usefixtures("unwritten_memory_is_nan")
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.parametrize(("ops", "case", "dtype"), _its_cases())
def test_matches_the_fp64_reference(ops: OpCases, case: Case, dtype: torch.dtype) -> None:
    for _ in range(2):  # planned, then as planned
        (error,) = ops.errors("flashinfer", case, "cuda", dtype).values()
        assert error <= ops.tolerance[dtype]


assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=3e-2)


@on_gpu
@pytest.mark.gpu
def test_equal_lengths_in_other_pages_read_those_pages() -> None:
    """The plan is kept, the page numbers are not; nor does a tensor have to be another one for that."""
    inputs, on_host = _step([1, 9, 1], [40, 100, 200], 0)
    _run("flashinfer", inputs, on_host)
    inputs["page_table"].copy_(inputs["page_table"].flip(0, 1))
    assert_close(_run("flashinfer", inputs, on_host), _run("reference", inputs, on_host))


@on_gpu
@pytest.mark.gpu
def test_steps_planned_ahead_of_the_gpu_do_not_mix() -> None:
    """The host is many steps ahead: a plan that was written over before it was read would show."""
    steps = [_step([1] * 3 + [n], [200 - n, 3, n, 2 * n], n) for n in range(1, 25)]
    expected = [_run("reference", *step) for step in steps]
    _run("flashinfer", *steps[-1])
    torch.cuda._sleep(200_000_000)
    got = [_run("flashinfer", *step) for step in steps]
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other)


@on_gpu
@pytest.mark.gpu
def test_streams_and_inference_mode_may_change_between_calls() -> None:
    inputs, on_host = _step([1, 9, 1], [40, 100, 200], 1)
    expected = _run("reference", inputs)
    with torch.inference_mode():
        assert_close(_run("flashinfer", inputs, on_host), expected)
    assert_close(_run("flashinfer", inputs), expected)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = _run("flashinfer", inputs, on_host)
    torch.cuda.current_stream().wait_stream(side)
    assert_close(got, expected)


@on_gpu
@pytest.mark.gpu
def test_a_graph_being_captured_is_told_why_not() -> None:
    inputs, on_host = _step([1, 1], [40, 100], 2)
    _run("flashinfer", inputs, on_host)
    with pytest.raises(RuntimeError, match="a CUDA graph can't hold"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        _run("flashinfer", inputs, on_host)
    assert_close(_run("flashinfer", inputs, on_host), _run("reference", inputs, on_host))
