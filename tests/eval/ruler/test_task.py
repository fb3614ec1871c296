"""All 13 tasks: lengths in the model's tokens, answers present once, depths uniform, same seed same bytes."""

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

import plait.data
from plait.eval.prompt import chat_ids, generation_request, plain_text
from plait.eval.records import read_run
from plait.eval.ruler import RULER
from plait.eval.ruler.needles import DEPTHS, NEEDLE_KINDS
from plait.eval.ruler.task import TASK_NAMES, plan, score
from plait.eval.ruler.words import frequent_word_counts
from plait.eval.runner import run_task
from plait.eval.sentences import split_sentences
from plait.eval.task import Answer, Inputs, Sample
from plait.text import Tokenizer, train_tokenizer

CORPUS = Path(plait.data.__file__).parent / "corpus"


def samples(inputs: Inputs) -> list[Sample]:
    return [draft.make() for draft in plan(inputs).drafts]


@pytest.fixture(scope="module")
def kept() -> dict[str, list[Sample]]:
    return {}


@pytest.fixture
def chat_samples(inputs_of: Callable[..., Inputs], kept: dict[str, list[Sample]]) -> list[Sample]:
    """Two samples of each task at 4096 tokens."""
    if "4K" not in kept:
        kept["4K"] = samples(inputs_of("ruler"))
    return kept["4K"]


def test_prompt_and_answer_fill_the_length_to_half_a_percent(
    chat_samples: list[Sample], inputs_of: Callable[..., Inputs]
) -> None:
    assert len(chat_samples) == 2 * len(TASK_NAMES)
    for sample in chat_samples:
        request = generation_request(sample, inputs_of("ruler"))
        assert request.token_ids is not None
        used = len(request.token_ids) + request.sampling.max_tokens
        assert used == sample.facts["tokens"]
        assert 4096 * 0.995 <= used <= 4096, sample.id


@pytest.mark.parametrize("vocab_size", [600, 2048, 16_384])
def test_so_they_do_with_tokenizers_of_any_size(vocab_size: int, inputs_of: Callable[..., Inputs]) -> None:
    """2,048 is the tokenizer of the model that ships; with 600 ids ten words 30 times over don't fit 4096 tokens."""
    text = (CORPUS / "emma.txt").read_text(encoding="utf-8")[:300_000]
    shipped = CORPUS.parents[1] / "demo"
    tokenizer = Tokenizer.from_folder(shipped) if vocab_size == 2048 else train_tokenizer([text], vocab_size)
    tasks = [name for name in TASK_NAMES if (name, vocab_size) != ("cwe", 600)]
    inputs = inputs_of("ruler", {"tasks": ",".join(tasks)}, limit=1, tokenizer=tokenizer)
    made = samples(inputs)
    assert len(made) == len(tasks)
    for sample in made:
        request = generation_request(sample, inputs)
        assert request.token_ids is not None
        assert 4096 * 0.995 <= len(request.token_ids) + request.sampling.max_tokens <= 4096, sample.id
    if len(tasks) < len(TASK_NAMES):
        with pytest.raises(ValueError, match="length=4096 is too short: the smallest sample of this task takes about"):
            samples(inputs_of("ruler", {"tasks": "cwe"}, limit=1, tokenizer=tokenizer))


@pytest.mark.parametrize("length", [1024, 8192])
def test_lengths_in_plain_text_count_the_beginning_of_text(length: int, inputs_of: Callable[..., Inputs]) -> None:
    inputs = inputs_of("ruler", {"lengths": str(length)}, prompt_format="text", limit=1)
    assert inputs.tokenizer is not None
    for sample in samples(inputs):
        used = 1 + len(inputs.tokenizer.encode(plain_text(sample))) + sample.max_tokens
        assert length - max(20, length // 200) <= used <= length, sample.id


def test_references_score_100_and_nothing_scores_0(chat_samples: list[Sample]) -> None:
    for sample in chat_samples:
        assert score(sample, Answer(", ".join(sample.references))) == {"score": 1.0}
        assert score(sample, Answer("")) == {"score": 0.0}


def test_the_answer_is_in_the_text(chat_samples: list[Sample]) -> None:
    for sample in chat_samples:
        assert isinstance(sample.prompt, str)
        if sample.facts["task"] in NEEDLE_KINDS:
            assert all(sample.prompt.count(f" is: {value}.") == 1 for value in sample.references)
        else:
            text = sample.prompt.lower()
            found = [wanted.lower() in text for wanted in sample.references]
            assert any(found) if sample.facts["task"].startswith("qa") else all(found)


def test_the_chat_is_that_of_the_published_template(
    chat_samples: list[Sample], inputs_of: Callable[..., Inputs]
) -> None:
    inputs = inputs_of("ruler")
    sample = chat_samples[0]
    assert inputs.tokenizer is not None
    assert inputs.tokenizer.decode(chat_ids(sample, inputs), control_tokens=True) == (
        f"<|startoftext|><|bom|><|system|> <|eom|><|bom|><|user|> {sample.prompt}<|eom|><|bom|><|assistant|>"
        f"{sample.answer_prefix}"
    )
    assert sample.prompt.startswith("A special magic number is hidden within the following text.")
    assert sample.answer_prefix.endswith("mentioned in the provided text is")


def test_variable_tracking(chat_samples: list[Sample]) -> None:
    for sample in (s for s in chat_samples if s.facts["task"] == "vt"):
        example, prompt = sample.prompt.split("\n\nMemorize and track", 1)
        assert example.count("VAR ") == 1 + 2 * 4
        solved = example.split("they are:  ")[1].split()
        assert len(solved) == 5
        assert all(len(name) == 3 for name in solved)
        value, names = sample.facts["value"], sample.references
        assert f"VAR {names[0]} = {value}\n" in prompt
        assert all(prompt.count(f"VAR {b} = VAR {a} ") == 1 for a, b in pairwise(names))
        places = [prompt.index(f"VAR {name} = ") for name in names]
        assert places == sorted(places)
        assert f"5 variables are assigned the value {value}, they are: " in sample.answer_prefix


def test_common_words_are_common_by_exactly_the_reference_counts(chat_samples: list[Sample]) -> None:
    for sample in (s for s in chat_samples if s.facts["task"] == "cwe"):
        listed = sample.prompt.split("\n")[1]
        counts = Counter(word for word in listed.split() if not re.fullmatch(r"\d+\.", word))
        assert {word for word, n in counts.items() if n == 30} == set(sample.references)
        assert set(counts.values()) == {30, 3}
        assert len(counts) == sample.facts["n_words"]
        assert sample.example is not None
        before = Counter(sample.example[0].split("\n")[1].split()[1::2])
        assert sorted(before.values()) == [3] * 30 + [10] * 10
        assert all(before[word] == 10 for word in sample.example[1].split()[1::2])


def test_frequent_words_fall_with_the_square_of_their_rank(chat_samples: list[Sample]) -> None:
    for sample in (s for s in chat_samples if s.facts["task"] == "fwe"):
        counts = Counter(sample.prompt.split("\n")[0].split("coded words. ")[1].split())
        assert counts["..."] == sample.facts["counts"][0]
        assert [counts[word] for word in sample.references] == sample.facts["counts"][1:4]
    assert frequent_word_counts(1000, 4) == [607, 151, 67, 37]


def test_documents_are_numbered_and_hold_the_gold_one_once(chat_samples: list[Sample]) -> None:
    for sample in (s for s in chat_samples if s.facts["task"] == "qa_1"):
        numbers = [int(n) for n in re.findall(r"^Document (\d+):$", sample.prompt, re.MULTILINE)]
        assert numbers == list(range(1, sample.facts["n_documents"] + 1))
        if sample.id.endswith("/0"):
            assert sample.prompt.count("Sixteen years had Miss Taylor been") == 1


def depths_of(inputs: Inputs) -> list[float]:
    return [depth for sample in samples(inputs) for depth in sample.facts["depths"]]


def chi_square(counts: Counter, n_cells: int) -> float:
    expected = sum(counts.values()) / n_cells
    return sum((n - expected) ** 2 / expected for n in counts.values()) + (n_cells - len(counts)) * expected


def test_needle_depths_are_uniform_over_the_40(inputs_of: Callable[..., Inputs]) -> None:
    options = {"lengths": "512", "tasks": "niah_single_2"}
    found = Counter(depths_of(inputs_of("ruler", options, prompt_format="text", limit=400)))
    assert set(found) == set(DEPTHS)
    assert chi_square(found, 40) < 72.1  # 99.9 % of uniform samples are below (39 degrees of freedom)


def test_needle_depths_are_uniform_over_lines(inputs_of: Callable[..., Inputs]) -> None:
    options = {"lengths": "2048", "tasks": "niah_single_1"}
    depths = depths_of(inputs_of("ruler", options, prompt_format="text", limit=300))
    assert chi_square(Counter(int(depth // 10) for depth in depths), 10) < 27.9  # 9 degrees of freedom


def test_the_depth_is_where_the_needle_is(inputs_of: Callable[..., Inputs]) -> None:
    options = {"lengths": "4096", "tasks": "niah_single_2"}
    for sample in samples(inputs_of("ruler", options, prompt_format="text", limit=20)):
        context = sample.prompt.split("afterwards.\n")[1].rsplit("\nWhat", 1)[0]
        before, needle, behind = re.split(r"(One of the special magic numbers for \S+ is: \d+\.)", context)
        assert needle.endswith(f"{sample.references[0]}.")
        n_before, n_behind = len(split_sentences(before.strip())), len(split_sentences(behind.strip()))
        n_all = n_before + n_behind
        assert n_before == n_all * sample.facts["depths"][0] // 100


def test_same_seed_same_samples_whatever_ran_before(inputs_of: Callable[..., Inputs]) -> None:
    options = {"lengths": "1024", "tasks": "niah_single_2,niah_multikey_3,vt,qa_1"}
    inputs = inputs_of("ruler", options, prompt_format="text")
    first, again = samples(inputs), samples(inputs)
    assert first == again
    alone = plan(inputs).drafts[-1].make()
    assert alone == first[-1]
    other = samples(inputs_of("ruler", options, prompt_format="text", seed=1))
    assert all(a.prompt != b.prompt for a, b in zip(first, other, strict=True))


def test_a_length_too_short_is_refused(inputs_of: Callable[..., Inputs]) -> None:
    with pytest.raises(ValueError, match="too short"):
        samples(inputs_of("ruler", {"lengths": "128", "tasks": "niah_single_1"}))


def test_an_unknown_task_and_a_missing_tokenizer_are_named(inputs_of: Callable[..., Inputs]) -> None:
    with pytest.raises(ValueError, match="no task 'niah'"):
        plan(inputs_of("ruler", {"tasks": "niah"}))
    with pytest.raises(ValueError, match="--tokenizer"):
        plan(inputs_of("ruler", tokenizer=None))
    with pytest.raises(ValueError, match="no such file"):
        plan(inputs_of("ruler", {"squad": "nowhere.json"}))


def test_squad_and_hotpot_files_by_path(tmp_path: Path, inputs_of: Callable[..., Inputs]) -> None:
    texts = [f"Paragraph {n} says that the answer to question {n} is number {n * 7}." for n in range(30)]
    article = [
        {
            "context": text,
            "qas": [
                {"question": f"Impossible {n}?", "answers": [], "is_impossible": True},
                {"question": f"Question {n}?", "answers": [{"text": f"number {n * 7}"}, {"text": str(n * 7)}]},
            ],
        }
        for n, text in enumerate(texts)
    ]
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "dev-v2.0.json").write_text(json.dumps({"data": [{"paragraphs": article}]}))
    rows = [
        {"question": f"Hop {n}?", "answer": f"no. {n}", "context": [[f"T{n}", [texts[n], " More."]], ["Z", ["Other."]]]}
        for n in range(8)
    ]
    (tmp_path / "hotpot.json").write_text(json.dumps(rows))
    options = {"lengths": "900", "tasks": "qa_1,qa_2", "hotpot": str(tmp_path / "hotpot.json")}
    made = samples(inputs_of("ruler", options, data=tmp_path, limit=5))
    assert [sample.group for sample in made[4:6]] == ["qa_1/900", f"qa_2_{tmp_path.name}/900"]
    assert made[3].references == ("number 21", "21")
    assert "Question: Question 3?" in made[3].prompt
    assert made[3].prompt.count(texts[3]) == 1
    assert f"T7\n{texts[7]} More." in plan(inputs_of("ruler", options, data=tmp_path, limit=8)).drafts[-1].make().prompt
    assert any(sample.facts["repeated"] for sample in made)  # 8 paragraphs don't fill 900 tokens


def test_substitutes_have_other_names(inputs_of: Callable[..., Inputs], tmp_path: Path) -> None:
    groups = {draft.group for draft in plan(inputs_of("ruler")).drafts}
    assert {"niah_single_1/4K", "niah_single_2_corpus/4K", "qa_1_novels/4K", "qa_2_novels/4K", "cwe/4K"} <= groups
    essays = tmp_path / "PaulGrahamEssays"
    essays.mkdir()
    (essays / "a.txt").write_text("An essay. It has sentences. " * 50)
    official = {draft.group for draft in plan(inputs_of("ruler", data=tmp_path)).drafts}
    assert "niah_single_2/4K" in official


def test_a_run_sums_up_as_table_4_does(tmp_path: Path, inputs_of: Callable[..., Inputs], scripted: type) -> None:
    inputs = inputs_of("ruler", {"lengths": "1024,2048", "tasks": "niah_single_1,vt"}, prompt_format="text", limit=3)
    model = scripted(lambda prompt: (re.search(r"is: (\d+)\.", prompt) or re.match("()", prompt))[1])
    scores = run_task(RULER, model, tmp_path, inputs, model="m")
    summary = scores["summary"]
    assert summary["by_task"] == {"niah_single_1": {"1024": 100, "2048": 100}, "vt": {"1024": 0, "2048": 0}}
    assert summary["by_length"] == {"1024": 50, "2048": 50}
    assert (summary["average"], summary["effective_length"], summary["passes_longest"]) == (50, None, False)
    assert scores["metrics"]["score"]["value"] == 50
    assert scores["empty"] == 6
    assert {cell["length"] for cell in summary["depths"]} == {1024, 2048}
    assert sum(cell["n"] for cell in summary["depths"]) == 6
    assert len(read_run(tmp_path).records) == 12
