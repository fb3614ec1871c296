"""Arena-Hard and WildBench (paper section 6.2, Table 3): answers first, then a judge model reads them.

Both steps are tasks. `plait eval arena_hard --model M --out A` writes answers; `plait eval arena_hard_judge --model
JUDGE --set answers=A --set baseline=FILE --out J` judges them, every pair in both orders. Any model can judge; the
paper's numbers come from GPT-4 Turbo.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait.eval.records import Run, read_run
from plait.eval.statistics import mean_of, weighted_mean_of_kinds
from plait.eval.task import Answer, Inputs, Metric, Option, Plan, Record, Sample, Task, file_version, ready
from plait.eval.verdict import Verdict, length_controlled_win_rate, read_pairwise, read_score, win_rate

_PAIR_PROMPT = """You compare two assistants' answers to the same request and say which serves the user better.

First work out an answer of your own. Then compare: is it correct, does it do what was asked, does it help, is it clear?
Point out mistakes. Being longer is no merit in itself, and the order in which the answers are shown means nothing.

End with exactly one of these labels:
[[A>>B]] A is much better, [[A>B]] A is better, [[A=B]] about the same, [[B>A]] B is better, [[B>>A]] B is much better.

<request>
{request}
</request>

<answer A>
{a}
</answer A>

<answer B>
{b}
</answer B>"""

_SCORE_PROMPT = """You grade an assistant's last answer in a conversation, strictly, with a whole number from 1 to 10:
1-2 useless or harmful, 3-4 poor, 5-6 middling with clear faults, 7-8 good, 9-10 could hardly be better.
Go through the checklist one by one before you decide. Being longer is no merit in itself.

<conversation>
{conversation}
</conversation>

<answer>
{answer}
</answer>

<checklist>
{checklist}
</checklist>

Answer with a JSON object and nothing else: {{"strengths": "…", "weaknesses": "…", "score": "…"}}"""


def plan_arena(inputs: Inputs) -> Plan:
    path = inputs.file("arena_hard/question.jsonl")
    samples = [
        Sample(_arena_id(row), messages=[{"role": "user", "content": _arena_prompt(row)}], max_tokens=4096)
        for row in _rows(path)
    ]
    return Plan(ready(samples, inputs), {"questions": file_version(path)})


def _arena_id(row: dict[str, Any]) -> str:
    return str(row.get("question_id") or row["uid"])


def _arena_prompt(row: dict[str, Any]) -> str:
    return str(row["turns"][0]["content"] if "turns" in row else row["prompt"])


def plan_wild(inputs: Inputs) -> Plan:
    path = inputs.file("wild_bench/test.jsonl")
    samples = [
        Sample(
            str(row["session_id"]),
            messages=[{"role": turn["role"], "content": turn["content"]} for turn in row["conversation_input"]],
            max_tokens=4096,
            facts={"checklist": row.get("checklist", []), "kinds": _kinds(row)},
        )
        for row in _rows(path)
    ]
    return Plan(ready(samples, inputs), {"questions": file_version(path)})


_KIND_OF_TAG = {
    "Information seeking": "information", "Advice seeking": "information", "Creative Writing": "creative",
    "Editing": "creative", "Brainstorming": "creative", "Role playing": "creative", "Others": "creative",
    "Coding & Debugging": "coding", "Reasoning": "planning", "Planning": "planning", "Math": "math",
    "Data Analysis": "math",
}  # fmt: skip
KIND_WEIGHTS = {"creative": 0.5, "planning": 1.25, "math": 1.0, "information": 0.75, "coding": 1.25}
"""WildBench's own: the score on its leaderboard, which Table 3 quotes, is the mean over these kinds of request."""


def _kinds(row: dict[str, Any]) -> list[str]:
    tags = [row.get("primary_tag", "Others"), *row.get("secondary_tags", [])]
    return sorted({_KIND_OF_TAG.get(tag, "creative") for tag in tags})


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def n_words(sample: Sample, answer: Answer) -> dict[str, float]:
    return {"words": float(len(answer.text.split()))}


def plan_arena_judge(inputs: Inputs) -> Plan:
    """Each pair twice, the judged answer first and second."""
    run = _answers(inputs, "arena_hard")
    baseline = read_baseline(Path(inputs.options["baseline"]))
    missing = [record["id"] for record in run.records if record["id"] not in baseline]
    if missing:
        raise ValueError(f"baseline={inputs.options['baseline']} has no answer to question {missing[0]}")
    samples = [
        _pair(record, baseline[record["id"]], judged_is_a, run)
        for record in run.records
        for judged_is_a in (True, False)
    ]
    return Plan(ready(samples, inputs), {"judged": _digest(run), "baseline": file_version(_answers_file(inputs))})


def _answers_file(inputs: Inputs) -> Path:
    path = Path(inputs.options["baseline"])
    return path / "samples.jsonl" if path.is_dir() else path


def _answers(inputs: Inputs, task: str) -> Run:
    if not inputs.options["answers"]:
        raise ValueError(f"name the run whose answers to judge: --set answers=DIR, made by `plait eval {task}`")
    run = read_run(Path(inputs.options["answers"]))
    if run.scores["task"] != task:
        raise ValueError(f"{run.folder} is a run of {run.scores['task']}; this judges answers of {task}")
    return run


def _digest(run: Run) -> str:
    return file_version(run.folder / "samples.jsonl")


def read_baseline(path: Path) -> dict[str, str]:
    """Answers of the model to compare with: a run folder of ours, or Arena-Hard's model_answer file."""
    if not path.exists() or str(path) == ".":
        raise ValueError(f"baseline={path}: give a run folder or a model_answer file, --set baseline=PATH")
    if path.is_dir():
        return {record["id"]: record["output"] for record in read_run(path).records}
    return {_arena_id(row): _published_answer(row) for row in _rows(path)}


def _published_answer(row: dict[str, Any]) -> str:
    if "choices" in row:
        return str(row["choices"][0]["turns"][0]["content"])
    content = row["messages"][-1]["content"]
    return str(content["answer"] if isinstance(content, dict) else content)


def _pair(record: Record, other: str, judged_is_a: bool, run: Run) -> Sample:
    judged = record["output"]
    a, b = (judged, other) if judged_is_a else (other, judged)
    request = record["prompt"][0]["content"]
    return Sample(
        f"{record['id']}/{'AB' if judged_is_a else 'BA'}",
        _PAIR_PROMPT.format(request=request, a=a, b=b),
        max_tokens=4096,
        facts={
            "judged_is_a": judged_is_a,
            "words_more": len(judged.split()) - len(other.split()),
            "judged": run.scores["model"],
        },
    )


def score_pair(sample: Sample, answer: Answer) -> dict[str, float]:
    """`win` is missing where the judge gives no verdict; `judged` says how often it gave one."""
    verdict = read_pairwise(answer.text, judged_is_a=sample.facts["judged_is_a"])
    return {"judged": 0.0} if verdict is None else {"win": verdict.win, "weight": verdict.weight, "judged": 1.0}


def summarize_pairs(records: Sequence[Record]) -> dict[str, Any]:
    given = [record for record in records if "win" in record["scores"]]
    if not given:
        return {"judged": records[0]["facts"]["judged"]}
    verdicts = [Verdict(record["scores"]["win"], int(record["scores"]["weight"])) for record in given]
    mean_weight = sum(verdict.weight for verdict in verdicts) / len(verdicts)
    weighted = mean_of([100 * (v.win - 0.5) * v.weight / mean_weight + 50 for v in verdicts])
    controlled = length_controlled_win_rate(verdicts, [record["facts"]["words_more"] for record in given])
    first = [record["scores"]["win"] for record in given if record["facts"]["judged_is_a"]]
    second = [record["scores"]["win"] for record in given if not record["facts"]["judged_is_a"]]
    numbers = {name: round(value, 4) for name, value in asdict(weighted).items()}
    return {
        "judged": records[0]["facts"]["judged"],
        "win_rate": numbers | {"value": round(100 * win_rate(verdicts), 4), "unit": "%"},
        "win_rate_same_length": round(100 * controlled, 4),
        "first_place_bonus": round(100 * (_mean(first) - _mean(second)), 4),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def plan_wild_judge(inputs: Inputs) -> Plan:
    run = _answers(inputs, "wild_bench")
    samples = [_graded(record, run) for record in run.records]
    return Plan(ready(samples, inputs), {"judged": _digest(run)})


def _graded(record: Record, run: Run) -> Sample:
    conversation = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in record["prompt"])
    checklist = "\n".join(f"- {item}" for item in record["facts"]["checklist"])
    prompt = _SCORE_PROMPT.format(conversation=conversation, answer=record["output"], checklist=checklist)
    facts = {"judged": run.scores["model"], "kinds": record["facts"]["kinds"]}
    return Sample(record["id"], prompt, max_tokens=2048, facts=facts)


def score_grade(sample: Sample, answer: Answer) -> dict[str, float]:
    """WildBench's scale: 5 of 10 is zero, and the figure quoted is (grade - 5) * 2 in tenths of a hundred."""
    grade = read_score(answer.text)
    return {"judged": 0.0} if grade is None else {"score": (grade - 5) * 2 / 10, "grade": float(grade), "judged": 1.0}


def summarize_grades(records: Sequence[Record]) -> dict[str, Any]:
    given = [record for record in records if "score" in record["scores"]]
    judged = {"judged": records[0]["facts"]["judged"]}
    if not given:
        return judged
    values = [100 * record["scores"]["score"] for record in given]
    kinds = [[kind in record["facts"]["kinds"] for kind in KIND_WEIGHTS] for record in given]
    estimate = weighted_mean_of_kinds(values, kinds, list(KIND_WEIGHTS.values()))
    return judged | {"by_kind": {name: round(value, 4) for name, value in asdict(estimate).items()} | {"unit": "%"}}


_ANSWERS = Option("", "the run folder whose answers to judge")
ARENA_HARD = Task(
    "arena_hard", "500 hard requests (Table 3), step 1: answers", plan_arena, n_words, (Metric("words", "words"),),
    prompt_format="chat",
)  # fmt: skip
ARENA_HARD_JUDGE = Task(
    "arena_hard_judge",
    "Arena-Hard, step 2: --model is the judge; both orders, win rate with and without length",
    plan_arena_judge,
    score_pair,
    (Metric("win"), Metric("judged")),
    options={"answers": _ANSWERS, "baseline": Option("", "a run folder or model_answer file to compare with")},
    prompt_format="chat",
    summarize=summarize_pairs,
)
WILD_BENCH = Task(
    "wild_bench", "real conversations (Table 3), step 1: answers", plan_wild, n_words, (Metric("words", "words"),),
    prompt_format="chat",
)  # fmt: skip
WILD_BENCH_JUDGE = Task(
    "wild_bench_judge",
    "WildBench, step 2: --model is the judge; grades with a checklist",
    plan_wild_judge,
    score_grade,
    (Metric("score"), Metric("grade", "of 10"), Metric("judged")),
    options={"answers": _ANSWERS},
    prompt_format="chat",
    summarize=summarize_grades,
)
