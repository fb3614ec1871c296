"""Which language a text is in, without a download: py3langid's model comes with its package (4.6 MB)."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

# All that the identifier tells apart well on short text; its dialects and small languages attract noise.
KNOWN = tuple(
    code
    for line in (
        "af ar bg bn ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko",
        "lt lv mk ml mn mr ms my ne nl no pa pl ps pt ro ru si sk sl sq sr sv sw ta te th tl tr uk ur uz vi zh",
    )
    for code in line.split()
)

_SAMPLE = 1200  # characters at each of up to four places: more changes nothing and costs a microsecond a character
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|\S+@\S+|[\d_/\\|<>=+*#{}()\[\]]+", re.DOTALL)


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ValueError("language identification needs py3langid: pip install 'plait[data]'") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(KNOWN)
    return identifier


def language_of(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, probability); ("", 0.0) where there are no words. Code, addresses and numbers don't count."""
    sample = _sample(text)
    if not any(map(str.isalpha, sample)):
        return "", 0.0
    language, score = _identifier().classify(sample)
    return str(language), float(score)


def share_in(text: str, language: str) -> float:
    """How much of the prose of up to six paragraphs, spread over the text, is in `language`; 1.0 where none says so.

    Half-translated pages pass as whole: here their paragraphs in another language count. Paragraphs of less than 60
    characters, and those the identifier is not sure of, say nothing.
    """
    blocks = (" ".join(_NOT_PROSE.sub(" ", block).split()) for block in _spread(text.split("\n\n")))
    prose = [block[:_PARAGRAPH] for block in blocks if len(block) >= _LEAST_PARAGRAPH]
    step = max(1, len(prose) / _PARAGRAPHS)
    own = other = 0
    for block in (prose[int(k * step)] for k in range(min(len(prose), _PARAGRAPHS))):
        found, score = _identifier().classify(block)
        if score >= _SURE:
            own, other = own + len(block) * (found == language), other + len(block) * (found != language)
    return own / (own + other) if own + other else 1.0


_PARAGRAPHS, _PARAGRAPH, _LEAST_PARAGRAPH, _SURE = 6, 240, 60, 0.9


def _spread(blocks: list[str]) -> list[str]:
    """At the most 64 of the blocks, from all over them."""
    return blocks[:: max(1, len(blocks) // 64)]


def _sample(text: str) -> str:
    """Prose of the beginning, or of four places spread over a long text."""
    if len(text) <= 4 * _SAMPLE:
        return " ".join(_NOT_PROSE.sub(" ", text).split())[: 4 * _SAMPLE]
    step = len(text) // 4
    places = (text[start : start + 2 * _SAMPLE] for start in range(0, 4 * step, step))
    return " ".join(" ".join(_NOT_PROSE.sub(" ", place).split())[:_SAMPLE] for place in places)
