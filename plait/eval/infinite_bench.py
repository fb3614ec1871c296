"""InfiniteBench's questions about whole novels, EN.MC and EN.QA (paper section 6.3.2, Table 5).

Prompts and scores follow OpenBMB/InfiniteBench (MIT). The public files go into the data folder as
`infinitebench/longbook_choice_eng.jsonl` and `infinitebench/longbook_qa_eng.jsonl`.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

from plait.eval.task import Answer, Draft, Inputs, Metric, Option, Plan, Sample, Task, file_version

_LETTERS = "ABCD"
_MARGIN = 1000  # tokens for what is around the book, as upstream leaves them
_MAX_TOKENS = 40
_SYSTEM = {"role": "system", "content": "You are a helpful assistant"}


def plan_choice(inputs: Inputs) -> Plan:
    return _plan(inputs, "longbook_choice_eng.jsonl", _choice)


def plan_question(inputs: Inputs) -> Plan:
    return _plan(inputs, "longbook_qa_eng.jsonl", _question)


def _plan(inputs: Inputs, name: str, make: Any) -> Plan:
    path = inputs.file(f"infinitebench/{name}", name)
    budget = inputs.number("context") - _MARGIN
    if budget < 2:
        raise ValueError(f"context={inputs.number('context')} must be at least {_MARGIN + 2}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    def maker(row: dict[str, Any]) -> Callable[[], Sample]:
        return lambda: make(row, cut_middle(row["context"], budget, inputs), inputs)

    drafts = [Draft(str(row["id"]), "", maker(row)) for row in rows[: inputs.limit]]
    return Plan(drafts, {"rows": file_version(path)})


def cut_middle(book: str, budget: int, inputs: Inputs) -> str:
    """The book within `budget` tokens: its first and its last half of them."""
    tokenizer = inputs.need_tokenizer()
    ids = tokenizer.encode(book)
    if len(ids) <= budget:
        return book
    half = budget // 2
    return tokenizer.decode(ids[:half]) + tokenizer.decode(ids[-half:])


def _choice(row: dict[str, Any], book: str, inputs: Inputs) -> Sample:
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(_LETTERS, row["options"], strict=True))
    right = row["answer"][0] if isinstance(row["answer"], list) else row["answer"]
    letter = _LETTERS[row["options"].index(right)]
    if inputs.prompt_format == "text":
        prompt = f"Read the book and answer the question.\n\n{book}\n\nQuestion: {row['input']}\n\n{options}\n\n"
        prompt += "The letter of the correct answer is"
        return Sample(str(row["id"]), prompt, references=(right, letter), max_tokens=_MAX_TOKENS)
    prompt = (
        f"Read the book and answer the question.\n\n{book}\n\nQuestion: {row['input']}\n\n"
        f"Only one of the following options is correct, tell me the answer using one single letter (A, B, C, or D)."
        f" Don't say anything else.\n{options}"
    )
    return _chat(row, prompt, (right, letter))


def _question(row: dict[str, Any], book: str, inputs: Inputs) -> Sample:
    answers = tuple(row["answer"])
    if inputs.prompt_format == "text":
        prompt = "Read the book and answer the question. Be very concise in your answer."
        prompt += f"\n\n{book}\n\nQuestion: {row['input']}\nAnswer:"
        return Sample(str(row["id"]), prompt, references=answers, max_tokens=_MAX_TOKENS)
    prompt = f"Read the book below and answer a question.\n\n{book}\n\nQuestion: {row['input']}\n\nBe very concise."
    return _chat(row, prompt, answers)


def _chat(row: dict[str, Any], prompt: str, references: tuple[str, ...]) -> Sample:
    messages = [_SYSTEM, {"role": "user", "content": prompt}]
    return Sample(str(row["id"]), messages=messages, references=references, max_tokens=_MAX_TOKENS)


def choice_is_right(output: str, references: tuple[str, ...]) -> bool:
    """The first letter decides if it is one of A to D; else what an announcement is followed by; else a lone letter."""
    text = output.strip()
    if not text:
        return False
    if text[0] in _LETTERS:
        return text[0] in references
    if text in references:
        return True
    cleaned = re.sub(r"[\n\"'.,?!{}]", " ", text)
    cleaned = re.sub(" +", " ", cleaned)
    for announcement in ("answer is:", "answer:", "answer is", "option is"):
        place = cleaned.find(announcement)
        if place >= 0:
            behind = cleaned[place + len(announcement) :].strip()
            return any(behind.startswith(reference) for reference in references)
    lone = next((word for word in cleaned.split() if word in _LETTERS), None)
    return lone in references


def normalized_words(text: str) -> list[str]:
    """SQuAD's way: small letters, no punctuation, no articles."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def token_f1(output: str, reference: str) -> float:
    found, wanted = normalized_words(output), normalized_words(reference)
    shared = (Counter(found) & Counter(wanted)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def score_choice(sample: Sample, answer: Answer) -> dict[str, float]:
    return {"accuracy": float(choice_is_right(answer.text, sample.references))}


def score_question(sample: Sample, answer: Answer) -> dict[str, float]:
    return {"f1": max(token_f1(answer.text, reference) for reference in sample.references)}


_OPTIONS = {"context": Option("262144", "tokens the model reads; longer books lose their middle")}
INFINITE_MC = Task(
    name="infinite_mc",
    about="InfiniteBench EN.MC: four options about a whole novel (Table 5)",
    plan=plan_choice,
    score=score_choice,
    metrics=(Metric("accuracy"),),
    options=_OPTIONS,
    prompt_format="chat",
)
INFINITE_QA = Task(
    name="infinite_qa",
    about="InfiniteBench EN.QA: a free answer about a whole novel, token F1 (Table 5)",
    plan=plan_question,
    score=score_question,
    metrics=(Metric("f1"),),
    options=_OPTIONS,
    prompt_format="chat",
)
