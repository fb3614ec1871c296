"""Questions of ours on the two Jane Austen novels that ship with plait: question answering without any download.

Each question names its paragraphs by a few of their words. Tasks made from them are named qa_1_novels and qa_2_novels:
their scores are not comparable with published ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from plait.eval.ruler.novel_questions import ONE_PARAGRAPH, TWO_PARAGRAPHS
from plait.eval.ruler.sources import Library, Prose, Question


def novels(prose: Prose, *, n_hops: int) -> Library:
    """Paragraphs of the novels as documents. Raises ValueError for other prose."""
    documents = sorted({p for part in prose.text.split("\n\n") if 40 <= len(p := part.strip()) <= 6000})
    asked = [(q, a, (p,)) for q, a, p in ONE_PARAGRAPH] if n_hops == 1 else list(TWO_PARAGRAPHS)
    questions = [
        Question(question, (answer,), tuple(_find(documents, words) for words in anchors))
        for question, answer, anchors in asked
    ]
    return Library(documents, questions, "novels", prose.version)


def _find(documents: Sequence[str], words: str) -> int:
    found = [n for n, text in enumerate(documents) if words in text]
    if len(found) != 1:
        raise ValueError(
            f"the questions that ship with plait go with the two novels it has; {words!r} is in {len(found)} paragraphs"
        )
    return found[0]
