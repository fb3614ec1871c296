"""Plans that feed random texts in pieces, some of them guesses, as steps that verify guesses do."""

import random

from plait.serve.plan import Row, Start, StepPlan
from plait.text import SamplingParams

LOGPROBS = SamplingParams(temperature=0, logprobs=3)


def plans(rng: random.Random, n_sequences: int) -> list[StepPlan]:
    """Every sequence by pieces of one to five tokens, some of them guesses; a piece of one is at times a decode row."""
    tokens = [[rng.randrange(40) for _ in range(30)] for _ in range(n_sequences)]
    starts = [Start(i, tuple(t), LOGPROBS, frozenset(), 0, None) for i, t in enumerate(tokens)]
    fed = [0] * n_sequences
    made = []
    for number in range(1, 9):
        rows = []
        for i in rng.sample(range(n_sequences), rng.randint(1, n_sequences)):
            n = rng.choice((1, 1, 2, 5))
            n_drafts = rng.randrange(n) if fed[i] else 0
            mode = "fresh" if fed[i] == 0 else "decode" if n == 1 and rng.random() < 0.5 else "resume"
            pages = list(range(10 * i, 10 * i + 10))
            fields = {"draws": True, "n_drafts": n_drafts}
            rows.append(Row(i, mode, n, fed[i], 3 - i, pages, tokens[i][fed[i] : fed[i] + n], **fields))  # type: ignore[arg-type]
            fed[i] += n
        if number > 1 or rng.random() < 0.5:
            rows.sort(key=lambda row: row.mode != "decode")
        made.append(StepPlan(number, rows, started=[] if made else starts))
        if max(fed) > 25:
            break
    return made
