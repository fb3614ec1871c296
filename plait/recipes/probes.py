"""Recall and copying during training: what `plait eval recall` and `copying` measure, on the model as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from plait.eval.recall import COPYING, RECALL
from plait.eval.statistics import mean_of_groups
from plait.eval.task import Answer, Inputs, Task
from plait.model.network import LanguageModel
from plait.text import Completion, GenerationRequest, Score, ScoreRequest

_ROWS = 16


def recall_probe(
    model: LanguageModel,
    *,
    pairs: Sequence[int] = (4, 16),
    sizes: Sequence[int] = (32, 128),
    samples: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """`recall/4` … and `copying/32` …: the share of exact answers per size, and their mean as `recall` and `copying`.

    Random tokens of the model's whole vocabulary, the same for the same seed. 0.5 to 2 seconds of a small model on two
    cores. The model's mode and gradients are left as they were. Chance is one in the vocabulary.
    """
    found: dict[str, float] = {}
    for task, option, wanted in ((RECALL, "pairs", pairs), (COPYING, "sizes", sizes)):
        by_size = _exact(task, model, {option: ",".join(map(str, wanted))}, samples, seed)
        found |= {f"{task.name}/{size}": sum(exact) / len(exact) for size, exact in by_size.items()}
        found[task.name] = mean_of_groups(by_size).value
    return found


def _exact(
    task: Task, model: LanguageModel, options: dict[str, str], samples: int, seed: int
) -> dict[str, list[float]]:
    given = task.with_defaults(options | {"vocab_size": str(model.config.vocab_size)})
    drafts = task.plan(Inputs(seed=seed, limit=samples, options=given)).drafts
    asked = [draft.make() for draft in drafts]
    scores = ModelScores(model).loglikelihood([ScoreRequest(s.prompt, s.continuation or ()) for s in asked])
    found: dict[str, list[float]] = {}
    for sample, score in zip(asked, scores, strict=True):
        size = sample.group.partition(" ")[0]
        found.setdefault(size, []).append(task.score(sample, Answer(score=score))["exact"])
    return found


@dataclass(frozen=True)
class ModelScores:
    """A bare model as a `text.Generator` that only scores token ids: one forward for requests of one length."""

    model: LanguageModel

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        raise ValueError("ModelScores doesn't generate: give the saved model's folder to plait.LLM")

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, request in enumerate(requests):
            by_shape.setdefault((len(request.context), len(request.continuation)), []).append(index)
        was_training = self.model.training
        self.model.eval()
        found: dict[int, Score] = {}
        for (_, n), indices in by_shape.items():
            for start in range(0, len(indices), _ROWS):
                rows = indices[start : start + _ROWS]
                found |= zip(rows, self._scored([requests[i] for i in rows], n), strict=True)
        self.model.train(was_training)
        return [found[index] for index in range(len(requests))]

    @torch.no_grad()
    def _scored(self, requests: Sequence[ScoreRequest], n: int) -> list[Score]:
        device = next(self.model.parameters()).device
        token_ids = torch.tensor([[*r.context, *r.continuation] for r in requests], device=device)
        logprobs = self.model(token_ids[:, :-1]).logits[:, -n:].float().log_softmax(-1)  # [rows, n, vocab_size]
        own = logprobs.gather(-1, token_ids[:, -n:, None]).squeeze(-1)
        is_greedy = (own >= logprobs.amax(-1)).all(-1)
        return [Score(float(total), bool(greedy), n) for total, greedy in zip(own.sum(-1), is_greedy, strict=True)]
