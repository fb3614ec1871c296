"""Causal attention through PyTorch's scaled_dot_product_attention: batched where sequences are equally long, one by
one otherwise.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.ops.attention.reference import OnHost, lengths, read_pages

Cache = tuple[tuple[Tensor, Tensor | None], ...]  # pages and their scales, of keys and of values

PAST = 4096  # tokens before a chunk that are read out of their pages at once


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """q, k, v [batch, length, heads, d_head], with fewer heads in k and v when they are shared."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, bounds: list[int] | None = None) -> Tensor:
    bounds = cu_seqlens.tolist() if bounds is None else bounds
    sizes = [b - a for a, b in pairwise(bounds)]
    if len(set(sizes)) == 1:
        q, k, v = (t.unflatten(0, (len(sizes), sizes[0])) for t in (q, k, v))
        return _sdpa(q, k, v, is_causal=True).flatten(0, 1)
    pieces = zip(*(t.split(sizes) for t in (q, k, v)), strict=True)
    return torch.cat([_sdpa(q[None], k[None], v[None], is_causal=True)[0] for q, k, v in pieces])


def paged_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, cu_seqlens: Tensor, context_lens: Tensor,
    k_scales: Tensor | None = None, v_scales: Tensor | None = None, on_host: OnHost | None = None,
) -> Tensor:  # fmt: skip
    bounds, context = lengths(cu_seqlens, context_lens, on_host)
    cache = ((k_pages, k_scales), (v_pages, v_scales))
    if all(b - a == 1 for a, b in pairwise(bounds)):  # one batch, masked to each one's length
        return _decode(q, cache, page_table, context_lens, max(context) + 1)
    outputs = [q[:0]]
    for i, (a, b) in enumerate(pairwise(bounds)):
        if a < b:
            outputs.append(_chunk(q[a:b], cache, page_table[i].long(), context[i]))
    return torch.cat(outputs)


def _chunk(q: Tensor, cache: Cache, table: Tensor, context: int) -> Tensor:
    """Queries q [n, n_heads, d_head] of one sequence with `context` tokens before them."""
    n = len(q)
    if context and q.is_cpu:
        return _behind_a_past(q, cache, table, context)
    k, v = _read(cache, table, 0, context + n, q.dtype)
    if context == 0:
        return _sdpa(q[None], k[None], v[None], is_causal=True)[0]
    visible = torch.ones(n, context + n, dtype=torch.bool, device=q.device).tril(context)
    return _sdpa(q[None], k[None], v[None], mask=visible)[0]


def _behind_a_past(q: Tensor, cache: Cache, table: Tensor, context: int) -> Tensor:
    """The chunk's own keys and values, causal, then the past, which every query sees, PAST keys at a time: no mask, and
    memory that does not grow with the context. Parts are joined in fp32 by their log-sum-exps.
    """
    out, lse = _flash(q, *_read(cache, table, context, context + len(q), q.dtype), is_causal=True)
    step = -(-PAST // cache[0][0].shape[1]) * cache[0][0].shape[1]
    for first in range(0, context, step):
        part, part_lse = _flash(q, *_read(cache, table, first, min(first + step, context), q.dtype), is_causal=False)
        out = torch.lerp(out, part, torch.sigmoid(part_lse - lse)[..., None])
        lse = torch.logaddexp(lse, part_lse)
    return out.to(q.dtype)


def _flash(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    """[n, n_heads, d_head] -> the same and the log-sum-exp [n, n_heads], in fp32 or wider."""
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)
    return out[0].transpose(0, 1).to(lse.dtype), lse[0].T


def _read(cache: Cache, table: Tensor, first: int, last: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values of the positions from first to before last, out of the pages that the table lists."""
    page_size = cache[0][0].shape[1]
    skipped = first // page_size
    pages = table[skipped : -(-last // page_size)]
    here = slice(first - skipped * page_size, last - skipped * page_size)
    k, v = (read_pages(values, scales, pages, dtype)[here] for values, scales in cache)
    return k, v


def _decode(q: Tensor, cache: Cache, page_table: Tensor, context_lens: Tensor, longest: int) -> Tensor:
    n_pages = -(-longest // cache[0][0].shape[1])
    table = page_table[:, :n_pages].long()
    k, v = (read_pages(pages, scales, table, q.dtype)[:, :longest] for pages, scales in cache)
    visible = torch.arange(longest, device=q.device) <= context_lens[:, None]  # [n_seqs, longest]
    k, v = (t.masked_fill(~visible[:, :, None, None], 0) for t in (k, v))  # pages not yet written may hold NaN
    return _sdpa(q[:, None], k, v, mask=visible[:, None, None, :])[:, 0]
