"""Causal grouped-query attention without positions (paper section 2): over packed sequences, and over a paged KV
cache.
"""

import torch
from torch import Tensor

from plait.ops.attention import cudnn, native, reference, sdpa
from plait.ops.dispatch import Implementation, anywhere, lazily, pick, why_not_triton


def _why_not_triton(q: Tensor) -> str | None:
    if torch.is_grad_enabled() and q.requires_grad:
        return "has no gradient"
    return why_not_triton(q, (torch.bfloat16, torch.float16, torch.float32))


def _why_not_cudnn(q: Tensor) -> str | None:
    if not q.is_cuda:
        return f"needs a CUDA tensor, got one on {q.device}"
    return None if q.dtype in (torch.bfloat16, torch.float16) else f"computes in bfloat16 and float16, got {q.dtype}"


def _native_paged_attention(q: Tensor, k_pages: Tensor, v_pages: Tensor, *rest: Tensor) -> Tensor:
    """int8 pages through C where the queries are few, else as in sdpa.py."""
    where, scales = rest[:3], rest[3:]
    if not scales:
        return native.paged_attention(q, k_pages, v_pages, *where)
    wide = k_pages.new_empty(0, *k_pages.shape[1:], dtype=torch.float32)  # its layout decides, not its type
    if not native._can_run(q, wide, wide, len(where[2])):
        return sdpa.paged_attention(q, k_pages, v_pages, *where, *scales)
    return native.decode(q, k_pages, v_pages, *where, k_scales=scales[0], v_scales=scales[1])


IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.attention.triton", "attention"), _why_not_triton),
    "sdpa": Implementation(sdpa.attention, anywhere),
    "reference": Implementation(reference.attention, anywhere),
}
PAGED_IMPLEMENTATIONS = {
    "triton": Implementation(lazily("plait.ops.attention.triton", "paged_attention"), _why_not_triton),
    "cudnn": Implementation(cudnn.paged_attention, _why_not_cudnn),
    "native": Implementation(_native_paged_attention, native.why_not),
    "sdpa": Implementation(sdpa.paged_attention, anywhere),
    "reference": Implementation(reference.paged_attention, anywhere),
}


def attention(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d_head)) v, causal within each sequence; softmax in fp32.

    q [tokens, n_heads, d_head]; k, v [tokens, n_kv_heads, d_head]; query head j reads KV head j // (n_heads /
    n_kv_heads).
    """
    if torch.compiler.is_compiling():
        from plait.ops.compiled import ATTENTION

        return ATTENTION(q, k, v, cu_seqlens)[0]
    return pick("attention", IMPLEMENTATIONS, q)(q, k, v, cu_seqlens)


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
) -> Tensor:
    """The same for queries whose keys and values already lie in pages, their own included (see `write_pages`).

    q [tokens, n_heads, d_head]; pages [n_pages, page_size, n_kv_heads, d_head]; page_table [n_seqs, max_pages] page
    numbers in order (the tail is ignored); context_lens [n_seqs]: tokens of each sequence before this call. int8 pages
    have fp32 scales [n_pages, page_size, n_kv_heads], one a token and head.
    """
    _check_scales(k_pages, k_scales, v_scales)
    run = pick("attention", PAGED_IMPLEMENTATIONS, q)
    scales = () if k_scales is None else (k_scales, v_scales)
    return run(q, k_pages, v_pages, page_table, cu_seqlens, context_lens, *scales)


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
    if k_scales is None and native.can_write(k, k_pages, v_pages):
        native.write_pages(k, v, k_pages, v_pages, page_table, cu_seqlens, context_lens)
        return
    page_size = k_pages.shape[1]
    lengths = cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=k.device), lengths, output_size=k.shape[0])
    position = context_lens.long()[sequence] + torch.arange(k.shape[0], device=k.device) - cu_seqlens.long()[sequence]
    page = page_table.long()[sequence, position // page_size]
    place = page, position % page_size
    for rows, pages, scales in ((k, k_pages, k_scales), (v, v_pages, v_scales)):
        if scales is None:
            pages[place] = rows.to(pages.dtype)
        else:
            pages[place], scales[place] = reference.quantize(rows)


def _check_scales(pages: Tensor, k_scales: Tensor | None, v_scales: Tensor | None) -> None:
    if (pages.dtype == torch.int8) != (k_scales is not None) or (k_scales is None) != (v_scales is None):
        raise ValueError("int8 pages need k_scales and v_scales, and other pages take none")
