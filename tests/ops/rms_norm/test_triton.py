"""The sum with the residual has the wider of the two dtypes, in the kernels as in the reference."""

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels are Triton's")  # the extra `gpu` brings it

from plait.ops.dispatch import force
from plait.ops.rms_norm import add_rms_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NARROW = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter is wrong in bfloat16

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="test_interpreted.py runs this file"
)


def _run(name: str, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    given = [t.clone().requires_grad_() for t in (x, residual, weight)]
    with force(rms_norm=name):
        normed, added = add_rms_norm(*given, 1e-6)
    return normed, added, *torch.autograd.grad(normed.float().square().sum() + added.float().pow(3).sum(), given)


@pytest.mark.parametrize("dtypes", [(NARROW, torch.float32), (torch.float32, NARROW), (NARROW, NARROW)])
def test_a_residual_in_fp32_stays_in_fp32(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(5, 33, generator=generator).to(DEVICE, dtype) for dtype in dtypes)
    weight = torch.randn(33, generator=generator).to(DEVICE)
    expected, got = _run("reference", x, residual, weight), _run("triton", x, residual, weight)
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    assert got[1].dtype == (NARROW if dtypes == (NARROW, NARROW) else torch.float32)
    coarse = dtypes == (NARROW, NARROW)
    for one, right in zip(got, expected, strict=True):
        narrow = coarse or one.dtype == NARROW
        scale = right.float().abs().max().item()
        torch.testing.assert_close(one.float(), right.float(), atol=(2e-2 if narrow else 2e-6) * scale, rtol=0)
