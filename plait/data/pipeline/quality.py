"""Quality rules for prose: Gopher's, C4's and FineWeb's, with limits per profile and language (paper section 5.2).

`web` has the published limits. `docs` relaxes those that English web text set: they drop four of five pages of good
technical text, which is full of code, tables, lists and signs.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

# The words each language can hardly do without. A language that isn't here is spared the rule.
STOP_WORDS: dict[str, frozenset[str]] = {
    code: frozenset(words.split())
    for code, words in {
        "en": "the be to of and that have with is for in a on are this",
        "es": "de la el que y en los se del las por un para con una es",
        "fr": "de la le et les des en un du une que est pour dans par sur",
        "pt": "de a o que e do da em um para com não uma os no se",
        "it": "di e il la che in un per è una del con non le si dei",
        "nl": "de van het een en in is dat op te voor met die zijn niet u",
        "de": "der die und in den von zu das mit sich des auf für ist im nicht",
        "ar": "في من على إلى أن التي هذا عن لا ما أو هذه هو كل لم كما",
        "he": "של את על לא עם או כל זה הוא גם אם אל כי היא יש הם",
        "ru": "и в не на с что по из для как к это от или за",
        "pl": "i w na z do nie się o jest że to dla jak od po",
        "sv": "och i att det som en på är av för med till den har",
        "da": "og i at det en den til er som på de med for af",
        "cs": "a se v na je že to s z do pro jako od po by",
        "ca": "de la i el que a en un per les una els del amb és",
        "ro": "de și în a la cu pe nu un o este că din pentru",
        "tr": "ve bir bu için ile da de olarak çok daha olan ne gibi",
    }.items()
}
NO_SPACES = frozenset(("zh", "ja", "th", "km", "my"))  # written without spaces: rules that count words don't apply

_PUNCTUATION = frozenset(string.punctuation + "…“”„‘’«»–—·•")
_TERMINAL = tuple(".!?\"'”’»…:;。！？؟")


@dataclass(frozen=True)
class Limits:
    """Shares are between 0 and 1; 0 for an upper limit of counts switches that rule off."""

    min_words: float = 50
    max_words: float = 100_000
    min_word_length: float = 3.0  # mean, in characters
    max_word_length: float = 10.0
    max_hashes: float = 0.1  # '#' per word
    max_ellipses: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: float = 2
    max_duplicate_lines: float = 0.3
    max_duplicate_line_characters: float = 0.2
    max_top_ngram: float = 1.0  # multiplies Gopher's 0.20, 0.18, 0.16 for 2, 3 and 4 words
    max_duplicate_ngram: float = 1.0  # multiplies Gopher's 0.15 … 0.10 for 5 to 10 words
    least_ngram_words: float = 0  # shorter texts are spared the rules on runs of words
    min_terminal_lines: float = 0.12  # FineWeb: lines that end as sentences do
    max_short_lines: float = 0.67  # FineWeb: lines of less than 30 characters


WEB = Limits()
DOCS = Limits(
    min_words=20,
    max_words=2_000_000,
    min_word_length=2.5,
    max_word_length=14.0,
    max_hashes=0.3,
    max_ellipses=0.3,
    max_bullet_lines=1.0,
    max_ellipsis_lines=0.5,
    min_alphabetic_words=0.4,
    min_stop_words=1,
    max_duplicate_lines=0.6,
    max_duplicate_line_characters=0.5,
    max_top_ngram=2.0,
    max_duplicate_ngram=4.0,
    least_ngram_words=100,
    min_terminal_lines=0.0,
    max_short_lines=1.0,
)
BY_LANGUAGE: dict[str, dict[str, float]] = {
    "de": {"max_word_length": 12.0},
    "nl": {"max_word_length": 12.0},
    "fi": {"max_word_length": 14.0},
    "hu": {"max_word_length": 13.0},
    "ar": {"min_word_length": 2.5},
    "he": {"min_word_length": 2.3},
}
PROFILES = {"web": WEB, "docs": DOCS}

_CODE_BLOCK = re.compile(r"^( *)(`{3,}).*?^\1\2$", re.MULTILINE | re.DOTALL)
_TOP = ((2, 0.20), (3, 0.18), (4, 0.16))
_DUPLICATE = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


def limits_for(profile: str, language: str, changes: Mapping[str, Mapping[str, float]]) -> Limits:
    """The limits of a profile in a language: the profile's, the language's where they are wider, then a recipe's
    `changes` under "PROFILE" and "PROFILE.LANGUAGE".
    """
    limits = PROFILES[profile]
    for name, value in BY_LANGUAGE.get(language, {}).items():
        wider = max if name.startswith("max") else min
        limits = replace(limits, **{name: wider(value, getattr(limits, name))})
    for key in (profile, f"{profile}.{language}"):
        if unknown := changes.get(key, {}).keys() - _LIMIT_NAMES:
            raise ValueError(
                f"thresholds.{key}: there is no {', '.join(sorted(unknown))}; known: {', '.join(_LIMIT_NAMES)}"
            )
        limits = replace(limits, **changes.get(key, {}))
    return limits


_LIMIT_NAMES = tuple(f.name for f in fields(Limits))


def quality_reason(text: str, language: str, limits: Limits) -> str:
    """Why a text fails, in a word or two; empty if it doesn't."""
    words = text.split()
    if language in NO_SPACES:
        return "too short" if len(text) < 2 * limits.min_words else _line_reason(text, limits)
    real = [word for word in words if not _PUNCTUATION.issuperset(word)]
    if len(real) < limits.min_words:
        return "too short"
    if len(real) > limits.max_words:
        return "too long"
    mean = sum(map(len, real)) / len(real)
    if not limits.min_word_length <= mean <= limits.max_word_length:
        return "odd word length"
    if text.count("#") > limits.max_hashes * len(words):
        return "too many '#'"
    if text.count("...") + text.count("…") > limits.max_ellipses * len(words):
        return "too many ellipses"
    if sum(map(_is_alphabetic, words)) < limits.min_alphabetic_words * len(words):
        return "too few alphabetic words"
    wanted = STOP_WORDS.get(language)
    if wanted and len(wanted.intersection(map(str.lower, words))) < limits.min_stop_words:
        return "too few stop words"
    return _line_reason(text, limits)


def _is_alphabetic(word: str) -> bool:
    return word.isalpha() or any(map(str.isalpha, word))


def _line_reason(text: str, limits: Limits) -> str:
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    n = max(1, len(lines))
    if sum(line.startswith(("•", "- ", "* ")) for line in lines) > limits.max_bullet_lines * n:
        return "mostly bullet points"
    if sum(line.endswith(("...", "…")) for line in lines) > limits.max_ellipsis_lines * n:
        return "lines cut short"
    if limits.min_terminal_lines and sum(line.endswith(_TERMINAL) for line in lines) < limits.min_terminal_lines * n:
        return "lines without an end"
    if limits.max_short_lines < 1 and sum(len(line) < 30 for line in lines) > limits.max_short_lines * n:
        return "mostly short lines"
    return ""


def repetition_reason(text: str, limits: Limits) -> str:
    """Gopher's repetition rules: repeated lines, one n-gram too often, n-grams that come again. Of prose: code repeats
    itself, and tutorials repeat their code.
    """
    text = _CODE_BLOCK.sub("", text)
    lines = [line for line in text.split("\n") if line.strip()]
    seen: set[str] = set()
    again = [line for line in lines if line in seen or seen.add(line)]  # type: ignore[func-returns-value]
    if len(again) > limits.max_duplicate_lines * max(1, len(lines)):
        return "repeated lines"
    if sum(map(len, again)) > limits.max_duplicate_line_characters * len(text):
        return "repeated lines (characters)"
    words = text.split()
    if len(words) < limits.least_ngram_words:
        return ""
    ids: dict[str, int] = {}
    flat = np.fromiter((ids.setdefault(word, len(ids)) for word in words), dtype=np.int64, count=len(words))
    sizes = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    hashes = flat
    for n in range(2, 11):
        if len(words) < n:
            break
        hashes = hashes[:-1] * np.int64(1_000_003) + flat[n - 1 :]  # wraps; a chance meeting of two is one in 2^64
        if reason := _ngram_reason(n, hashes, sizes, len(text), limits):
            return reason
    return ""


def _ngram_reason(n: int, hashes: np.ndarray, sizes: np.ndarray, n_characters: int, limits: Limits) -> str:
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    is_first = np.empty(len(ordered), dtype=bool)
    is_first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    for size, share in _TOP:
        if size == n:
            starts = np.flatnonzero(is_first)
            counts = np.diff(np.append(starts, len(ordered)))
            top = int(counts.argmax())
            place = int(order[starts[top]])
            covered = int(counts[top]) * int(sizes[place : place + n].sum())
            if counts[top] > 1 and covered > limits.max_top_ngram * share * n_characters:
                return f"one run of {n} words too often"
    for size, share in _DUPLICATE:
        if size == n:
            is_again = np.zeros(len(hashes) + n, dtype=np.int32)
            places = order[~is_first]
            np.add.at(is_again, places, 1)
            np.add.at(is_again, places + n, -1)
            repeated = np.cumsum(is_again)[: len(sizes)] > 0
            if int(sizes[repeated].sum()) > min(0.9, limits.max_duplicate_ngram * share) * n_characters:
                return f"runs of {n} words repeated"
    return ""
