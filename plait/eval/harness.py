"""Any `text.Generator` as a model of lm-evaluation-harness (extra `eval`; paper sections 6.1 and 6.4)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from plait.eval.harness_tasks import PAPER_TASKS, HarnessTask
from plait.eval.records import SCORES, RunFolder, write_json
from plait.eval.runner import Price, conditions
from plait.eval.task import Inputs
from plait.text import GenerationRequest, Generator, SamplingParams, Score, ScoreRequest

T = TypeVar("T")

USAGE = "usage.json"
_BATCH = 64
_SHARES = ("acc", "exact_match", "f1", "em", "mc1", "mc2", "pass@")  # shown in percent, unlike perplexities
_MISSING = "lm-evaluation-harness is not installed: pip install plait[eval]"


def harness_model(
    generator: Generator,
    inputs: Inputs,
    *,
    name: str = "plait",
    max_context: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    tokens: Counter[str] | None = None,
) -> Any:
    """An `lm_eval` model that asks `generator`. Contexts and continuations are cut together, as the harness does.

    Every prompt begins with the beginning-of-text token. `max_context` splits long texts in rolling scores; None scores
    each whole. `tokens` counts those of prompts and completions as they are asked. Raises ValueError without lm-eval,
    and without a tokenizer.
    """
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise ValueError(_MISSING) from error
    tokenizer = inputs.need_tokenizer()
    used = Counter[str]() if tokens is None else tokens

    class PlaitModel(TemplateLM):  # type: ignore[misc, unused-ignore]
        tokenizer_name = name

        @property
        def eot_token_id(self) -> int:
            return tokenizer.eos_ids[0]

        @property
        def prefix_token_id(self) -> int:
            return tokenizer.bos_id

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """With control tokens, since a chat template's output comes here as text; bos at the front once."""
            ids = tokenizer.encode(string, control_tokens=True)
            wants_bos = add_special_tokens is not False and ids[:1] != [tokenizer.bos_id]
            return [tokenizer.bos_id, *ids] if wants_bos else ids

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            asked = [ScoreRequest(context, continuation) for _, context, continuation in requests]
            scores = [score for batch in _batches(asked) for score in _tell(_scores_of(batch))]
            return [(score.logprob, score.is_greedy) for score in scores]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return [self._rolling(self.tok_encode(request.args[0], False)) for request in requests]

        def _rolling(self, ids: list[int]) -> float:
            """The whole text's log-probability, in windows of `max_context` tokens with one token before each."""
            size = max_context or len(ids) or 1
            starts = range(0, len(ids), size)
            windows = [ScoreRequest([ids[s - 1] if s else tokenizer.bos_id], ids[s : s + size]) for s in starts]
            return sum(score.logprob for score in _scores_of(windows))

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            asked = [_generation(self.tok_encode(request.args[0]), request.args[1]) for request in requests]
            answers = [answer for batch in _batches(asked) for answer in _tell(generator.generate(batch))]
            for answer in answers:
                used.update(prompt=answer.prompt_tokens, completion=answer.completion_tokens)
            return [answer.text for answer in answers]

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if inputs.chat_template is None:
                raise ValueError("this model has no chat template: use --prompt-format text")
            return inputs.chat_template.render(chat_history, add_generation_prompt=add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return inputs.chat_template.source if chat_template and inputs.chat_template else None

    def _scores_of(asked: Sequence[ScoreRequest]) -> list[Score]:
        for request in asked:
            used.update(prompt=len(request.context), completion=len(request.continuation))
        return generator.loglikelihood(asked)

    def _tell(answers: list[T]) -> list[T]:
        if on_progress is not None:
            on_progress(len(answers))
        return answers

    return PlaitModel()


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _generation(ids: list[int], arguments: Mapping[str, Any]) -> GenerationRequest:
    """The harness' generation arguments. Raises ValueError for those that would change the answer and aren't known."""
    known = dict(arguments)
    until = known.pop("until", [])
    samples = known.pop("do_sample", True)
    temperature = known.pop("temperature", 0.0) if samples else known.pop("temperature", 0.0) * 0.0
    max_tokens = next((known.pop(key) for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if key in known), 256)
    top_p = known.pop("top_p", 1.0)
    if known:
        raise ValueError(f"the harness asks for {', '.join(known)}, which plait.eval.harness doesn't translate")
    stop = [until] if isinstance(until, str) else [text for text in until if text]
    sampling = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=int(max_tokens), stop=stop)
    return GenerationRequest(token_ids=ids, sampling=sampling)


def run_harness(
    names: Sequence[str],
    generator: Generator,
    out: Path,
    inputs: Inputs,
    *,
    model: str,
    max_context: int | None = None,
    include: Path | None = None,
    price: Price | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run harness tasks with the paper's shots and write a run folder; answers are cached there, so it can go on.

    `include` is a folder of the harness' YAML tasks (for data given by path). Tasks the paper doesn't use keep their
    own shots and metrics. Tokens count what was asked in all calls on this folder. Raises ValueError for names the
    harness doesn't have.
    """
    settings = {
        "task": "harness", "model": model, "tasks": list(names), "prompt_format": inputs.prompt_format,
        "seed": inputs.seed, "limit": inputs.limit, "max_context": max_context,
        "include": None if include is None else str(include),
    }  # fmt: skip
    folder = RunFolder(out, settings)
    tokens = _tokens_so_far(out)
    lm = harness_model(generator, inputs, name=model, max_context=max_context, on_progress=on_progress, tokens=tokens)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(_MISSING) from error
    manager = TaskManager(include_path=None if include is None else str(include))
    groups: dict[str, Any] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        pinned = PAPER_TASKS.get(name)
        results = simple_evaluate(
            lm,
            tasks=[name],
            num_fewshot=None if pinned is None else pinned.shots,
            limit=inputs.limit,
            apply_chat_template=inputs.prompt_format == "chat",
            task_manager=manager,
            random_seed=inputs.seed,
            bootstrap_iters=1000,
            use_cache=str(out / "answers"),
        )
        write_json(out / USAGE, dict(tokens))
        groups[name] = _group(results["results"][name], _n_samples(results), pinned)
        samples |= {task: list(rows) for task, rows in results["samples"].items()}
    _write_samples(folder, samples)
    scores = _scores(groups, folder.settings, model, tokens, price)
    write_json(out / SCORES, scores)
    return scores


def _tokens_so_far(out: Path) -> Counter[str]:
    """Of earlier calls: answers come from the harness' cache when a run goes on, and aren't counted twice."""
    path = out / USAGE
    return Counter(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"prompt": 0, "completion": 0})


def _n_samples(results: Mapping[str, Any]) -> int:
    return sum(counts["effective"] for counts in results["n-samples"].values())


def _group(found: Mapping[str, Any], n: int, pinned: HarnessTask | None) -> dict[str, Any]:
    """The harness' numbers as a group of ours; the pinned metric first. Its standard errors make the intervals."""
    metrics: dict[str, Any] = {}
    for key, value in found.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        value, error = float(value), found.get(f"{name}_stderr,{kind}")
        half = 1.96 * float(error) if isinstance(error, int | float) else 0.0
        unit, scale = ("%", 100) if name.startswith(_SHARES) or "_acc" in name else ("", 1)
        low, high = scale * (value - half), scale * (value + half)
        shown = {"value": round(scale * value, 4), "low": round(low, 4), "high": round(high, 4), "n": n, "unit": unit}
        is_pinned = pinned is not None and (name, kind) == (pinned.metric, pinned.filter)
        metrics = (
            {name: shown} | metrics if is_pinned else metrics | {name if kind == "none" else f"{name} {kind}": shown}
        )
    return {"n": n, "empty": 0, "metrics": metrics}


def _write_samples(folder: RunFolder, samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    known = {record["id"] for record in folder.records}
    for task, rows in samples.items():
        for row in rows:
            identity = f"{task}/{row['doc_id']}/{row.get('filter', 'none')}"
            if identity not in known:
                folder.append(
                    {
                        "id": identity,
                        "group": task,
                        "prompt": json.dumps(row["arguments"], default=str),
                        "answer_prefix": "",
                        "references": [str(row["target"])],
                        "facts": {},
                        "output": json.dumps(row["filtered_resps"], default=str),
                        "scores": {
                            n: float(row[n]) for n in row.get("metrics", ()) if isinstance(row.get(n), int | float)
                        },
                        "prompt_tokens": 0,
                        "completion_tokens": 0,
                    }
                )


def _scores(
    groups: dict[str, Any], settings: dict[str, Any], model: str, tokens: Mapping[str, int], price: Price | None = None
) -> dict[str, Any]:
    """All Table 6 languages together give its average, as the paper takes it."""
    languages = [group["metrics"]["acc"]["value"] for name, group in groups.items() if name.startswith("m_mmlu_")]
    metrics = {}
    if len(languages) == 7:
        value = round(sum(languages) / 7, 4)
        n = sum(group["n"] for group in groups.values())
        metrics["m_mmlu_average"] = {"value": value, "low": value, "high": value, "n": n, "unit": "%"}
    return {
        "task": "harness", "n": sum(group["n"] for group in groups.values()), "empty": 0, "metrics": metrics,
        "groups": groups, "tokens": {kind: tokens[kind] for kind in ("prompt", "completion")}, "summary": {},
        "model": model, "cost_usd": None if price is None else price.of(tokens), "settings": settings,
        "conditions": conditions(),
    }  # fmt: skip
