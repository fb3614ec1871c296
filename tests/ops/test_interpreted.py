"""The Triton kernels on the CPU, in Triton's interpreter: test_ops.py and the ops' own tests again, in a process that
has it on.

A process of its own, because Triton decides at import, and because with the interpreter on, `pick` would give every
fp32 model on the CPU to it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plait.ops

pytest.importorskip("triton", reason="Triton is an extra (gpu), and there is none for this platform")

TEST_OPS = Path(__file__).with_name("test_ops.py")
OPS = sorted(kernels.parent.name for kernels in Path(plait.ops.__path__[0]).glob("*/triton.py"))
# Two processes of about the same length: an import of torch and Triton is as long as most ops' tests.
GROUPS = [["selective_scan"], [op for op in OPS if op != "selective_scan"]]

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the tests themselves run the compiled kernels on this machine's GPU"
)


@pytest.mark.parametrize("ops", GROUPS, ids=["selective_scan", "others"])
def test_kernels_of(ops: list[str]) -> None:
    """test_ops.py, and in the ops' own folders test_triton.py and what else has `triton` in its name."""
    folders = [str(own) for op in ops if (own := TEST_OPS.with_name(op)).is_dir()]
    chosen = f"triton and ({' or '.join(ops)})"
    files = [str(TEST_OPS), *folders]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    result = subprocess.run(
        command, cwd=TEST_OPS.parents[2], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout  # and not: none selected
