"""Every implementation of every op against its fp64 reference, on every case: values and gradients."""

import pytest
import torch

from plait.ops.case import Case, OpCases, all_op_cases

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
CPU_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
CUDA_DTYPES = (torch.float32, torch.bfloat16)


def _parameters() -> list:
    return [
        pytest.param(ops, name, case, device, dtype, id=f"{ops.op}-{name}-{case.name}-{device}-{str(dtype)[6:]}")
        for ops in all_op_cases()
        for name in ops.implementations
        for case in ops.cases
        for device in DEVICES
        for dtype in (CPU_DTYPES if device == "cpu" else CUDA_DTYPES)
        if dtype in ops.tolerance and not case.large
        and ops.implementations[name].why_not(torch.empty(0, dtype=dtype, device=device)) is None
        and ops.takes(name, case, dtype)
    ]  # fmt: skip


@pytest.mark.usefixtures("unwritten_memory_is_nan")
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.parametrize(("ops", "implementation", "case", "device", "dtype"), _parameters())
def test_matches_the_fp64_reference(
    ops: OpCases, implementation: str, case: Case, device: str, dtype: torch.dtype
) -> None:
    for name, error in ops.errors(implementation, case, device, dtype).items():
        limit = (ops.grad_tolerance if name.startswith("grad_") else ops.tolerance)[dtype]
        assert error <= limit, f"{name}: {error:.2e} > {limit:.0e}"
