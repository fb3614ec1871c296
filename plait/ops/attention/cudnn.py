"""Long chunks over a paged cache through cuDNN: the past, which every query sees, and the chunk itself, causal, apart.

Each half also gives its log-sum-exp, by which the two are joined in fp32. Pages are copied into one piece first: next
to the products of a long chunk that is little. Queries are filled up to a multiple of LENGTH_STEP, because cuDNN makes
a plan, on the host, for every length that it meets.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.ops.attention.reference import OnHost, lengths, read_pages

LENGTH_STEP = 512  # tokens


def _attend(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    """[n, heads, d_head] each -> output in q.dtype and log-sum-exp [n, heads, 1] in fp32."""
    n, _, d_head = q.shape
    more = -n % LENGTH_STEP  # queries after the last; keys after the last are seen by none but these
    wider = -d_head % 8
    q = F.pad(q, (0, wider, 0, 0, 0, more))
    if is_causal or wider:  # F.pad copies whatever it is told to add, and the past may be long
        k, v = (F.pad(t, (0, wider, 0, 0, 0, more if is_causal else 0)) for t in (k, v))
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    run = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse = run(q, k, v, None, True, 0.0, is_causal, False, scale=d_head**-0.5)[:2]
    return out[0].transpose(0, 1)[:n, :, :d_head], lse.reshape(1, out.shape[1], -1)[0].T[:n, :, None]


def paged_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, cu_seqlens: Tensor, context_lens: Tensor,
    k_scales: Tensor | None = None, v_scales: Tensor | None = None, on_host: OnHost | None = None,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(q)
    write(out, 0, q, k_pages, v_pages, page_table, *lengths(cu_seqlens, context_lens, on_host), k_scales, v_scales)
    return out


def write(
    out: Tensor, first: int, q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, bounds: Sequence[int],
    context: Sequence[int], k_scales: Tensor | None, v_scales: Tensor | None,
) -> None:  # fmt: skip
    """The results of the sequences from number `first` on, into their rows of out [tokens, n_heads, d_head]."""
    for i, (a, b) in enumerate(pairwise(bounds)):
        if a == b or i < first:
            continue
        total = context[i] + b - a
        used = page_table[i, : -(-total // k_pages.shape[1])].long()
        k = read_pages(k_pages, k_scales, used, q.dtype)[:total]
        v = read_pages(v_pages, v_scales, used, q.dtype)[:total]
        here, here_lse = _attend(q[a:b], k[context[i] :], v[context[i] :], is_causal=True)
        if context[i]:
            past, past_lse = _attend(q[a:b], k[: context[i]], v[: context[i]], is_causal=False)
            share = torch.sigmoid(past_lse - here_lse)
            here = torch.lerp(here.float(), past.float(), share)
        out[a:b] = here
