"""The engine against the fake executor, over random schedules: whatever is batched, chunked, preempted, found in the
cache, moved between tiers, guessed or aborted, answers are those of each prompt alone, and nothing is lost.

10,000 schedules run on real models (test_engine_with_a_model.py). These have what a model would be slow at or couldn't
show: grammars that fail, scored prompts, and an executor that holds plans to what plan.py promises.
"""

import random
from collections import Counter

import pytest

from plait.serve.pools import PoolSizes
from plait.serve.request import Request
from plait.serve.scheduler import Limits
from plait.serve.service import Grammar
from plait.text import SamplingParams
from tests.serve.engine_run import PAGE, Run
from tests.serve.fake_executor import answer


def random_request(rng: random.Random, stems: list[list[int]], most: int, vocab_size: int) -> Request:
    """A prompt that may begin like others, or be one seen before."""
    stem = rng.choice(stems)
    prompt = stem[: rng.randint(1, len(stem))] + [rng.randrange(vocab_size) for _ in range(rng.choice((0, 0, 1, 3, 9)))]
    max_tokens = rng.choice((1, 2, 5, 12))
    prompt = prompt[: most - max_tokens + 1]
    if rng.random() < 0.3:
        stems.append(prompt + answer(prompt, max_tokens, vocab_size))
    scores = rng.random() < 0.1
    params = SamplingParams(
        max_tokens=0 if scores and rng.random() < 0.5 else max_tokens,
        min_tokens=0 if scores else rng.choice((0, 0, 1)),
        n=rng.choice((1, 1, 1, 3)),
        prompt_logprobs=0 if scores else None,
        logprobs=rng.choice((None, None, 0)),
    )
    return Request(
        tuple(prompt),
        params,
        end_ids=frozenset({0}) if rng.random() < 0.3 else frozenset(),
        turns=tuple(sorted(rng.sample(range(1, len(prompt) + 1), min(2, len(prompt))))),
        priority=rng.choice((0, 0, 0, -1, 1)),
        grammar=Grammar("regex", str(len(prompt) + rng.randint(0, 6))) if rng.random() < 0.04 and not scores else None,
        salt=rng.choice(("", "", "", "other")),
        is_private=rng.random() < 0.1,
    )


def random_run(rng: random.Random) -> Run:
    vocab_size = rng.choice((2, 3, 50))
    max_running = rng.choice((1, 2, 4))
    pages = rng.choice((8, 10, 16, 40))
    has_host, has_disk = rng.random() < 0.6, rng.random() < 0.3
    sizes = PoolSizes(
        slots=max_running + rng.choice((0, 0, 1, 3, 8)),
        pages=pages,
        host_slots=rng.choice((0, 2, 6)) if has_host else 0,
        host_pages=rng.choice((1, 6, 30)) if has_host else 0,
        disk_slots=rng.choice((1, 9)) if has_disk else 0,
        disk_pages=rng.choice((2, 30)) if has_disk else 0,
    )
    n_drafts = rng.choice((0, 0, 1, 3))
    limits = Limits(rng.choice((1, 3, 8, 100)), max_running, n_drafts, aging=rng.choice((1, 4, 20)))
    return Run(
        sizes, vocab_size=vocab_size, limits=limits, page_bytes=rng.choice((1, 9)), state_bytes=rng.choice((1, 9)),
        ladder=rng.choice((PAGE, 2 * PAGE, 100)), overlap=rng.random() < 0.5,
    )  # fmt: skip


def random_schedule(seed: int) -> Run:
    rng = random.Random(seed)
    run = random_run(rng)
    vocab_size, most = run.executor.vocab_size, run.engine.memory.sizes.pages * PAGE
    stems = [[rng.randrange(vocab_size) for _ in range(rng.choice((3, 9, 17, 30)))] for _ in range(2)]
    for _ in range(rng.randint(1, 7)):
        number = run.add(random_request(rng, stems, most, vocab_size))
        for _ in range(rng.choice((0, 0, 1, 4, 12))):
            run.step()
        if rng.random() < 0.12:
            run.abort(rng.randint(0, number), rng.choice((None, 0, 1)))
            run.engine.check()
    run.finish()
    run.check_answers()
    tree = run.engine.memory.tree
    assert all(salt in ("", "other") for salt in tree.roots)  # private requests leave nothing
    return run


@pytest.mark.parametrize("block", range(4))
def test_random_schedules(block: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(500 * block, 500 * (block + 1)):
        try:
            run = random_schedule(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        stats = run.engine.stats()
        seen["preemptions"] += stats.preemptions_total
        seen["hits"] += stats.prefix_usable_total
        seen["lost"] += stats.prefix_lost_total
        seen["drafts"] += stats.drafts_total
        seen["right drafts"] += stats.drafts_accepted_total
        seen["copies"] += run.executor.n_copies
        seen["states from inside of chunks"] += run.executor.n_exports
        seen["aborts"] += len(run.aborted)
    assert min(seen.values()) > 25, seen
