"""Runs a task: makes samples, asks the model in batches, scores, keeps a record of each, and sums up."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plait.eval.prompt import generation_request, score_request
from plait.eval.records import SCORES, RunFolder, shown_prompt, write_json
from plait.eval.statistics import Estimate, mean_of, mean_of_groups
from plait.eval.task import Answer, Draft, Inputs, Metric, Record, Sample, Task
from plait.text import Generator


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    prompt: float
    completion: float

    def of(self, tokens: Mapping[str, int]) -> float:
        """Of so many `prompt` and `completion` tokens, to the millionth of a dollar."""
        return round((tokens["prompt"] * self.prompt + tokens["completion"] * self.completion) / 1e6, 6)


def run_task(
    task: Task,
    generator: Generator,
    out: Path,
    inputs: Inputs,
    *,
    model: str,
    batch_size: int = 16,
    price: Price | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run `task` in the folder `out` and return what it writes to scores.json.

    A folder that holds part of the same run is gone on with; one of a run with other settings is refused (ValueError).
    `on_progress` is told how many samples are done, and of how many.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    inputs = replace(inputs, options=task.with_defaults(inputs.options))
    plan = task.plan(inputs)
    if not plan.drafts:
        raise ValueError(f"task {task.name} has no samples with these options: {dict(inputs.options)}")
    folder = RunFolder(out, _settings(task, inputs, model, dict(plan.sources)))
    start = time.monotonic()
    done = {record["id"] for record in folder.records}
    left = [draft for draft in plan.drafts if draft.id not in done]
    for batch in _batches(left, batch_size):
        samples = [draft.make() for draft in batch]
        for record in _answer(task, generator, samples, inputs):
            folder.append(record)
        if on_progress is not None:
            on_progress(len(folder.records), len(plan.drafts))
    order = {draft.id: n for n, draft in enumerate(plan.drafts)}
    records = sorted(folder.records, key=lambda record: order[record["id"]])
    scores = sum_up(task, records, seed=inputs.seed)
    scores |= {
        "model": model,
        "cost_usd": None if price is None else price.of(scores["tokens"]),
        "answered_now": len(left),
        "seconds": round(time.monotonic() - start, 3),
        "settings": folder.settings,
        "conditions": conditions(),
    }
    write_json(out / SCORES, scores)
    return scores


def _settings(task: Task, inputs: Inputs, model: str, sources: dict[str, str]) -> dict[str, Any]:
    """What decides the samples and the answers: any of it different is another run."""
    return {
        "task": task.name,
        "model": model,
        "prompt_format": inputs.prompt_format,
        "seed": inputs.seed,
        "limit": inputs.limit,
        "options": dict(inputs.options),
        "sources": sources,
    }


def _batches(drafts: Sequence[Draft], size: int) -> Iterator[Sequence[Draft]]:
    for start in range(0, len(drafts), size):
        yield drafts[start : start + size]


def _answer(task: Task, generator: Generator, samples: Sequence[Sample], inputs: Inputs) -> list[dict[str, Any]]:
    scored = [sample for sample in samples if sample.continuation is not None]
    asked = [sample for sample in samples if sample.continuation is None]
    records = {}
    if scored:
        for sample, score in zip(scored, generator.loglikelihood([score_request(s) for s in scored]), strict=True):
            more = {"logprob": score.logprob, "is_greedy": score.is_greedy, "completion_tokens": score.n_tokens}
            records[sample.id] = _record(task, sample, Answer(score=score)) | more
    if asked:
        completions = generator.generate([generation_request(s, inputs) for s in asked])
        for sample, completion in zip(asked, completions, strict=True):
            records[sample.id] = _record(task, sample, Answer(completion.text)) | {
                "finish_reason": completion.finish_reason,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
            }
    return [records[sample.id] for sample in samples]


def _record(task: Task, sample: Sample, answer: Answer) -> dict[str, Any]:
    prompt: Any = shown_prompt(sample.prompt) if isinstance(sample.prompt, str) else list(sample.prompt)
    record = {
        "id": sample.id,
        "group": sample.group,
        "prompt": [dict(message) for message in sample.messages] if sample.messages else prompt,
        "answer_prefix": sample.answer_prefix,
        "references": list(sample.references),
        "facts": dict(sample.facts),
        "output": answer.text,
        "scores": task.score(sample, answer),
        "prompt_tokens": 0 if isinstance(sample.prompt, str) else len(sample.prompt),
    }
    if sample.continuation is not None:
        record["continuation"] = sample.continuation
    return record


def sum_up(task: Task, records: Sequence[Record], *, seed: int = 0) -> dict[str, Any]:
    """Means with intervals, over all and by group, from records alone (a report can be made again from its folder)."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["group"], []).append(record)
    by_group = {
        name: {"n": len(members), "empty": _n_empty(members), "metrics": _metrics(task, {name: members}, seed)}
        for name, members in groups.items()
    }
    whole = groups if task.mean_over == "groups" else {"": list(records)}
    return {
        "task": task.name,
        "n": len(records),
        "empty": _n_empty(records),
        "metrics": _metrics(task, whole, seed),
        "groups": by_group if list(groups) != [""] else {},
        "tokens": {kind: sum(r[f"{kind}_tokens"] for r in records) for kind in ("prompt", "completion")},
        "summary": task.summarize(records) if task.summarize else {},
    }


def _metrics(task: Task, groups: dict[str, list[Record]], seed: int) -> dict[str, dict[str, Any]]:
    """A metric's samples are those that have it: a scorer may leave one out where it doesn't apply."""
    found = {}
    for metric in task.metrics:
        values = {
            name: given
            for name, members in groups.items()
            if (given := [r["scores"][metric.name] for r in members if metric.name in r["scores"]])
        }
        if values:
            estimate = (
                mean_of_groups(values, seed=seed)
                if len(values) > 1
                else mean_of(next(iter(values.values())), seed=seed)
            )
            found[metric.name] = _scaled(estimate, metric)
    return found


def _scaled(estimate: Estimate, metric: Metric) -> dict[str, Any]:
    numbers = {k: round(v * metric.scale, 4) for k, v in asdict(estimate).items() if k != "n"}
    return numbers | {"n": estimate.n, "unit": metric.unit}


def _n_empty(records: Sequence[Record]) -> int:
    """Answers with nothing but white space."""
    return sum("continuation" not in record and not record["output"].strip() for record in records)


def conditions() -> dict[str, str]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
    }
