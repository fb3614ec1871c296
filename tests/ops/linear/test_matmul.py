"""Products by the library, with int8 weights that are scaled behind them."""

import torch

from plait.ops.dispatch import force
from plait.ops.linear import linear


def test_int8_weights_in_fp16_do_not_overflow_before_they_are_scaled() -> None:
    """1024 values of 127 times 1 pass the 65,504 that fp16 has; the results are about 1."""
    x = torch.ones(3, 1024, dtype=torch.float16)
    weight, scale = torch.full((5, 1024), 127, dtype=torch.int8), torch.full((5,), 1 / (127 * 1024))
    with force(linear="matmul"):
        out = linear(x, weight, scale=scale)
    torch.testing.assert_close(out.float(), torch.ones(3, 5), atol=0, rtol=2e-3)
