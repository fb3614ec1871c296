"""Kernels launched past Triton: once a call like it was made, with addresses, and only where Triton would take the same
compiled kernel.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plait.ops import launch


class FakeTriton:
    """A kernel(x_ptr, y_ptr, n, rows, eps, BLOCK), which doesn't specialize `rows`; notes who launched what."""

    device_caches = ()
    arg_names = ("x_ptr", "y_ptr", "n", "rows", "eps", "BLOCK", "num_warps")

    def __init__(self) -> None:
        self.params = [SimpleNamespace(do_not_specialize=name == "rows") for name in self.arg_names]
        self.by_triton: list[tuple[Any, ...]] = []
        self.direct: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **constants: Any) -> Any:
            self.by_triton.append((grid, arguments, constants))
            return SimpleNamespace(
                run=lambda *given: self.direct.append(given), function="code", packed_metadata="metadata"
            )

        return run


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    driver = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 77)
    monkeypatch.setattr(launch, "_driver", lambda: driver)
    return launch.direct(FakeTriton())


def call(kernel: Any, x: torch.Tensor, y: torch.Tensor | None, *, n: int = 32, rows: int = 5, block: int = 64) -> None:
    kernel[(rows, 2)](x, y, n, rows, 1e-6, BLOCK=block, num_warps=4)


def test_the_second_call_is_direct_and_takes_addresses(kernel: Any) -> None:
    x, y = torch.zeros(64), torch.zeros(64)
    call(kernel, x, y)
    call(kernel, x, y, rows=7)  # not specialized: the same kernel
    assert len(kernel.kernel.by_triton) == 1
    addresses = x.data_ptr(), y.data_ptr()
    assert kernel.kernel.direct == [(7, 2, 1, 77, "code", "metadata", None, None, None, *addresses, 32, 7, 1e-6, 64, 4)]


def test_what_triton_compiles_apart_goes_to_triton(kernel: Any) -> None:
    x = torch.zeros(64)
    call(kernel, x, x)
    call(kernel, x, x, n=1)
    call(kernel, x, x, block=128)
    call(kernel, x, x.double())
    call(kernel, x, None)
    call(kernel, x, x, rows=1 << 40)
    assert len(kernel.kernel.by_triton) == 6
    assert not kernel.kernel.direct
    call(kernel, x, None)
    assert len(kernel.kernel.direct) == 1


def test_odd_addresses_have_kernels_of_their_own(kernel: Any) -> None:
    x = torch.zeros(64)
    for first, second in ((x, x), (x[1:], x), (x, x[1:]), (x[1:], x), (x, x[2:])):
        call(kernel, first, second)
    assert len(kernel.kernel.by_triton) == 3
    assert [given[9] - x.data_ptr() for given in kernel.kernel.direct] == [4, 0]


@pytest.mark.gpu
def test_on_a_gpu_direct_launches_give_what_tritons_do() -> None:
    from plait.ops.rms_norm.triton import forward_kernel, rms_norm

    weight = torch.randn(256, device="cuda", dtype=torch.bfloat16)
    for tokens in (3, 3, 16, 1000, 1):
        x = torch.randn(tokens, 257, device="cuda", dtype=torch.bfloat16)
        for view in (x[:, :256], x[:, 1:]):  # rows at even and at odd addresses
            expected = torch.empty(tokens, 256, device="cuda", dtype=torch.bfloat16)
            forward_kernel.kernel[(-(-tokens // 4),)](
                view, view, weight, expected, expected, 257, 257, tokens, 256, 1e-6,
                ROWS=4, BLOCK=256, HAS_RESIDUAL=False, num_warps=2,
            )  # fmt: skip
            assert torch.equal(rms_norm(view, weight, 1e-6), expected)
    assert forward_kernel._ready
