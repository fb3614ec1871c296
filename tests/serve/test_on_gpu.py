"""The engine on a GPU: graphs, overlap, pinned copies. Greedy tokens are the plain model's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plait.serve import LLM
from plait.text import SamplingParams

pytestmark = pytest.mark.gpu

SHAPE = {"d_model": 64, "d_ff": 96, "n_layers": 8, "attn_period": 4, "attn_offset": 2, "vocab_size": 300, "d_state": 16}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def prompts(n: int) -> list[list[int]]:
    draws = torch.Generator().manual_seed(1)
    return [torch.randint(1, 300, (1 + 37 * i % 211,), generator=draws).tolist() for i in range(n)]


@pytest.fixture(scope="module")
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(**SHAPE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batched_tokens": 48, "max_running": 5},
        {"cache_tokens": 512, "max_running": 8, "host_gib": 0.05},
        {"n_drafts": 3},
    ],
)
@torch.inference_mode()
def test_greedy_tokens_are_the_plain_models(folder: Path, options: dict[str, float]) -> None:
    llm = LLM(folder, device="cuda", **({"cache_tokens": 16384, "max_context": 400} | options))  # type: ignore[arg-type]
    asked = prompts(20)
    for _ in range(2):  # the second time from the prefix cache
        done = llm.generate(asked, GREEDY)
        llm.engine.check()  # type: ignore[union-attr]
        for prompt, completion in zip(asked, done, strict=True):
            ids = torch.tensor([[*prompt, *completion.token_ids]], device="cuda")
            logits = llm.model(ids).logits[0, len(prompt) - 1 : -1]
            chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            assert (logits.max(-1).values - chosen).max() <= 2e-3  # tf32 is off; sums in another order


def test_draws_do_not_depend_on_the_batch(folder: Path) -> None:
    llm = LLM(folder, device="cuda", cache_tokens=16384, max_context=400)
    params = SamplingParams(seed=7, temperature=0.8, top_p=0.9, max_tokens=24, ignore_eos=True)
    together = llm.generate(prompts(8), params)
    alone = [llm.generate([prompt], params)[0] for prompt in prompts(8)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


@pytest.mark.gpus(2)
@pytest.mark.parametrize("expert_parallel", [False, True])
def test_two_gpus_write_what_one_writes(folder: Path, expert_parallel: bool) -> None:
    options = {"device": "cuda", "cache_tokens": 8192, "max_context": 400}
    one = LLM(folder, **options)  # type: ignore[arg-type]
    two = LLM(folder, **options, tensor_parallel=2, expert_parallel=expert_parallel)  # type: ignore[arg-type]
    expected = one.generate(prompts(8), GREEDY)
    assert [c.token_ids for c in two.generate(prompts(8), GREEDY)] == [c.token_ids for c in expected]
