"""GSM8K, BBH and InfiniteBench: prompts as published, and scores on right, wrong and adversarial outputs."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.eval.bbh import BBH, final_answer
from plait.eval.gsm8k import GSM8K, flexible_answer, strict_answer
from plait.eval.infinite_bench import INFINITE_MC, INFINITE_QA, choice_is_right, cut_middle, token_f1
from plait.eval.task import Answer, Inputs, Task


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Small files in the layouts of the public sets."""
    rows = [{"question": f"What is {n}+{n}?", "answer": f"It is {2 * n}.\n#### {2 * n:,}"} for n in range(600, 608)]
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        with gzip.open(tmp_path / "gsm8k" / f"{split}.jsonl.gz", "wt") as file:
            file.write("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "bbh" / "cot-prompts").mkdir(parents=True)
    for name in ("navigate", "snarks"):
        prompt = f"canary\n-----\nDo {name}.\n\nQ: q\nA: Let's think step by step.\nSo the answer is No."
        (tmp_path / "bbh" / "cot-prompts" / f"{name}.txt").write_text(prompt)
        examples = [{"input": f"{name} {n}", "target": ["Yes", "(A)"][n % 2]} for n in range(4)]
        (tmp_path / "bbh" / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps({"examples": examples}).encode()))
    (tmp_path / "infinitebench").mkdir()
    book = "It was a dark night. " * 300
    row = {"id": 1, "context": book, "input": "Who?", "answer": ["Ann"], "options": ["Bob", "Ann", "Cid", "Dan"]}
    for name in ("choice", "qa"):
        (tmp_path / "infinitebench" / f"longbook_{name}_eng.jsonl").write_text(json.dumps(row))
    return tmp_path


def scored(task: Task, inputs: Inputs, output: str, n: int = 0) -> dict[str, float]:
    return task.score(task.plan(inputs).drafts[n].make(), Answer(output))


def test_gsm8k_prompt_has_five_solved_examples(data: Path, inputs_of: Callable[..., Inputs]) -> None:
    drafts = GSM8K.plan(inputs_of("gsm8k", data=data, limit=None)).drafts
    assert len(drafts) == 8
    prompt = drafts[7].make().prompt
    assert prompt.count("Question: ") == 6
    assert prompt.startswith("Question: What is 600+600?\nAnswer: It is 1200.\n#### 1,200\n\nQuestion: ")
    assert prompt.endswith("\n\nQuestion: What is 607+607?\nAnswer:")


@pytest.mark.parametrize(
    ("output", "strict", "flexible"),
    [
        ("So 1200.\n#### 1200", 1, 1),
        ("#### 1,200.", 1, 1),
        ("#### $1,200", 0, 1),
        ("The answer is 1200.", 0, 1),
        ("1200 apples, of which 3", 0, 0),
        ("#### 12\n#### 1200", 0, 1),
        ("####1200", 0, 1),
        ("", 0, 0),
        ("#### -1200", 0, 0),
    ],
)
def test_gsm8k_scores(output: str, strict: int, flexible: int, data: Path, inputs_of: Callable[..., Inputs]) -> None:
    assert scored(GSM8K, inputs_of("gsm8k", data=data), output) == {"strict": strict, "flexible": flexible}


def test_numbers_are_read_as_the_harness_reads_them() -> None:
    assert (strict_answer("#### 5 apples"), strict_answer("5")) == ("5", None)
    assert [flexible_answer(text) for text in ("a 7", "$3.50.", "-4", "none")] == ["7", "3.50", "-4", None]


def test_bbh_prompts_and_scores(data: Path, inputs_of: Callable[..., Inputs]) -> None:
    inputs = inputs_of("bbh", data=data, limit=3)
    drafts = BBH.plan(inputs).drafts
    assert [draft.id for draft in drafts] == [f"{name}/{n}" for name in ("navigate", "snarks") for n in range(3)]
    prompt = drafts[0].make().prompt
    assert prompt.startswith("Do navigate.\n\nQ: q\n")
    assert prompt.endswith("So the answer is No.\n\nQ: navigate 0\nA: Let's think step by step.\n")
    assert scored(BBH, inputs, "Well. So the answer is Yes.") == {"exact": 1}
    assert scored(BBH, inputs, "So the answer is yes.") == {"exact": 0}
    assert scored(BBH, inputs, "So the answer is (A).", 1) == {"exact": 1}
    assert [final_answer(t) for t in ("the answer is ] }.\nmore.", "the answer is 5", "Yes.")] == ["] }", None, None]
    with pytest.raises(ValueError, match="no task 'sports'; it has navigate, snarks"):
        BBH.plan(inputs_of("bbh", {"tasks": "sports"}, data=data))


@pytest.mark.parametrize("task", ["gsm8k", "bbh", "ifeval", "bfcl", "infinite_mc", "infinite_qa"])
def test_without_data_it_says_which_file_to_put_where(
    task: str, tmp_path: Path, inputs_of: Callable[..., Inputs]
) -> None:
    from plait.eval.registry import TASKS

    with pytest.raises(ValueError, match="--data DIR"):
        TASKS[task].plan(inputs_of(task))
    with pytest.raises(ValueError, match=r"has no (gsm8k|bbh|ifeval|bfcl|infinitebench).*put the public file there"):
        TASKS[task].plan(inputs_of(task, data=tmp_path))


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("B", 1),
        ("B. Ann", 1),
        ("A", 0),
        ("Ann", 0),
        ("ann", 0),
        ("The answer is: B", 1),
        ("answer is Ann", 1),
        ("I say B or A", 1),
        ("I say A or B", 0),
        ("because", 0),
        ("", 0),
        ("The answer is (B)", 0),
        ("Dan", 0),
        ("  B", 1),
        ("b", 0),
    ],
)
def test_choice_scores(output: str, right: int) -> None:
    assert choice_is_right(output, ("Ann", "B")) == bool(right)


def test_infinite_bench_prompts(data: Path, inputs_of: Callable[..., Inputs]) -> None:
    sample = INFINITE_MC.plan(inputs_of("infinite_mc", data=data)).drafts[0].make()
    assert sample.references == ("Ann", "B")
    text = sample.messages[1]["content"]
    assert text.startswith("Read the book and answer the question.\n\nIt was a dark night.")
    assert text.endswith("Don't say anything else.\nA. Bob\nB. Ann\nC. Cid\nD. Dan")
    plain = INFINITE_MC.plan(inputs_of("infinite_mc", data=data, prompt_format="text")).drafts[0].make()
    assert plain.prompt.endswith("The letter of the correct answer is")
    assert INFINITE_MC.score(sample, Answer("B")) == {"accuracy": 1}


def test_a_long_book_loses_its_middle(data: Path, inputs_of: Callable[..., Inputs]) -> None:
    inputs = inputs_of("infinite_qa", {"context": "1200"}, data=data)
    assert inputs.tokenizer is not None
    sample = INFINITE_QA.plan(inputs).drafts[0].make()
    assert len(inputs.tokenizer.encode(sample.messages[1]["content"])) < 1200
    words = " ".join(str(n) for n in range(500))
    cut = cut_middle(words, 100, inputs)
    assert cut.startswith("0 1 2 ")
    assert cut.endswith(" 498 499")
    assert len(inputs.tokenizer.encode(cut)) in range(98, 103)
    with pytest.raises(ValueError, match="context=1001 must be at least 1002"):
        INFINITE_QA.plan(inputs_of("infinite_qa", {"context": "1001"}, data=data))


def test_token_f1() -> None:
    assert token_f1("The cat, a dog!", "cat dog") == 1
    assert token_f1("cat", "cat dog") == pytest.approx(2 / 3)
    assert token_f1("bird", "cat") == token_f1("", "cat") == 0
    assert token_f1("cat cat", "cat") == pytest.approx(2 / 3)
