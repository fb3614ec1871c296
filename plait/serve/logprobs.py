"""Log-probabilities of tokens under unchanged logits, on the device, and as records on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plait.text import TokenLogprob

SLICE = 256  # prompt positions whose logits exist at once: those of a whole long prompt are larger than the model


class Logprobs(NamedTuple):
    """Of n tokens, and of the n_top likeliest in the place of each."""

    of_token: Tensor  # [n]
    top_ids: Tensor  # [n, n_top]
    top: Tensor  # [n, n_top]

    def records(self, token_ids: Sequence[int], n_top: Sequence[int]) -> list[TokenLogprob]:
        """n_top of each token: how many of the likeliest its request asked for. For tensors on the host."""
        rows = zip(token_ids, self.of_token.tolist(), self.top_ids.tolist(), self.top.tolist(), n_top, strict=True)
        return [TokenLogprob(t, own, tuple(zip(ids[:n], top[:n], strict=True))) for t, own, ids, top, n in rows]


def logprobs_of(logits: Tensor, token_ids: Tensor, n_top: int) -> Logprobs:
    """logits [n, vocab_size], token_ids [n]; computed in fp32."""
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(n_top)
    return Logprobs(logprobs.gather(1, token_ids[:, None])[:, 0], top.indices, top.values)


def joined(pieces: Sequence[Logprobs]) -> Logprobs:
    return Logprobs(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
