"""States inside sequences from any scan: each sequence is cut in two there, and the parts are scanned one after the
other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def exporting(scan: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The same scan with export_at [n_seqs] as its last argument, and the states after so many tokens as its third
    result. Reads export_at on the host.
    """

    def run(
        u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor,
        cu_seqlens: Tensor, initial_state: Tensor | None, export_at: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        wide = torch.promote_types(u.dtype, torch.float32)
        state = A.new_zeros(len(export_at), *A.shape, dtype=wide) if initial_state is None else initial_state.to(wide)
        starts, lengths, cuts = cu_seqlens[:-1].long(), cu_seqlens.diff().long(), export_at.long()
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        states = []
        for begin, length in ((starts, cuts), (starts + cuts, lengths - cuts)):
            some = length > 0
            bounds = F.pad(length[some].cumsum(0), (1, 0)).to(cu_seqlens.dtype)
            tokens = _ranges(begin[some], length[some])
            state = state.clone()
            if tokens.numel():
                part = (u[tokens], dt[tokens], A, B[tokens], C[tokens], D, z[tokens], dt_bias, bounds, state[some])
                y[tokens], state[some] = scan(*part)
            states.append(state)
        return y, states[1], states[0]

    return run


def _ranges(begin: Tensor, length: Tensor) -> Tensor:
    """begin_i, begin_i + 1, ... length_i of them, for each i in turn."""
    before = F.pad(length.cumsum(0), (1, 0))[:-1]
    return torch.arange(int(length.sum()), device=begin.device) + (begin - before).repeat_interleave(length)
