"""Causal attention through PyTorch's scaled_dot_product_attention: batched where sequences are equally long, one by
one otherwise.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.ops.attention.reference import OnHost, lengths, read_pages


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
    if all(
        b - a == 1 for a, b in pairwise(bounds)
    ):  # one token of each sequence: one batch, masked to each one's length
        cache = ((k_pages, k_scales), (v_pages, v_scales))
        return _decode(q, cache, page_table, context_lens, max(context) + 1)
    outputs = []
    for i, (a, b) in enumerate(pairwise(bounds)):
        total, n = context[i] + b - a, b - a
        if n == 0:
            continue
        n_pages = -(-total // k_pages.shape[1])
        table = page_table[i, :n_pages].long()
        k = read_pages(k_pages, k_scales, table, q.dtype)[:total]
        v = read_pages(v_pages, v_scales, table, q.dtype)[:total]
        if n == total:
            out = _sdpa(q[None, a:b], k[None], v[None], is_causal=True)
        else:
            visible = torch.ones(n, total, dtype=torch.bool, device=q.device).tril(total - n)
            out = _sdpa(q[None, a:b], k[None], v[None], mask=visible)
        outputs.append(out[0])
    return torch.cat(outputs)


def _decode(
    q: Tensor, cache: tuple[tuple[Tensor, Tensor | None], ...], page_table: Tensor, context_lens: Tensor, longest: int
) -> Tensor:
    n_pages = -(-longest // cache[0][0].shape[1])
    table = page_table[:, :n_pages].long()
    k, v = (read_pages(pages, scales, table, q.dtype)[:, :longest] for pages, scales in cache)
    visible = torch.arange(longest, device=q.device) <= context_lens[:, None]  # [n_seqs, longest]
    k, v = (t.masked_fill(~visible[:, :, None, None], 0) for t in (k, v))  # pages not yet written may hold NaN
    return _sdpa(q[:, None], k, v, mask=visible[:, None, None, :])[:, 0]
