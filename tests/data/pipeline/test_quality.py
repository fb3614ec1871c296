"""Quality and repetition rules: what each is for fails by it, prose and documentation pass."""

from collections.abc import Callable

import pytest

from plait.data.pipeline.quality import DOCS, WEB, Limits, limits_for, quality_reason, repetition_reason

Prose = Callable[..., str]


def reason(text: str, limits: Limits = WEB, language: str = "en") -> str:
    return quality_reason(text, language, limits) or repetition_reason(text, limits)


def test_prose_passes_both_profiles(make_prose: Prose) -> None:
    for limits in (WEB, DOCS):
        assert reason(make_prose(1), limits) == ""
    assert quality_reason(make_prose(1, language="de"), "de", limits_for("web", "de", {})) == ""


def test_each_rule_finds_what_it_is_for(make_prose: Prose) -> None:
    good = make_prose(2)
    words = good.split()
    assert reason(" ".join(words[:30])) == "too short"
    assert reason("a b c d " * 40) == "odd word length"
    assert reason(good + " #" * 200) == "too many '#'"
    assert reason(good + " wait..." * 100) == "too many ellipses"
    assert reason(" ".join(f"{w} 1{k} 2{k}" for k, w in enumerate(words))) == "too few alphabetic words"
    assert reason(" ".join(w for w in words if len(w) > 4) * 2) == "too few stop words"
    assert reason("\n".join(f"- {line}." for line in good.replace("\n\n", " ").split(". "))) == "mostly bullet points"
    assert reason(good.replace(". ", "...\n").replace(".\n", "...\n")) == "lines cut short"
    assert reason("\n".join(line + " and" for line in good.replace(".", "").split("\n\n"))) == "lines without an end"
    assert reason("The one.\n" * 2 + "\n".join(good.replace(" ", "\n", 400).split("\n")) + ".") != ""


def test_repetition(make_prose: Prose) -> None:
    lines = make_prose(3).split("\n\n")
    assert repetition_reason("\n".join([*lines, *lines[:8]]), WEB) == "repeated lines"
    assert repetition_reason("\n".join([*lines, lines[0] * 6, lines[0] * 6]), WEB) == "repeated lines (characters)"
    assert "too often" in repetition_reason("Buy it now today. " * 60 + make_prose(4, 8), WEB)
    assert "repeated" in repetition_reason(make_prose(5, 12).replace("\n\n", " ") * 2, WEB)


def test_technical_text_passes_docs_and_not_web() -> None:
    page = (
        "# open(2)\n\n| flag | value |\n| --- | --- |\n| O_RDONLY | 0x0000 |\n| O_WRONLY | 0x0001 |\n\n"
        "The function opens the file and returns a descriptor.\n\n```c\nint fd = open(path, O_RDONLY);\n```\n\n"
        "- errno\n- EACCES"
    )
    assert reason(page, DOCS) == ""
    assert reason(page, WEB) != ""


def test_code_does_not_count_as_repetition(make_prose: Prose) -> None:
    code = "```c\n" + "    return NULL;\n}\n" * 100 + "```\n"
    assert repetition_reason(make_prose(6) + "\n" + code, DOCS) == ""


def test_languages_without_spaces_are_not_counted_in_words() -> None:
    assert quality_reason("这是一个关于海港和旧图书馆的故事，人们每天都来这里读书。" * 10, "zh", WEB) == ""
    assert quality_reason("短。", "zh", WEB) == "too short"


def test_limits_can_be_changed_for_a_profile_and_a_language() -> None:
    changes = {"web": {"min_words": 10.0}, "web.de": {"min_words": 5.0}}
    assert limits_for("web", "en", changes).min_words == 10
    assert limits_for("web", "de", changes).min_words == 5
    assert limits_for("web", "de", {}).max_word_length == 12
    assert limits_for("docs", "de", {}).max_word_length == 14  # docs is wider already
    with pytest.raises(ValueError, match="there is no colour"):
        limits_for("web", "en", {"web": {"colour": 1.0}})
