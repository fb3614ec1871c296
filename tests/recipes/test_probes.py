"""Probes on a model in training: the numbers `plait eval` gives, and a model that can look back gets all right."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.recipes.probes import ModelScores, measure, recall_probe
from plait.recipes.sft import sft_demo
from plait.text import GenerationRequest, ScoreRequest
from plait.train.config import ProbeConfig

CONFIG = ModelConfig(
    vocab_size=300, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=4, attn_offset=2,
    n_experts=4, d_state=4, init_std=0.3, dtype="float32",
)  # fmt: skip


class LooksBack(nn.Module):
    """Says what stood behind the last place that held the token it sees now: induction, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.config = CONFIG
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, token_ids: Tensor) -> SimpleNamespace:
        logits = torch.zeros(*token_ids.shape, CONFIG.vocab_size)
        for row, ids in enumerate(token_ids.tolist()):
            last: dict[int, int] = {}
            for at, token in enumerate(ids):
                if token in last:
                    logits[row, at, ids[last[token] + 1]] = 9.0
                last[token] = at
        return SimpleNamespace(logits=logits)


def test_a_model_that_looks_back_recalls_and_copies_everything() -> None:
    found = recall_probe(LooksBack(), samples=8)
    assert found == {
        "recall/4": 1, "recall/16": 1, "recall": 1, "copying/32": 1, "copying/128": 1, "copying": 1,
    }  # fmt: skip


def test_an_untrained_model_does_not() -> None:
    model = init_weights(LanguageModel(CONFIG), seed=0).train()
    found = recall_probe(model, samples=16)
    assert max(found.values()) < 0.2
    assert found == recall_probe(model, samples=16)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_are_those_of_one_forward() -> None:
    model = init_weights(LanguageModel(CONFIG), seed=0).eval()
    requests = [ScoreRequest([1, 5, 9], [7, 8]), ScoreRequest([4], [3]), ScoreRequest([2, 6, 9], [9, 250])]
    for request, score in zip(requests, ModelScores(model).loglikelihood(requests), strict=True):
        ids = [*request.context, *request.continuation]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[at - 1, ids[at]]) for at in range(len(request.context), len(ids)))
        assert score.logprob == pytest.approx(expected, abs=1e-4)
        assert score.n_tokens == len(request.continuation)
    with pytest.raises(ValueError, match="doesn't generate"):
        ModelScores(model).generate([GenerationRequest(prompt="x")])


def test_what_a_run_asks_for_is_measured_through_the_engine(tmp_path: Path) -> None:
    probes = ProbeConfig(ruler_samples=2, ruler_lengths=(1024,), ruler_tasks=("niah_single_1", "vt"), recall_samples=4)
    config = replace(sft_demo(), device="cpu", probes=probes)
    found = measure(config, Path(config.start), tmp_path / "out")
    tasks = {f"ruler/1K/{task}" for task in probes.ruler_tasks}
    assert set(found) >= {"ruler/1K", *tasks, "recall", "recall/4", "copying/128"}
    assert found["ruler/1K"] == pytest.approx(sum(found[task] for task in tasks) / 2, abs=0.01)
    assert all(0 <= score <= 100 for score in found.values())
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [s["id"] for s in samples] == ["niah_single_1/1K/0", "niah_single_1/1K/1", "vt/1K/0", "vt/1K/1"]
    assert all(s["prompt_tokens"] > 700 for s in samples)
    assert measure(config, Path(config.start), tmp_path / "out") == found  # what is there is not asked again
