"""Columns inside a sequence are those of the sequence cut there."""

import pytest
import torch

from plait.ops.causal_conv1d import COLUMNS_IMPLEMENTATIONS, causal_conv1d, columns_at
from plait.ops.dispatch import force

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNNABLE = [name for name, one in COLUMNS_IMPLEMENTATIONS.items() if one.why_not(torch.empty(0, device=DEVICE)) is None]


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("export_at", [[0, 1, 7], [5, 2, 3], [9, 2, 0]])
def test_columns_inside_a_sequence(export_at: list[int], carried: bool, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).to(DEVICE) for shape in ((18, 6), (6, 4)))
    bounds = torch.tensor([0, 9, 11, 18], dtype=torch.int32, device=DEVICE)
    before = torch.randn(3, 6, 3, generator=generator).to(DEVICE) if carried else None
    at = torch.tensor(export_at, device=DEVICE)
    with force(causal_conv1d=name):
        found = columns_at(x, cu_seqlens=bounds, export_at=at, d_conv=4, initial_columns=before)
    for i, cut in enumerate(export_at):
        start = int(bounds[i])
        expected = torch.zeros(6, 3, device=DEVICE) if before is None else before[i]
        if cut:
            piece = {"cu_seqlens": torch.tensor([0, cut], dtype=torch.int32, device=DEVICE)}
            if before is not None:
                piece["initial_columns"] = before[i : i + 1]
            expected = causal_conv1d(x[start : start + cut], weight, None, **piece)[1][0]
        assert torch.equal(found[i], expected)
