"""Every implementation of every op at the sizes of real models, on a GPU: against a plain one in fp32, on the device.

What is plain here is itself checked against fp64 in test_ops.py, at small sizes. Of attention some queries are looked
at, each by itself, since the scores of all would not fit.
"""

import gc
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from plait.bench.ops import made
from plait.ops.attention import reference as attention
from plait.ops.case import Case, Inputs, OpCases, all_op_cases

PLAIN = {"selective_scan": "chunked", "causal_conv1d": "lagged", "ssd": "chunked"}  # else the reference
TOO_LARGE = {"mini layer, 128K"}  # in fp32, for one GPU of 80 GB; test_offsets.py looks beyond 2^31
N_QUERIES = 24


def errors(ops: OpCases, name: str, case: Case, device: str, dtype: torch.dtype) -> dict[str, float]:
    """max |result - plain| / max |plain| of each output; NaN counts as infinite."""
    inputs = made(ops, case, torch.device(device), dtype)
    got = ops.run(name, inputs)
    wide = ops.cast(inputs, device, torch.float32)
    if ops.op == "attention":
        rows = _some_tokens(inputs)
        return {"out0": _error(got["out0"][rows], _attended(wide, rows))}
    expected = ops.run(PLAIN.get(ops.op, "reference"), wide)
    return {what: _error(got[what], expected[what]) for what in expected}


def _error(got: Tensor, expected: Tensor) -> float:
    worst = (got.float() - expected).abs().max().item() if got.numel() else 0.0
    size = expected.abs().max().item() if got.numel() else 1.0
    return math.inf if math.isnan(worst) else worst / max(size, 1e-30)


def _some_tokens(inputs: Inputs) -> Tensor:
    n = inputs["q"].shape[0]
    return torch.linspace(0, n - 1, min(n, N_QUERIES)).long().unique()


def _attended(inputs: Inputs, rows: Tensor) -> Tensor:
    """The results of these queries, one after the other."""
    bounds = inputs["cu_seqlens"].tolist()
    outputs = []
    for row in rows.tolist():
        nth = next(i for i in range(len(bounds) - 1) if bounds[i] <= row < bounds[i + 1])
        q, start = inputs["q"][row : row + 1], bounds[nth]
        if "k" in inputs:
            outputs.append(attention.attend(q, inputs["k"][start : row + 1], inputs["v"][start : row + 1]))
            continue
        context = int(inputs["context_lens"][nth]) + row - start
        table = inputs["page_table"][nth : nth + 1, : context // inputs["k_pages"].shape[1] + 1]
        scales = (inputs.get("k_scales"), inputs.get("v_scales"))
        outputs.append(
            attention.paged_attention(
                q, inputs["k_pages"], inputs["v_pages"], table, bounds, None, *scales, ([0, 1], [context])
            )
        )
    return torch.cat(outputs)


def _parameters(device: str, dtype: torch.dtype, *, large: bool) -> Iterator[object]:
    for ops in all_op_cases():
        names = [
            n
            for n, one in ops.implementations.items()
            if one.why_not(torch.empty(0, dtype=dtype, device=device)) is None
        ]
        cases = [case for case in ops.cases if case.large == large and case.name not in TOO_LARGE]
        for name in names:
            if name != "reference" and dtype in ops.tolerance:
                for case in (case for case in (cases if large else cases[-1:]) if ops.takes(name, case, dtype)):
                    yield pytest.param(ops, name, case, id=f"{ops.op}-{name}-{case.name}")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.usefixtures("unwritten_memory_is_nan")
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.parametrize(
    ("ops", "name", "case"),
    list(_parameters("cuda", torch.bfloat16, large=True)) if torch.cuda.is_available() else [],
)
def test_real_sizes(ops: OpCases, name: str, case: Case) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    for what, error in errors(ops, name, case, "cuda", torch.bfloat16).items():
        assert error <= ops.tolerance[torch.bfloat16], f"{what}: {error:.2e}"


@pytest.mark.parametrize(("ops", "name", "case"), list(_parameters("cpu", torch.float32, large=False)))
def test_the_comparison_holds_at_small_sizes_too(ops: OpCases, name: str, case: Case) -> None:
    found = errors(ops, name, case, "cpu", torch.float32)
    assert all(error <= 4 * ops.tolerance[torch.float32] for error in found.values()), found
    assert found


def test_a_wrong_result_is_found() -> None:
    right = torch.ones(4)
    assert _error(right, right) == 0
    assert _error(torch.tensor([1.0, 1, 1, 1.5]), right) == 0.5
    assert _error(torch.tensor([1.0, 1, 1, torch.nan]), right) == math.inf
