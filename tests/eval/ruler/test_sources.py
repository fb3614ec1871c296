"""What RULER's tasks are made of: enough words, questions that their paragraphs answer, files in other encodings."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.eval.ruler.fitting import fit, slack
from plait.eval.ruler.novels import novels
from plait.eval.ruler.sources import Prose, read_prose, read_words
from plait.eval.ruler.word_lists import ADJECTIVES, NOUNS
from plait.eval.task import Inputs, Sample


def test_every_question_on_the_novels_is_answered_by_its_paragraphs(inputs_of: Callable[..., Inputs]) -> None:
    prose = read_prose(inputs_of("ruler"))
    for n_hops, n_questions in ((1, 45), (2, 20)):
        library = novels(prose, n_hops=n_hops)
        assert len(library.questions) == n_questions
        for question in library.questions:
            assert len(set(question.needed)) == n_hops
            needed = " ".join(library.documents[n] for n in question.needed).lower()
            assert question.answers[0].lower() in needed, question.text
    with pytest.raises(ValueError, match="go with the two novels"):
        novels(Prose("Another book.", "x", "1"), n_hops=1)


def test_words_are_distinct_and_suffice_for_256k(inputs_of: Callable[..., Inputs]) -> None:
    assert len(set(ADJECTIVES)) * len(set(NOUNS)) == len(ADJECTIVES) * len(NOUNS) > 60_000
    inputs = inputs_of("ruler")
    words = read_words(inputs, read_prose(inputs))
    assert len(words.pool) == len(set(words.pool)) > 8000
    many = words.sample(12_000, random.Random(0))
    assert len(set(many)) == 12_000
    assert set(words.pool) < set(many)
    assert len(words.sample(100, random.Random(0))) == 100
    with pytest.raises(ValueError, match="give words=FILE"):
        words.sample(100_000, random.Random(0))


def test_words_and_prose_from_files(inputs_of: Callable[..., Inputs], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b\na\n\na\n")
    (tmp_path / "essay.txt").write_text("One two.\n\nThree.")
    options = {"words": str(tmp_path / "list.txt"), "haystack": str(tmp_path / "essay.txt")}
    inputs = inputs_of("ruler", options)
    prose = read_prose(inputs)
    assert prose.suffix == "essay"
    assert prose.first_words(7) == "One two. Three. One two. Three. One"
    assert read_words(inputs, prose).pool == ["a", "b"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"has no \.txt files"):
        read_prose(inputs_of("ruler", {"haystack": str(tmp_path / "none")}))


@pytest.mark.parametrize("tokens_per_unit", [0.3, 1, 5, 19])
@pytest.mark.parametrize("length", [600, 4096, 100_000])
def test_fitting_finds_the_length_for_any_unit(tokens_per_unit: float, length: int) -> None:
    def draw(size: int, rng: random.Random) -> Sample:
        return Sample(str(size), facts={"tokens": 100 + int(size * tokens_per_unit)}, max_tokens=30)

    sample, size = fit(draw, lambda sample: sample.facts["tokens"], length, random.Random(0))
    assert length - slack(length) <= sample.facts["tokens"] + 30 <= length
    assert sample.id == str(size)


def test_fitting_does_not_go_to_and_fro() -> None:
    """Where it is steeper than on the way there: equal steps would pass from 35 short to 32 over and back for ever."""

    def draw(size: int, rng: random.Random) -> Sample:
        return Sample("", facts={"tokens": int(size * 4.2 if size < 945 else 3970 + 8.4 * (size - 945))}, max_tokens=91)

    for seed in range(50):
        sample, _ = fit(draw, lambda sample: sample.facts["tokens"], 4096, random.Random(seed), start=927)
        assert 4076 <= sample.facts["tokens"] + 91 <= 4096


def test_fitting_gives_up_with_a_reason() -> None:
    def coarse(size: int, rng: random.Random) -> Sample:
        return Sample("", facts={"tokens": size * 3000}, max_tokens=0)

    with pytest.raises(ValueError, match="none of 400 draws"):
        fit(coarse, lambda sample: sample.facts["tokens"], 4096, random.Random(0))
    with pytest.raises(ValueError, match="too short: the smallest sample of this task takes about 3000"):
        fit(coarse, lambda sample: sample.facts["tokens"], 1000, random.Random(0))
