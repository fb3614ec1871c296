"""write_pages in one kernel gives what indexing gives; long chunks go their own way."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")  # the extra `gpu` brings it

from plait.ops.attention import paged_attention, write_pages
from plait.ops.dispatch import force

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="test_interpreted.py runs this file"
)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [5, 0, 19, 1]])
def test_pages_are_written_where_and_as_indexing_writes_them(lengths: list[int], int8: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, n_kv, d_head, page_size, n_seqs = sum(lengths), 3, 20, 7, len(lengths)
    projected = torch.randn(tokens, 2 * n_kv * d_head, generator=generator).to(DEVICE)
    k, v = (part.unflatten(-1, (n_kv, d_head)) for part in projected.chunk(2, dim=-1))  # rows are strided
    table = torch.randperm(9 * n_seqs, generator=generator)[: 6 * n_seqs].view(n_seqs, 6).to(DEVICE, torch.int32)
    where = {
        "page_table": table,
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32),
        "context_lens": torch.tensor([13, 0, 7, 21])[:n_seqs].to(DEVICE, torch.int32),
    }
    found = {}
    for name in ("triton", "reference"):
        pages = torch.zeros(2, 9 * n_seqs, page_size, n_kv, d_head, device=DEVICE)
        pages = pages.to(torch.int8) if int8 else pages
        scales = torch.zeros(pages.shape[:-1], device=DEVICE)
        extra = {"k_scales": scales[0], "v_scales": scales[1]} if int8 else {}
        with force(attention=name):
            write_pages(k, v, *pages, **where, **extra)
        found[name] = pages, scales
    assert int((found["triton"][0] != 0).any(-1).sum()) == 2 * tokens * n_kv
    for got, expected in zip(found["triton"], found["reference"], strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("lengths", [[1, 1, 40, 33], [70], [1, 2, 1], [33, 1]])
def test_long_chunks_behind_decode_rows_are_the_same_whoever_knows_their_lengths(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU those at the end go through cuDNN, without a wait if their lengths are given."""
    from plait.ops.attention import triton as kernels

    monkeypatch.setattr(kernels, "LONG_CHUNK", 32)
    generator = torch.Generator().manual_seed(0)
    dtype, contexts = (torch.bfloat16 if DEVICE == "cuda" else torch.float32), [37, 5, 21, 0][: len(lengths)]
    q = torch.randn(sum(lengths), 6, 16, generator=generator).to(DEVICE, dtype)
    pages = torch.randn(2, 60, 8, 2, 16, generator=generator).to(DEVICE, dtype)
    where = {
        "page_table": torch.randperm(60, generator=generator)[: 15 * len(lengths)].view(-1, 15).to(DEVICE, torch.int32),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32),
        "context_lens": torch.tensor(contexts).to(DEVICE, torch.int32),
    }
    with force(attention="reference"):
        expected = paged_attention(q, *pages, **where).double()
    for on_host in (None, (where["cu_seqlens"].tolist(), contexts)):
        with force(attention="triton"):
            got = paged_attention(q, *pages, **where, on_host=on_host).double()
        assert (got - expected).norm() <= (1e-2 if DEVICE == "cuda" else 1e-5) * expected.norm()
