"""Causal grouped-query attention without positions (paper section 2): over packed sequences, and over a paged KV
cache.
"""

from typing import Any

import torch
from torch import Tensor

from plait.ops.attention import cudnn, flashinfer, native, reference, sdpa
from plait.ops.dispatch import Implementation, anywhere, lazily, pick, why_not_triton
from plait.ops.shapes import Shapes

_QUERIES, _KEYS = {"q": "tokens n_heads d_head"}, "tokens n_kv_heads d_head"
_PAGES = dict.fromkeys(("k_pages", "v_pages"), "n_pages page_size n_kv_heads d_head")
_SCALES = dict.fromkeys(("k_scales", "v_scales"), "n_pages page_size n_kv_heads")
_WHERE = {"page_table": "n_seqs max_pages", "cu_seqlens": "n_seqs+1", "context_lens": "n_seqs"}
_ATTENTION = Shapes("attention", **_QUERIES, k=_KEYS, v=_KEYS, cu_seqlens="n_seqs+1")
_PAGED = Shapes("paged_attention", **_QUERIES, **_PAGES, **_WHERE, **_SCALES)
_WRITE = Shapes("write_pages", k=_KEYS, v=_KEYS, **_PAGES, **_WHERE, **_SCALES)


def _why_not_triton(q: Tensor) -> str | None:
    if torch.is_grad_enabled() and q.requires_grad:
        return "has no gradient"
    return why_not_triton(q, (torch.bfloat16, torch.float16, torch.float32))


def _why_not_cudnn(q: Tensor) -> str | None:
    if not q.is_cuda:
        return f"needs a CUDA tensor, got one on {q.device}"
    return None if q.dtype in (torch.bfloat16, torch.float16) else f"computes in bfloat16 and float16, got {q.dtype}"


def _native_paged_attention(q: Tensor, k_pages: Tensor, v_pages: Tensor, *rest: Any) -> Tensor:
    """int8 pages through C where the queries are few, else as in sdpa.py."""
    where, scales = rest[:3], rest[3:5]
    if scales[0] is None:
        return native.paged_attention(q, k_pages, v_pages, *where)
    wide = k_pages.new_empty(0, *k_pages.shape[1:], dtype=torch.float32)  # its layout decides, not its type
    if not native._can_run(q, wide, wide, len(where[2])):
        return sdpa.paged_attention(q, k_pages, v_pages, *where, *scales)
    return native.decode(q, k_pages, v_pages, *where, k_scales=scales[0], v_scales=scales[1])


def _native_write_pages(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, *rest: Any) -> None:
    """Through C where it can, else by index."""
    if rest[-1] is None and native.can_write(k, k_pages, v_pages):
        native.write_pages(k, v, k_pages, v_pages, *rest[:3])
    else:
        reference.write_pages(k, v, k_pages, v_pages, *rest)


IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.attention.triton", "attention"), _why_not_triton),
    "sdpa": Implementation(sdpa.attention, anywhere),
    "flashinfer": Implementation(flashinfer.attention, flashinfer.why_not, flashinfer.why_not_these),
    "reference": Implementation(reference.attention, anywhere),
}
PAGED_IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.attention.triton", "paged_attention"), _why_not_triton),
    "cudnn": Implementation(cudnn.paged_attention, _why_not_cudnn),
    "native": Implementation(_native_paged_attention, native.why_not),
    "sdpa": Implementation(sdpa.paged_attention, anywhere),
    "flashinfer": Implementation(flashinfer.paged_attention, flashinfer.why_not, flashinfer.why_not_these),
    "reference": Implementation(reference.paged_attention, anywhere),
}

_triton_write_pages = lazily("plait.ops.attention.triton", "write_pages")
WRITE_IMPLEMENTATIONS = {
    "triton": Implementation(_triton_write_pages, _why_not_triton),
    **{name: Implementation(_native_write_pages, anywhere) for name in ("cudnn", "native")},
    **{name: Implementation(reference.write_pages, anywhere) for name in ("sdpa", "reference")},
    "flashinfer": Implementation(_triton_write_pages, flashinfer.why_not),
}


def attention(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor, bounds: list[int] | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d_head)) v, causal within each sequence; softmax in fp32.

    q [tokens, n_heads, d_head]; k, v [tokens, n_kv_heads, d_head]; query head j reads KV head j // (n_heads /
    n_kv_heads). `bounds`: cu_seqlens on the host, where the caller has them; otherwise the loop over sequences in
    training on a GPU waits to read them.
    """
    if torch.compiler.is_compiling():
        from plait.ops.compiled import ATTENTION

        return ATTENTION(q, k, v, cu_seqlens)[0]
    _ATTENTION.check(q, k, v, cu_seqlens)
    _check_heads(q, k.shape[1])
    probe = next((t for t in (q, k, v) if t.requires_grad), q)  # k's or v's gradient alone may be wanted
    return pick("attention", IMPLEMENTATIONS, probe)(q, k, v, cu_seqlens, bounds)


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    page_table: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    on_host: reference.OnHost | None = None,
) -> Tensor:
    """The same for queries whose keys and values already lie in pages, their own included (see `write_pages`).

    q [tokens, n_heads, d_head]; pages [n_pages, page_size, n_kv_heads, d_head]; page_table [n_seqs, max_pages] page
    numbers in order (the tail is ignored); context_lens [n_seqs]: tokens of each sequence before this call. int8 pages
    have fp32 scales [n_pages, page_size, n_kv_heads], one a token and head. `on_host`: cu_seqlens and context_lens as
    numbers, where the caller has them; otherwise long chunks on a GPU wait to read them.
    """
    _check_scales(k_pages, k_scales, v_scales)
    _PAGED.check(q, k_pages, v_pages, page_table, cu_seqlens, context_lens, k_scales, v_scales)
    _check_heads(q, k_pages.shape[2])
    run = pick("attention", PAGED_IMPLEMENTATIONS, q)
    return run(q, k_pages, v_pages, page_table, cu_seqlens, context_lens, k_scales, v_scales, on_host)


def write_pages(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    page_table: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> None:
    """Store k and v [tokens, n_kv_heads, d_head] at their sequences' next positions: quantized, if the pages are int8.

    Mutates k_pages and v_pages, and their scales.
    """
    _check_scales(k_pages, k_scales, v_scales)
    _WRITE.check(k, v, k_pages, v_pages, page_table, cu_seqlens, context_lens, k_scales, v_scales)
    run = pick("attention", WRITE_IMPLEMENTATIONS, k)
    run(k, v, k_pages, v_pages, page_table, cu_seqlens, context_lens, k_scales, v_scales)


def _check_scales(pages: Tensor, k_scales: Tensor | None, v_scales: Tensor | None) -> None:
    if (pages.dtype == torch.int8) != (k_scales is not None) or (k_scales is None) != (v_scales is None):
        raise ValueError("int8 pages need k_scales and v_scales, and other pages take none")


def _check_heads(q: Tensor, n_kv_heads: int) -> None:
    if q.shape[1] % n_kv_heads:
        raise ValueError(f"attention: n_heads={q.shape[1]} of q must be a multiple of n_kv_heads={n_kv_heads}")
