"""Batched draws against a plain twin that works token by token, in Python floats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.serve.drawing import Bans, Histories, Recipe, adjusted, draw, has_penalties, request_key, uniforms
from plait.serve.plan import Start
from plait.text import SamplingParams

VOCAB = 9
CPU = torch.device("cpu")


def twin_logits(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], drawn: Sequence[int], banned: Sequence[int]
) -> list[float]:
    """After bias, penalties and bans, one token at a time."""
    out = []
    for token, logit in enumerate(logits):
        logit += params.logit_bias.get(token, 0)
        if token in prompt or token in drawn:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        if token in drawn:
            logit -= params.presence_penalty + params.frequency_penalty * list(drawn).count(token)
        out.append(-math.inf if token in banned else logit)
    return out


def twin_weights(logits: Sequence[float], params: SamplingParams) -> list[tuple[int, float]]:
    """(token, weight) after temperature, top_k, top_p, min_p, in the order in which u passes them."""
    weights = [math.exp((x - max(logits)) / params.temperature) for x in logits]
    if not (0 < params.top_k < len(logits) or params.top_p < 1 or params.min_p > 0):
        return list(enumerate(weights))
    best_first = sorted(enumerate(weights), key=lambda pair: -pair[1])
    if params.top_k:
        best_first = best_first[: params.top_k]
    total, before, kept = sum(w for _, w in best_first), 0.0, []
    for token, weight in best_first:
        if before < params.top_p * total and weight >= params.min_p:
            kept.append((token, weight))
        before += weight
    return kept


def twin_draws(logits: Sequence[float], params: SamplingParams, u: float) -> set[int]:
    """The token that u picks; several where rounding decides."""
    if params.temperature == 0:
        return {i for i, x in enumerate(logits) if x >= max(logits) - 1e-5}
    picked = set()
    for nudge in (-1e-5, 0, 1e-5):
        for cut in (-1e-5, 0, 1e-5):
            nudged = SamplingParams(
                temperature=params.temperature, top_k=params.top_k, top_p=min(1, max(1e-9, params.top_p + cut)),
                min_p=min(1, max(0, params.min_p + (cut if params.min_p else 0))),
            )  # fmt: skip
            weights = twin_weights(logits, nudged)
            passed, target = 0.0, (u + nudge) * sum(w for _, w in weights)
            for token, weight in weights:
                passed += weight
                if passed > target:
                    picked.add(token)
                    break
    return picked


PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
        "top_k": st.integers(0, VOCAB + 2),
        "top_p": st.floats(0.05, 1),
        "min_p": st.floats(0, 1),
        "repetition_penalty": st.floats(0.5, 2),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5), max_size=3),
    },
)
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=5)
ROWS = st.lists(
    st.tuples(PARAMS, TOKENS, TOKENS, st.sets(st.integers(0, VOCAB - 1), max_size=3)), min_size=1, max_size=6
)


def start(params: SamplingParams, prompt: Sequence[int] = (), number: int = 0) -> Start:
    return Start(number, tuple(prompt), params, frozenset(), 0, None)


@given(rows=ROWS, seed=st.integers(0, 2**20))
def test_a_batch_draws_what_the_twin_draws_row_by_row(rows: list[Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), VOCAB, generator=generator) * 2
    histories = Histories(VOCAB, CPU)
    starts = [start(SamplingParams(**fields), prompt) for fields, prompt, _, _ in rows]
    lines: list[int | None] = []
    for one, (_, _, drawn, _) in zip(starts, rows, strict=True):
        lines.append(histories.open(one.prompt) if has_penalties(one) else None)
        if lines[-1] is not None:
            for token in drawn:
                histories.counts[lines[-1], token] += 1
    recipe = Recipe(starts, lines, VOCAB, CPU)
    pairs = [(row, token) for row, (_, _, _, banned) in enumerate(rows) for token in banned]
    bans = Bans(*(torch.tensor(part) for part in zip(*pairs, strict=True))) if pairs else None
    u = torch.rand(recipe.n_sampled, dtype=torch.float64, generator=generator)
    before = logits.clone()
    tokens = draw(logits, recipe, u, histories, bans).tolist()
    assert torch.equal(logits, before)
    next_u = iter(u.tolist())
    for row, token, one, (_, prompt, drawn, banned) in zip(logits.tolist(), tokens, starts, rows, strict=True):
        wanted = twin_logits(row, one.params, prompt, drawn if has_penalties(one) else (), sorted(banned))
        assert token in twin_draws(wanted, one.params, 0 if one.params.is_greedy else next(next_u))


@given(rows=ROWS, seed=st.integers(0, 2**20))
def test_a_row_draws_the_same_alone(rows: list[Any], seed: int) -> None:
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(seed)) * 2
    starts = [start(SamplingParams(**fields)) for fields, *_ in rows]
    keys = np.array([request_key(seed, i) for i in range(len(rows))], np.uint64)
    every_u = torch.from_numpy(uniforms(keys, np.zeros(len(rows), np.uint64)))

    def drawn(which: list[int]) -> list[int]:
        histories = Histories(VOCAB, CPU)
        mine = [starts[i] for i in which]
        lines = [histories.open(()) if has_penalties(one) else None for one in mine]
        u = every_u[[i for i in which if not starts[i].params.is_greedy]]
        return draw(logits[which], Recipe(mine, lines, VOCAB, CPU), u, histories).tolist()

    assert drawn(list(range(len(rows)))) == [drawn([i])[0] for i in range(len(rows))]


def test_frequencies_are_the_probabilities() -> None:
    p, n = [0.5, 0.25, 0.15, 0.1], 20_000
    recipe = Recipe([start(SamplingParams())], [None], 4, CPU)
    u = uniforms(np.full(n, request_key(0, 0), np.uint64), np.arange(n, dtype=np.uint64))
    logits = torch.tensor(p).log().expand(n, 4)
    drawn = Counter(draw(logits, recipe, torch.from_numpy(u), Histories(4, CPU)).tolist())
    for token, share in enumerate(p):
        assert drawn[token] / n == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


def test_random_numbers_are_even_and_unrelated() -> None:
    """Over seeds, answers and positions, also neighbouring ones: mean, variance and correlations of fair numbers."""
    keys = np.array([request_key(seed, answer) for seed in range(200) for answer in range(5)], np.uint64)
    grid = np.stack([uniforms(keys, np.full(len(keys), p, np.uint64)) for p in range(50)])
    n = grid.size
    assert 0 <= grid.min() < grid.max() < 1
    assert grid.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * n))
    assert grid.var() == pytest.approx(1 / 12, rel=0.02)
    for other in (np.roll(grid, 1, 0), np.roll(grid, 1, 1), np.roll(grid, 5, 1)):
        assert abs(np.corrcoef(grid.ravel(), other.ravel())[0, 1]) < 4 / math.sqrt(n)
    assert len(np.unique(grid)) == n


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.01}, {0}),
        ({"top_p": 0.5}, {0}),  # 0.5 is reached by the first alone
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.8}, {0, 1, 2}),
        ({"min_p": 0.49}, {0, 1}),
        ({"min_p": 0.51}, {0}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 2, "top_p": 0.6}, {0}),  # of what top_k left, the first has 2/3
        ({"logit_bias": {3: 100}}, {3}),
        ({"logit_bias": {0: -100}}, {1, 2, 3}),
        ({"temperature": 1e-40}, {0}),
        ({"temperature": 1e6}, {0, 1, 2, 3}),
    ],
)
@pytest.mark.parametrize("vocab", [4, 300])  # beyond FEW, top_k alone is found without sorting
def test_what_each_cut_keeps(fields: dict[str, Any], kept: set[int], vocab: int) -> None:
    n = 300
    p = [0.5, 0.25, 0.15, 0.1] + [0.0] * (vocab - 4)
    logits = torch.tensor(p).log().expand(n, vocab)
    recipe = Recipe([start(SamplingParams(**fields))] * n, [None] * n, vocab, CPU)
    u = torch.linspace(1e-9, 1 - 1e-9, n, dtype=torch.float64)
    assert set(draw(logits, recipe, u, Histories(vocab, CPU)).tolist()) == kept


def test_equal_logits_are_cut_to_exactly_top_k() -> None:
    for vocab in (8, 500):
        recipe = Recipe([start(SamplingParams(top_k=3))] * 100, [None] * 100, vocab, CPU)
        u = torch.linspace(0, 0.999, 100, dtype=torch.float64)
        assert len(set(draw(torch.ones(100, vocab), recipe, u, Histories(vocab, CPU)).tolist())) == 3


def test_an_all_greedy_batch_only_takes_the_greatest(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe([start(SamplingParams(temperature=0))] * 2, [None] * 2, 3, CPU)
    logits = torch.tensor([[0.0, 2, 1], [5, 2, 1]])
    assert adjusted(logits, recipe, Histories(3, CPU), None, None) is logits  # nothing is copied
    assert draw(logits, recipe, None, Histories(3, CPU)).tolist() == [1, 0]


def test_guesses_before_a_row_count_as_drawn() -> None:
    """Verify rows: each later row is penalised for the drafts before it, twice for one that comes twice."""
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    histories = Histories(4, CPU)
    line = histories.open([])
    recipe = Recipe([start(params)] * 3, [line] * 3, 4, CPU)
    guessed = torch.tensor([[-1, -1], [2, -1], [2, 2]])
    logits = adjusted(torch.zeros(3, 4), recipe, histories, None, guessed)
    assert logits.tolist() == [[0, 0, 0, 0], [0, 0, -1, 0], [0, 0, -2, 0]]
    assert histories.counts[line].tolist() == [0, 0, 0, 0]


def test_a_closed_line_begins_anew() -> None:
    histories = Histories(4, CPU)
    lines = [histories.open([1]) for _ in range(9)]
    assert len(set(lines)) == 9
    histories.counts[lines[3], 2] = 7
    histories.close(lines[3])
    assert histories.open([0]) == lines[3]
    assert histories.counts[lines[3]].tolist() == [0, 0, 0, 0]
    assert histories.in_prompt[lines[3]].tolist() == [True, False, False, False]


def test_a_mask_leaves_the_tokens_whose_bits_are_set() -> None:
    vocab = 70
    allowed = [3, 31, 32, 63, 64, 69]
    words = np.zeros(3, np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << token % 32)
    bans = Bans(masked_rows=torch.tensor([1]), allowed=torch.from_numpy(words.view(np.int32))[None])
    recipe = Recipe([start(SamplingParams(temperature=0))] * 2, [None] * 2, vocab, CPU)
    logits = adjusted(torch.zeros(2, vocab), recipe, Histories(vocab, CPU), bans, None)
    assert torch.isfinite(logits[0]).all()
    assert torch.isfinite(logits[1]).nonzero()[:, 0].tolist() == allowed
