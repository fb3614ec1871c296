"""Large fp32 products through oneDNN instead of MKL, which takes a slow path on AMD processors (2.5 times on Zen 5)."""

from __future__ import annotations

import functools

import torch

LIMIT = 1e-5  # of the largest result. fp32 is at 1e-6, products of rounded bf16 at 3e-3.


@functools.cache
def route_fp32_products() -> str | None:
    """Ask torch to send fp32 products on the CPU to oneDNN, once per process, where that keeps them in fp32.

    Returns None if it did, otherwise the reason it didn't. torch's switch for this permits bf16 products; oneDNN makes
    use of the permission only where it has AMX. Those machines are left alone, and on the others a product is checked.
    Changes torch.backends.mkldnn.matmul.fp32_precision, for the whole process: call it where a model is loaded to run
    or train on the CPU, not from a library function.
    """
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    if torch.cpu._is_amx_tile_supported():
        return "this CPU has AMX, where oneDNN would round to bf16"
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    error = _product_error()
    if error > LIMIT:
        setting.fp32_precision = before
        return f"oneDNN's products are off by {error:.0e} here"
    return None


def _product_error() -> float:
    """Of a product large enough for oneDNN, against fp64; the worst of forward and both gradients."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator) for shape in ((64, 256), (192, 256)))
    gy = torch.randn(64, 192, generator=generator)
    pairs = ((x, weight.T), (gy, weight), (gy.T, x))
    exact = [a.double() @ b.double() for a, b in pairs]
    return max(
        ((a @ b - right).abs().max() / right.abs().max()).item() for (a, b), right in zip(pairs, exact, strict=True)
    )
