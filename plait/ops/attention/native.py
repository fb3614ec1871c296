"""Attention of few queries over a paged KV cache in C (plait/native/src/attention.c); more queries as in sdpa.py."""

from __future__ import annotations

import torch
from torch import Tensor

from plait import native
from plait.native import why_not as why_not  # for IMPLEMENTATIONS
from plait.ops.attention import sdpa
from plait.ops.dispatch import outside_graphs

FEW_TOKENS = 8  # of a sequence: beyond, keys are better read once for many queries than once for each
SPAN, MAX_HEAD, MAX_GROUP = 512, 256, 64  # of src/attention.c

INTEGERS = ("n_tokens", "n_seqs", "n_heads", "n_kv_heads", "d_head", "page_size", "n_pages", "table_stride", "q_stride",
            "q_type", "page_type", "n_threads")  # fmt: skip
POINTERS = (
    "q",
    "k_pages",
    "v_pages",
    "k_scales",
    "v_scales",
    "page_table",
    "cu_seqlens",
    "context_lens",
    "y",
    "partial",
)


class AttentionArgs(native.Arguments):
    """attention_args of src/attention.c, in its order."""

    _fields_ = native.fields(INTEGERS, POINTERS)


@outside_graphs
def paged_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, cu_seqlens: Tensor, context_lens: Tensor
) -> Tensor:
    if not _can_run(q, k_pages, v_pages, len(context_lens)):
        return sdpa.paged_attention(q, k_pages, v_pages, page_table, cu_seqlens, context_lens)
    return decode(q, k_pages, v_pages, page_table, cu_seqlens, context_lens)


def _can_run(q: Tensor, k_pages: Tensor, v_pages: Tensor, n_seqs: int) -> bool:
    n_heads, d_head = q.shape[1:]
    if not 0 < len(q) <= FEW_TOKENS * n_seqs or d_head > MAX_HEAD or n_heads > MAX_GROUP * k_pages.shape[2]:
        return False
    if k_pages.dtype not in (torch.float32, torch.bfloat16) or v_pages.dtype != k_pages.dtype:
        return False
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k_pages, v_pages)))


def decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """Pages may also be int8, with fp32 scales [n_pages, page_size, n_kv_heads]."""
    if q.stride(2) != 1 or q.stride(1) != q.shape[2]:
        q = q.contiguous()
    where = [native.dense(t, torch.int32) for t in (page_table, cu_seqlens, context_lens)]
    (n_tokens, n_heads, d_head), (n_pages, page_size, n_kv_heads, _) = q.shape, k_pages.shape
    y = torch.empty((n_tokens, n_heads, d_head), dtype=q.dtype)
    partial = torch.empty(n_tokens * -(-where[0].shape[1] * page_size // SPAN) * n_heads * (d_head + 2))
    args = AttentionArgs(
        n_tokens, len(where[2]), n_heads, n_kv_heads, d_head, page_size, n_pages, where[0].shape[1], q.stride(0),
        native.TYPES[q.dtype], native.TYPES[k_pages.dtype], torch.get_num_threads(),
        *map(native.pointer, (q, k_pages, v_pages, k_scales, v_scales)),
        *map(native.pointer, (*where, y, partial)),
    )  # fmt: skip
    native.call("paged_attention", args)
    return y


WRITE_INTEGERS = ("n_tokens", "n_seqs", "row", "page_size", "n_pages", "table_stride", "k_stride", "v_stride", "type",
                  "page_type")  # fmt: skip
WRITE_POINTERS = ("k", "v", "k_pages", "v_pages", "page_table", "cu_seqlens", "context_lens")


class WriteArgs(native.Arguments):
    """write_args of src/pages.c, in its order."""

    _fields_ = native.fields(WRITE_INTEGERS, WRITE_POINTERS)


@outside_graphs
def write_pages(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, cu_seqlens: Tensor, context_lens: Tensor
) -> None:
    """Mutates the pages, which are fp32 or bf16."""
    flat = [native.rows(t.flatten(1), k.dtype) for t in (k, v)]
    where = [native.dense(t, torch.int32) for t in (page_table, cu_seqlens, context_lens)]
    n_pages, page_size = k_pages.shape[:2]
    args = WriteArgs(
        len(k), len(where[2]), flat[0].shape[1], page_size, n_pages, where[0].shape[1], *(t.stride(0) for t in flat),
        native.TYPES[k.dtype], native.TYPES[k_pages.dtype],
        *map(native.pointer, (*flat, k_pages, v_pages, *where)),
    )  # fmt: skip
    native.call("write_pages", args)


def can_write(k: Tensor, k_pages: Tensor, v_pages: Tensor) -> bool:
    """Whether `write_pages` takes these: pools of fp32 or bf16 on a CPU."""
    if native.why_not(k) is not None or native.why_not(k_pages) is not None or v_pages.dtype != k_pages.dtype:
        return False
    return k_pages.is_contiguous() and v_pages.is_contiguous()
