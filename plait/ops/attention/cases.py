"""Inputs of attention: odd sizes for tests, the shapes of real models for benchmarks."""

from itertools import accumulate

import torch
from torch import Tensor

from plait.ops.attention import IMPLEMENTATIONS, PAGED_IMPLEMENTATIONS, attention, paged_attention
from plait.ops.attention.reference import quantize
from plait.ops.case import Case, Cost, Inputs, OpCases

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
GRAD_TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 2.5e-2, torch.float16: 4e-3}


def _bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _scores(lengths: list[int], context: list[int]) -> int:
    """How many (query, key) pairs there are."""
    return sum(n * c + n * (n + 1) // 2 for n, c in zip(lengths, context, strict=True))


def _case(
    name: str,
    lengths: list[int],
    n_heads: int,
    n_kv_heads: int,
    d_head: int,
    *,
    large: bool = False,
    grads: bool = False,
) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(
                sum(lengths), *shape, generator=generator, dtype=torch.float32 if large else torch.float64
            )

        kv = n_kv_heads, d_head
        return {"q": normal(n_heads, d_head), "k": normal(*kv), "v": normal(*kv), "cu_seqlens": _bounds(lengths)}

    def cost(inputs: Inputs) -> Cost:
        scores = _scores(lengths, [0] * len(lengths)) * n_heads
        moved = 2 * sum(lengths) * (n_heads + n_kv_heads) * d_head * inputs["q"].element_size()
        return Cost(bytes=moved, flops=4 * scores * d_head, exps=scores)

    return Case(name, inputs, ("q", "k", "v") if grads else (), large, cost)


def _paged(
    name: str,
    lengths: list[int],
    context: list[int],
    n_heads: int,
    n_kv_heads: int,
    d_head: int,
    page_size: int,
    *,
    int8: bool = False,
    large: bool = False,
) -> Case:
    """Pages in shuffled order; what no sequence has written is NaN, and so is nothing that is read."""

    def inputs(generator: torch.Generator) -> Inputs:
        dtype = torch.float32 if large else torch.float64
        totals = [n + c for n, c in zip(lengths, context, strict=True)]
        n_pages = [-(-total // page_size) for total in totals]
        order = torch.randperm(sum(n_pages) + 2, generator=generator)[: sum(n_pages)]
        table = torch.zeros(len(lengths), max(n_pages) + 1, dtype=torch.int32)
        pages = torch.full((2, sum(n_pages) + 2, page_size, n_kv_heads, d_head), torch.nan, dtype=dtype)
        for i, (total, own) in enumerate(zip(totals, order.split(n_pages), strict=True)):
            table[i, : len(own)] = own
            flat = torch.full((2, len(own) * page_size, n_kv_heads, d_head), torch.nan, dtype=dtype)
            flat[:, :total] = torch.randn(2, total, n_kv_heads, d_head, generator=generator, dtype=dtype)
            pages[:, own] = flat.unflatten(1, (len(own), page_size))
        cache: Inputs = {"k_pages": pages[0], "v_pages": pages[1]}
        if int8:  # what no sequence has written: -128, with a scale of NaN
            (k, k_scales), (v, v_scales) = (quantize(p) for p in pages)
            written = ~pages.isnan().any(-1)
            k, v = (t.masked_fill(~w[..., None], -128) for t, w in zip((k, v), written, strict=True))
            cache = {"k_pages": k, "v_pages": v, "k_scales": k_scales, "v_scales": v_scales}
        return {
            "q": torch.randn(sum(lengths), n_heads, d_head, generator=generator, dtype=dtype),
            **cache,
            "page_table": table,
            "cu_seqlens": _bounds(lengths),
            "context_lens": torch.tensor(context, dtype=torch.int32),
            **({"on_host": ([*accumulate(lengths, initial=0)], context)} if large else {}),  # as the engine has them
        }

    def cost(inputs: Inputs) -> Cost:
        scores = _scores(lengths, context) * n_heads
        width = inputs["q"].element_size() * d_head
        of_key = d_head + 4 if int8 else width
        moved = (sum(lengths) + sum(context)) * 2 * n_kv_heads * of_key + 2 * sum(lengths) * n_heads * width
        return Cost(bytes=moved, flops=4 * scores * d_head, exps=scores)

    return Case(name, inputs, (), large, cost)


MINI = (32, 8, 128)  # query heads, KV heads, d_head

SMALL = (
    ("one token", [1], 3, 1, 8),
    ("one sequence", [63], 3, 3, 20),
    ("packed", [1, 33, 2, 70], 6, 2, 16),
    ("packed, grouped by three", [17, 65], 9, 3, 24),
    ("multi-query", [5, 1, 9], 7, 1, 8),
    ("empty sequences", [0, 9, 0, 3], 4, 2, 8),
    ("equal lengths", [21, 21, 21], 4, 2, 16),
    ("heads of 64", [70, 1, 0, 33], 6, 2, 64),
    ("heads of 128, multi-query", [5, 1, 9], 7, 1, 128),
)

FORWARD = OpCases(
    op="attention",
    call=lambda **inputs: (attention(**inputs),),
    implementations=IMPLEMENTATIONS,
    cases=(
        *(_case(*small) for small in SMALL),
        _case("mini layer, 8K", [8192], *MINI, large=True),
        _case("mini layer, 32K", [32768], *MINI, large=True),
        _case("mini layer, 16 documents", [700, 1] * 8, *MINI, large=True),
    ),
    tolerance=TOLERANCE,
)

TRAINING = OpCases(
    op="attention",
    call=FORWARD.call,
    implementations={name: IMPLEMENTATIONS[name] for name in ("sdpa", "reference")},
    cases=tuple(_case(*small, grads=True) for small in SMALL),
    tolerance=TOLERANCE,
    grad_tolerance=GRAD_TOLERANCE,
)

PAGED = OpCases(
    op="attention",
    call=lambda **inputs: (paged_attention(**inputs),),
    implementations=PAGED_IMPLEMENTATIONS,
    cases=(
        _paged("first token", [1], [0], 3, 1, 8, 4),
        _paged("decode", [1, 1, 1], [0, 63, 130], 6, 2, 16, 16),
        _paged("decode, odd pages", [1, 1], [401, 5], 5, 5, 24, 7),
        _paged("decode, multi-query", [1] * 5, [3, 299, 0, 1, 17], 7, 1, 16, 16),
        _paged("verify", [3, 1, 2], [31, 257, 0], 4, 2, 16, 16),
        _paged("chunk", [35], [93], 6, 2, 20, 8),
        _paged("chunks and decodes", [1, 70, 1, 9], [64, 0, 201, 33], 8, 2, 16, 16),
        _paged("decode, heads of 64", [1] * 5, [3, 299, 0, 1, 17], 6, 2, 64, 16),
        _paged("chunks and decodes, heads of 64", [1, 70, 1, 9], [64, 0, 201, 33], 9, 3, 64, 7),
        _paged("chunks and decodes, heads of 128, multi-query", [1, 70, 0, 9], [640, 0, 20, 33], 7, 1, 128, 16),
        _paged("decode, int8", [1, 1, 1], [0, 63, 130], 6, 2, 16, 16, int8=True),
        _paged("chunks and decodes, int8", [1, 70, 1, 9], [64, 0, 201, 33], 8, 2, 16, 16, int8=True),
        _paged("mini decode, 65536, int8", [1], [65535], *MINI, 16, int8=True, large=True),
        _paged("mini decode, 64 x 4K, int8", [1] * 64, [4095] * 64, *MINI, 16, int8=True, large=True),
        *(_paged(f"mini decode, {n}", [1], [n - 1], *MINI, 16, large=True) for n in (4096, 65536, 262144)),
        _paged("mini decode, 64 x 4K", [1] * 64, [4095] * 64, *MINI, 16, large=True),
        _paged("mini chunk, 8K after 56K", [8192], [57344], *MINI, 16, large=True),
    ),
    tolerance=TOLERANCE,
    keep=("k_scales", "v_scales"),
)
