"""The selective scan in PyTorch, many tokens at a time: runs on any device, needs no compiler.

A block of tokens is cut into chunks of about the square root of its length. All chunks are stepped together from a zero
state, a short loop then carries the true state from chunk to chunk, and one multiply-add puts it into every token. A
sequence start is a decay of zero, and its initial state is one more input to its first token, so packed sequences cost
nothing extra.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK_ELEMENTS = 1 << 20  # tokens * d_inner * d_state of one block: temporaries that stay in the cache (measured)


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor, cu_seqlens: Tensor,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(u.dtype, torch.float32)
    tokens = u.shape[0]
    bounds = cu_seqlens.tolist()
    filled = [i for i, (start, stop) in enumerate(pairwise(bounds)) if start < stop]
    if len(filled) < len(bounds) - 1:  # sequences without tokens keep their state; the others are scanned by themselves
        state = A.new_zeros(len(bounds) - 1, *A.shape, dtype=wide) if initial_state is None else initial_state.to(wide)
        if not filled:
            return torch.empty_like(u), state.clone()
        own = torch.tensor(filled, device=u.device)
        left = cu_seqlens.new_tensor([*(bounds[i] for i in filled), tokens])
        y, ended = selective_scan(u, dt, A, B, C, D, z, dt_bias, left, None if initial_state is None else state[own])
        return y, state.index_copy(0, own, ended)
    x, B, C = u.to(wide), B.to(wide), C.to(wide)
    step = F.softplus(dt.to(wide) + dt_bias)
    starts, ends = bounds[:-1], [stop - 1 for stop in bounds[1:]]

    block_len = max(16, BLOCK_ELEMENTS // A.numel())
    h = torch.zeros_like(A, dtype=wide)
    outputs, finals = [], []
    for begin in range(0, tokens, block_len):
        end = min(begin + block_len, tokens)
        inside = [(i, s - begin) for i, s in enumerate(starts) if begin <= s < end]
        injected = None if initial_state is None else initial_state[[i for i, _ in inside]].to(wide)
        wanted = [e - begin for e in ends if begin <= e < end]
        arguments = (
            x[begin:end],
            step[begin:end],
            A,
            B[begin:end],
            C[begin:end],
            h,
            [s for _, s in inside],
            injected,
            wanted,
        )
        if torch.is_grad_enabled():
            y, h, ended = checkpoint(_block, *arguments, use_reentrant=False)
        else:
            y, h, ended = _block(*arguments)
        outputs.append(y)
        finals.append(ended)
    y = torch.cat(outputs) + D * x
    return (y * F.silu(z.to(wide))).to(u.dtype), torch.cat(finals)


def _block(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, starts: list[int], injected: Tensor | None,
    wanted: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Scan one block from state h. Returns y [tokens, d_inner], the state at its end and after each of the `wanted`
    tokens.
    """
    tokens = x.shape[0]
    decay = torch.exp(step[:, :, None] * A)  # [tokens, d_inner, d_state]
    drive = (step * x)[:, :, None] * B[:, None, :]
    if starts:
        if injected is not None:
            drive = drive.index_add(0, torch.tensor(starts, device=x.device), decay[starts] * injected)
        keep = torch.ones(tokens, 1, 1, dtype=x.dtype, device=x.device)
        keep[starts] = 0
        decay = decay * keep

    chunk_len = max(1, int(tokens**0.5))
    n_chunks = -(-tokens // chunk_len)
    missing = n_chunks * chunk_len - tokens
    # unbind, not indexing: the gradient of an index is a zero tensor of the whole size, for every one of them
    decays = F.pad(decay, (0, 0, 0, 0, 0, missing), value=1.0).view(n_chunks, chunk_len, *A.shape).unbind(1)
    drives = F.pad(drive, (0, 0, 0, 0, 0, missing)).view(n_chunks, chunk_len, *A.shape).unbind(1)

    local, reach = [drives[0]], [decays[0]]  # state from zero, and how much of the chunk's incoming state is left
    for decay_j, drive_j in zip(decays[1:], drives[1:], strict=True):
        local.append(decay_j * local[-1] + drive_j)
        reach.append(decay_j * reach[-1])
    incoming = []
    for kept, gained in zip(reach[-1].unbind(0), local[-1].unbind(0), strict=True):
        incoming.append(h)
        h = kept * h + gained
    states = torch.stack(local, 1) + torch.stack(reach, 1) * torch.stack(incoming)[:, None]
    states = states.flatten(0, 1)[:tokens]
    return torch.einsum("tdn,tn->td", states, C), h, states[wanted]
