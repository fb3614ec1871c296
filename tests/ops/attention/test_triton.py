"""write_pages in one kernel gives what indexing gives."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are Triton's")  # the extra `gpu` brings it

from plait.ops.attention import write_pages
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
