"""The whole engine on a tiny model in fp32: over random schedules the greedy tokens are the plain model's own."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from plait.config import ModelConfig
from plait.model import LanguageModel, init_weights
from plait.serve.engine import Engine
from plait.serve.pools import PoolSizes
from plait.serve.request import Request
from plait.serve.runner import Runner
from plait.serve.scheduler import Limits
from plait.text import SamplingParams

PAGE = 4
TINY = ModelConfig(
    vocab_size=11, d_model=16, d_ff=24, n_layers=3, n_heads=2, n_kv_heads=1, attn_period=3, attn_offset=1, n_experts=2,
    d_state=4, init_std=0.4, max_context=128, dtype="float32",
)  # fmt: skip
NEAR = 1e-4  # two tokens whose logits differ by less are as good as each other


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return init_weights(LanguageModel(TINY), seed=3).eval()


@torch.inference_mode()
def assert_greedy(model: LanguageModel, prompt: Sequence[int], new: Sequence[int]) -> None:
    """Each new token is the likeliest where it stands, by the plain model fed whole."""
    logits = model(torch.tensor([[*prompt, *new]])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(new)[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() <= NEAR


def schedule(model: LanguageModel, seed: int, disk: Path) -> Engine:
    rng = random.Random(seed)
    max_running = rng.choice((1, 3))
    sizes = PoolSizes(
        max_running + rng.choice((0, 2, 6)), rng.choice((14, 30)), rng.choice((0, 4)), rng.choice((0, 12)),
        *rng.choice(((0, 0), (3, 20))),
    )  # fmt: skip
    runner = Runner(
        model, n_slots=sizes.slots, n_pages=sizes.pages, page_size=PAGE, max_context=56,
        host_states=sizes.host_slots, host_pages=sizes.host_pages, disk=disk if sizes.disk_slots else None,
        static=rng.random() < 0.3,
    )  # fmt: skip
    n_drafts = rng.choice((0, 3))
    engine = Engine(
        runner, sizes, page_size=PAGE, limits=Limits(rng.choice((1, 7, 64)), max_running, n_drafts, aging=4), ladder=8,
        overlap=n_drafts == 0 and rng.random() < 0.5,
    )  # fmt: skip
    stems = [[rng.randrange(11) for _ in range(rng.choice((5, 21, 40)))] for _ in range(2)]
    asked: dict[int, Request] = {}
    answers: dict[tuple[int, int], list[int]] = {}
    dropped: set[int] = set()

    def step() -> None:
        for out in engine.step():
            answers.setdefault((out.request, out.answer), []).extend(out.token_ids)
        engine.check()

    for _ in range(rng.randint(2, 6)):
        stem = rng.choice(stems)
        prompt = [*stem[: rng.randint(1, len(stem))], *(rng.randrange(11) for _ in range(rng.choice((0, 1, 6))))]
        params = SamplingParams(temperature=0, max_tokens=rng.choice((1, 5, 10)), n=rng.choice((1, 1, 2)))
        request = Request(tuple(prompt), params, priority=rng.choice((0, 0, -1)))
        asked[engine.add(request)] = request
        for _ in range(rng.choice((0, 2, 9))):
            step()
        if rng.random() < 0.1:
            dropped.add(rng.choice(list(asked)))
            engine.abort(max(dropped))
    while not engine.is_idle:
        step()
    for number, request in asked.items():
        for nth in range(request.params.n):
            new = answers.get((number, nth), [])
            assert len(new) == request.params.max_tokens or number in dropped
            if new:
                assert_greedy(model, request.prompt, new)
    runner.close()
    return engine


@pytest.mark.parametrize("block", range(4))
def test_random_schedules_on_a_model(model: LanguageModel, tmp_path: Path, block: int) -> None:
    hits = preemptions = right = 0
    for seed in range(60 * block, 60 * (block + 1)):
        try:
            stats = schedule(model, seed, tmp_path / str(seed)).stats()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        hits += stats.prefix_usable_total
        preemptions += stats.preemptions_total
        right += stats.drafts_accepted_total
    assert min(hits, preemptions, right) > 3
