"""What runs measure on their models beside the loss: RULER through our own engine, recall and copying."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import plait.data
from plait.eval.recall import COPYING, RECALL
from plait.eval.ruler import RULER
from plait.eval.ruler.scoring import as_length
from plait.eval.runner import run_task
from plait.eval.statistics import mean_of_groups
from plait.eval.task import Answer, Inputs, Task
from plait.model.checkpoint import load_model
from plait.model.network import LanguageModel
from plait.serve import LLM
from plait.text import Completion, GenerationRequest, Score, ScoreRequest
from plait.train.config import TrainConfig
from plait.train.processes import pick_device

_ROWS = 16
_BATCH = 4  # answers written at once


def measure(config: TrainConfig, folder: Path, out: Path) -> dict[str, float]:
    """What `config.probes` asks for, of the model in `folder`, from 0 to 100: `ruler/4K` and its tasks as
    `ruler/4K/vt` …, `recall` and `recall/4` …, `copying` …; what RULER asked and got goes to `out`.
    """
    device, probes = str(pick_device(config.device)), config.probes
    found: dict[str, float] = {}
    if probes.recall_samples:
        model = load_model(folder, device=device)
        scores = recall_probe(model, samples=probes.recall_samples, seed=config.seed)
        found |= {name: 100 * score for name, score in scores.items()}
        del model
    if probes.ruler_samples:
        found |= ruler_probe(
            folder, out, lengths=probes.ruler_lengths, samples=probes.ruler_samples, tasks=probes.ruler_tasks,
            device=device, seed=config.seed,
        )  # fmt: skip
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return found


def ruler_probe(
    folder: Path,
    out: Path,
    *,
    lengths: Sequence[int] = (4096,),
    samples: int = 4,
    tasks: Sequence[str] = (),
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, float]:
    """RULER on the model in `folder`: by length the mean of its tasks (`ruler/4K`) and each of them, 0 to 100.

    `samples` a task and length; the same for the same seed and tokenizer. `out` gets prompts and answers, as from
    `plait eval ruler`; a probe that was stopped goes on there.
    """
    llm = LLM(folder, device=device, max_context=max(lengths), max_running=_BATCH, prefix_cache=False)
    inputs = Inputs(
        tokenizer=llm.tokenizer,
        chat_template=llm.chat_template,
        prompt_format="chat",
        prose=Path(plait.data.__file__).parent / "corpus",
        seed=seed,
        limit=samples,
        options={"lengths": ",".join(map(str, lengths)), "tasks": ",".join(tasks)},
    )
    summary = run_task(RULER, llm, out, inputs, model=str(folder), batch_size=_BATCH)["summary"]
    found: dict[str, float] = {}
    for length in map(str, sorted(lengths)):
        found[f"ruler/{as_length(int(length))}"] = summary["by_length"][length]
        for task, scores in summary["by_task"].items():
            found[f"ruler/{as_length(int(length))}/{task}"] = scores[length]
    return found


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
