"""Causal attention, written out: scores, softmax in fp32, weighted values."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

OnHost = tuple[Sequence[int], Sequence[int]]  # cu_seqlens and context_lens


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The queries q [n, n_heads, d_head] are the last n of the positions of k and v [total, n_kv_heads, d_head]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("qhd,khd->hqk", q.to(wide), k.to(wide)) * q.shape[-1] ** -0.5
    n, total = q.shape[0], k.shape[0]
    visible = torch.ones(n, total, dtype=torch.bool, device=q.device).tril(total - n)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v.to(wide)).to(q.dtype)


def lengths(cu_seqlens: Tensor, context_lens: Tensor, on_host: OnHost | None) -> OnHost:
    """Both on the host: as given, or read, for which a GPU is waited for."""
    return (cu_seqlens.tolist(), context_lens.tolist()) if on_host is None else on_host


def read_pages(pages: Tensor, scales: Tensor | None, page_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Pages in the order asked for, as [..., tokens, n_kv_heads, d_head] of dtype; int8 ones times their scales."""
    rows = pages[page_ids].flatten(-4, -3)
    if scales is None:
        return rows.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return (rows.to(wide) * scales[page_ids].flatten(-3, -2)[..., None]).to(dtype)


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[..., d_head] -> int8 and fp32 scales [...]: one scale a token and head."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    scales = wide.abs().amax(-1) / torch.full((), 127, dtype=wide.dtype, device=wide.device)  # a number is inverted
    values = (wide / scales.clamp_min(1e-30)[..., None]).round().clamp(-127, 127)
    return values.to(torch.int8), scales.float()


def write_pages(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, cu_seqlens: Tensor,
    context_lens: Tensor, k_scales: Tensor | None, v_scales: Tensor | None,
) -> None:  # fmt: skip
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
            pages[place], scales[place] = quantize(rows)


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, bounds: list[int] | None = None) -> Tensor:
    bounds = cu_seqlens.tolist() if bounds is None else bounds
    return torch.cat([attend(q[a:b], k[a:b], v[a:b]) for a, b in pairwise(bounds)])


def paged_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, cu_seqlens: Tensor, context_lens: Tensor,
    k_scales: Tensor | None = None, v_scales: Tensor | None = None, on_host: OnHost | None = None,
) -> Tensor:  # fmt: skip
    bounds, context = lengths(cu_seqlens, context_lens, on_host)
    outputs = []
    for i, (a, b) in enumerate(pairwise(bounds)):
        total = context[i] + b - a
        table = page_table[i].long()
        k, v = (
            read_pages(pages, scales, table, q.dtype)[:total]
            for pages, scales in ((k_pages, k_scales), (v_pages, v_scales))
        )
        outputs.append(attend(q[a:b], k, v))
    return torch.cat(outputs)
