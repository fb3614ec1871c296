"""Drawing tokens on the device, for a whole batch at once, as each row's `SamplingParams` say.

Randomness is one number u in [0, 1) per drawn token, a hash of (seed, answer, position) made on the host: the token is
where the cumulative probability passes u. So a request's draws depend on nothing but its own logits: not on its
neighbours, on preemption, or on how tokens were guessed ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.serve.inputs import sent
from plait.serve.plan import Start

FEW = 128  # likeliest tokens that are found without sorting a whole row
COLDEST = 1e-20  # below, fp32 would flush the temperature to zero; the likeliest token has all probability long before


def request_key(seed: int, answer: int) -> int:
    """The 64-bit key of one answer's random numbers."""
    return int(_mixed(np.array([(seed * 0x9E3779B97F4A7C15 + answer * 0xD1B54A32D192ED03 + 1) % 2**64], np.uint64))[0])


def uniforms(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """u in [0, 1) of each (key, position), float64 in steps of 2^-48. Both uint64."""
    with np.errstate(over="ignore"):
        mixed = _mixed(keys + (positions + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(16)).astype(np.float64) * 2.0**-48


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): every input bit moves every output bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Cuts:
    """Rows that leave out unlikely tokens."""

    rows: Tensor | None  # None: all
    top_k: Tensor  # [n, 1], vocab_size where all may stay
    top_p: Tensor  # [n, 1]
    min_p: Tensor  # [n, 1]
    only_few: bool  # every row keeps at most FEW


@dataclass(frozen=True)
class Bias:
    rows: Tensor
    ids: Tensor
    values: Tensor


@dataclass(frozen=True)
class Penalties:
    rows: Tensor
    lines: Tensor  # of each row in the `Histories`
    repetition: Tensor  # [n, 1]
    presence: Tensor
    frequency: Tensor


class Histories:
    """Which tokens the prompts of penalised sequences have, and how often each was drawn; a line per sequence."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self.counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._free: list[int] = []

    def open(self, prompt_ids: Sequence[int]) -> int:
        """A line for a sequence that has drawn nothing yet."""
        if not self._free:
            n = len(self.counts)
            self.in_prompt = torch.cat([self.in_prompt, self.in_prompt.new_zeros(max(n, 4), self.in_prompt.shape[1])])
            self.counts = torch.cat([self.counts, self.counts.new_zeros(max(n, 4), self.counts.shape[1])])
            self._free = list(range(n, len(self.counts)))
        line = self._free.pop()
        self.counts[line] = 0
        self.in_prompt[line] = False
        self.in_prompt[line, sent(np.unique(np.array(prompt_ids, np.int64)), self.counts.device)] = True
        return line

    def close(self, line: int) -> None:
        self._free.append(line)


class Recipe:
    """How the rows of one batch draw: made when the batch changes, then used step after step."""

    def __init__(
        self, starts: Sequence[Start], lines: Sequence[int | None], vocab_size: int, device: torch.device
    ) -> None:
        """One entry per row of logits; `lines` in the histories, for those with penalties."""
        self.vocab_size, self.device = vocab_size, device
        params = [s.params for s in starts]
        sampled = [i for i, p in enumerate(params) if not p.is_greedy]
        self.is_greedy = not sampled
        self.sampled = self._rows(sampled, len(params))
        self.n_sampled = len(sampled)
        self.temperature = self._column([max(params[i].temperature, COLDEST) for i in sampled])
        cut = [j for j, i in enumerate(sampled) if _is_cut(starts[i], vocab_size)]
        whole = sorted(set(range(len(sampled))) - set(cut))
        self.whole = self._index(whole) if cut else None  # rows among the sampled ones; None: all
        self.n_whole = len(whole)
        self.cuts = self._cuts([starts[sampled[j]] for j in cut], cut, len(sampled)) if cut else None
        self.bias = self._bias(starts)
        self.penalties = self._penalties(starts, lines)
        asking = [i for i, p in enumerate(params) if p.logprobs is not None]
        self.asking = asking
        self.asking_rows = self._rows(asking, len(params))
        self.n_top = min(max((params[i].logprobs or 0 for i in asking), default=0), vocab_size)

    def _index(self, rows: Sequence[int]) -> Tensor:
        return sent(np.array(rows, np.int64), self.device)

    def _rows(self, rows: Sequence[int], n: int) -> Tensor | None:
        return None if len(rows) == n else self._index(rows)

    def _column(self, values: Sequence[float]) -> Tensor:
        return sent(np.array(values, np.float32), self.device)[:, None]

    def _cuts(self, starts: Sequence[Start], rows: Sequence[int], n: int) -> Cuts:
        top_k = [min(s.params.top_k or self.vocab_size, self.vocab_size) for s in starts]
        return Cuts(
            self._rows(rows, n),
            self._index(top_k)[:, None],
            sent(np.array([s.params.top_p for s in starts], np.float64), self.device)[:, None],
            self._column([s.params.min_p for s in starts]),
            only_few=max(top_k) <= FEW < self.vocab_size,
        )

    def _bias(self, starts: Sequence[Start]) -> Bias | None:
        entries = [(i, t, v) for i, s in enumerate(starts) for t, v in s.params.logit_bias.items()]
        if not entries:
            return None
        rows, ids, values = zip(*entries, strict=True)
        return Bias(self._index(rows), self._index(ids), self._column(values)[:, 0])

    def _penalties(self, starts: Sequence[Start], lines: Sequence[int | None]) -> Penalties | None:
        rows = [i for i, s in enumerate(starts) if has_penalties(s)]
        if not rows:
            return None
        params = [starts[i].params for i in rows]
        return Penalties(
            self._index(rows),
            self._index([line for i in rows if (line := lines[i]) is not None]),
            self._column([p.repetition_penalty for p in params]),
            self._column([p.presence_penalty for p in params]),
            self._column([p.frequency_penalty for p in params]),
        )


def has_penalties(start: Start) -> bool:
    p = start.params
    return p.repetition_penalty != 1 or bool(p.presence_penalty or p.frequency_penalty)


def _is_cut(start: Start, vocab_size: int) -> bool:
    p = start.params
    return 0 < p.top_k < vocab_size or p.top_p < 1 or p.min_p > 0


@dataclass
class Bans:
    """Tokens that may not be drawn in this step: single ones, and what grammars leave out."""

    rows: Tensor | None = None  # of single tokens
    ids: Tensor | None = None
    masked_rows: Tensor | None = None
    allowed: Tensor | None = None  # [n, ceil(vocab_size / 32)] int32, a bit per token


def draw(
    logits: Tensor,
    recipe: Recipe,
    u: Tensor | None,
    histories: Histories,
    bans: Bans | None = None,
    guessed: Tensor | None = None,
) -> Tensor:
    """logits [n, vocab_size], u [n_sampled] float64 -> token ids [n]. Mutates nothing.

    guessed [n, k]: tokens guessed before each row (-1: none), which count as drawn.
    """
    logits = adjusted(logits, recipe, histories, bans, guessed)
    if recipe.is_greedy:
        return _greatest(logits)
    assert u is not None
    if recipe.sampled is None:
        return _sampled(logits, recipe, u)
    tokens = _greatest(logits)
    return tokens.index_copy(0, recipe.sampled, _sampled(logits[recipe.sampled], recipe, u))


def _greatest(logits: Tensor) -> Tensor:
    """The first of the greatest logits of each row; on a CPU by NumPy, whose search is several times as fast."""
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16):
        return torch.from_numpy(logits.detach().float().numpy().argmax(-1))
    return logits.argmax(-1)


def adjusted(logits: Tensor, recipe: Recipe, histories: Histories, bans: Bans | None, guessed: Tensor | None) -> Tensor:
    """Bias, penalties and bans, in fp32; the logits as they are if nobody asks for any."""
    if recipe.bias is None and recipe.penalties is None and bans is None:
        return logits
    logits = logits.to(torch.float32, copy=True)
    if recipe.bias is not None:
        at = (recipe.bias.rows, recipe.bias.ids)
        logits.index_put_(at, logits[at] + recipe.bias.values)
    if recipe.penalties is not None:
        p = recipe.penalties
        counts = histories.counts[p.lines]
        if guessed is not None:
            before = guessed[p.rows]
            counts.scatter_add_(1, before.clamp(min=0), (before >= 0).to(counts.dtype))
        there = logits[p.rows]
        seen = histories.in_prompt[p.lines] | (counts > 0)
        pressed = torch.where(there > 0, there / p.repetition, there * p.repetition)
        there = torch.where(seen, pressed, there) - p.presence * (counts > 0) - p.frequency * counts
        logits.index_copy_(0, p.rows, there)
    if bans is not None:
        _ban(logits, bans)
    return logits


def _ban(logits: Tensor, bans: Bans) -> None:
    if bans.rows is not None and bans.ids is not None:
        logits.index_put_((bans.rows, bans.ids), torch.full((), -torch.inf, device=logits.device))
    if bans.masked_rows is not None and bans.allowed is not None:
        bits = torch.arange(32, device=logits.device, dtype=torch.int32)
        allowed = ((bans.allowed[:, :, None] >> bits) & 1).flatten(1)[:, : logits.shape[1]]
        kept = logits[bans.masked_rows].masked_fill(allowed == 0, -torch.inf)
        logits.index_copy_(0, bans.masked_rows, kept)


def _sampled(logits: Tensor, recipe: Recipe, u: Tensor) -> Tensor:
    logits = logits.float()
    scaled = (logits - logits.amax(-1, keepdim=True)) / recipe.temperature
    if recipe.cuts is None:
        return _where_passed(scaled.exp(), u)
    if recipe.cuts.rows is None:
        return _sampled_cut(scaled, recipe.cuts, u)
    tokens = torch.empty(len(u), dtype=torch.long, device=u.device)
    assert recipe.whole is not None
    tokens.index_copy_(0, recipe.whole, _where_passed(scaled[recipe.whole].exp(), u[recipe.whole]))
    cut = recipe.cuts.rows
    return tokens.index_copy_(0, cut, _sampled_cut(scaled[cut], recipe.cuts, u[cut]))


def _sampled_cut(scaled: Tensor, cuts: Cuts, u: Tensor) -> Tensor:
    """Of the tokens that top_k, top_p and min_p leave, likeliest first; scaled [n, vocab_size], the greatest 0."""
    if cuts.only_few:
        ordered, ids = scaled.topk(FEW)
    else:
        ordered, ids = scaled.sort(descending=True, stable=True)
    weights = ordered.exp()
    nth = torch.arange(weights.shape[1], device=weights.device)
    weights = weights.masked_fill(nth >= cuts.top_k, 0)
    passed = weights.cumsum(-1, dtype=torch.float64)
    before = passed - weights  # the likeliest token is always kept
    weights = weights.masked_fill(before >= cuts.top_p * passed[:, -1:], 0)
    weights = weights.masked_fill(weights < cuts.min_p, 0)  # the greatest weight is 1
    return ids.gather(1, _where_passed(weights, u)[:, None])[:, 0]


def _where_passed(weights: Tensor, u: Tensor) -> Tensor:
    """The first column where the sum of weights [n, width] so far exceeds u of the total. A weight of 0 is never it."""
    passed = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(passed, u[:, None] * passed[:, -1:], right=True)[:, 0].clamp(max=weights.shape[1] - 1)
