"""Passages hidden among similar ones, to a chosen length and at a chosen place (paper section 5.3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from plait.data import Document
from plait.synth.bm25 import BM25
from plait.synth.embedding import Embedding

CountTokens = Callable[[str], int]
SIMILARITIES: Mapping[str, type[BM25] | type[Embedding]] = {"words": BM25, "meaning": Embedding}


@dataclass(frozen=True)
class Passage:
    """A few consecutive paragraphs of a document; `index` counts them within it."""

    text: str
    source: str
    document: int
    index: int

    @property
    def title(self) -> str:
        return f"{self.source}, part {self.document + 1}.{self.index + 1}"

    def as_document(self) -> dict[str, str]:
        """As the chat template takes it."""
        return {"title": self.title, "text": self.text}


def passages_of(document: Document, *, least: int = 400, most: int = 1600) -> list[Passage]:
    """Paragraphs joined to `least` to `most` characters. Longer paragraphs are left out, and an end that is shorter."""
    made: list[str] = []
    held = ""
    for block in re.split(r"\n\s*\n", document.text):
        paragraph = " ".join(block.split())
        if len(paragraph) > most:
            continue
        if len(held) + len(paragraph) > most:
            held = ""
        held = f"{held}\n{paragraph}".strip()
        if len(held) >= least:
            made.append(held)
            held = ""
    return [Passage(text, document.source, document.index, i) for i, text in enumerate(made)]


def as_written(document: Mapping[str, str], index: int = 1000) -> str:
    """What the chat template makes of a document, so that lengths are those of the prompt."""
    return f"\n\n## Document ID: {index}\nTitle: {document['title']}\nText: {document['text']}"


@dataclass(frozen=True)
class LongContext:
    """`documents` in reading order. `ids` are where the wanted passages stand, `positions` how many of the tokens lie
    before each, as a share; `n_tokens` is the sum over documents as they are written."""

    documents: tuple[dict[str, str], ...]
    ids: tuple[int, ...]
    positions: tuple[float, ...]
    n_tokens: int

    def facts(self) -> dict[str, Any]:
        return {"document_ids": list(self.ids), "positions": list(self.positions), "n_tokens": self.n_tokens}


class ContextBuilder:
    """Fills contexts with the passages most similar to the wanted ones: by words (BM25) or by meaning (Embedding)."""

    def __init__(
        self, passages: Sequence[Passage], count_tokens: CountTokens | None = None, *, similarity: str = "words"
    ) -> None:
        """`count_tokens` None takes a token for four characters, which is rough: give a tokenizer's count."""
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity={similarity!r} must be one of {', '.join(SIMILARITIES)}")
        self.passages = list(passages)
        self._count = count_tokens or (lambda text: -(-len(text) // 4))
        self._counted: dict[Passage, int] = {}
        self._index = SIMILARITIES[similarity]([passage.text for passage in self.passages])

    def tokens_of(self, passage: Passage) -> int:
        if passage not in self._counted:
            self._counted[passage] = self._count(as_written(passage.as_document()))
        return self._counted[passage]

    def similar(self, text: str, n: int, *, besides: Sequence[Passage] = ()) -> list[Passage]:
        found = (self.passages[i] for i in self._index.most_similar(text, n + len(besides)))
        return [passage for passage in found if passage not in besides][:n]

    def build(
        self,
        wanted: Sequence[Passage],
        query: str,
        *,
        max_tokens: int,
        position: float,
        random: Random,
        forbidden: Sequence[str] = (),
    ) -> LongContext | None:
        """`wanted` among distractors of at most `max_tokens` in all, the first at `position` (0 front, 1 end) and the
        others spread behind it; `forbidden` texts stand in no distractor. None where the passages don't suffice to come
        within a passage's length of `max_tokens`.
        """
        budget = max_tokens - sum(map(self.tokens_of, wanted))
        if budget < 0:
            return None
        chosen, used, full = self._distractors(wanted, query, budget, [text.casefold() for text in forbidden])
        if not full:
            return None
        random.shuffle(chosen)
        total = used + max_tokens - budget
        order = self._placed(chosen, wanted, position, used)
        starts, before = [], 0
        for passage in order:
            starts.append(before)
            before += self.tokens_of(passage)
        ids = tuple(order.index(passage) for passage in wanted)
        documents = tuple(passage.as_document() for passage in order)
        return LongContext(documents, ids, tuple(round(starts[i] / max(1, total), 4) for i in ids), total)

    def _distractors(
        self, wanted: Sequence[Passage], query: str, budget: int, forbidden: Sequence[str]
    ) -> tuple[list[Passage], int, bool]:
        """The most similar that fit, their tokens, and whether the budget is used up to less than a passage."""
        chosen: list[Passage] = []
        used = 0
        n = 64
        ranked = self.similar(query, n, besides=wanted)
        at = 0
        while True:
            if at == len(ranked):
                if len(ranked) < n:
                    return chosen, used, budget == 0
                n *= 4
                ranked = self.similar(query, n, besides=wanted)
                continue
            passage, at = ranked[at], at + 1
            if any(text in passage.text.casefold() for text in forbidden):
                continue
            if used + self.tokens_of(passage) > budget:
                return chosen, used, True
            chosen.append(passage)
            used += self.tokens_of(passage)

    def _placed(
        self, chosen: Sequence[Passage], wanted: Sequence[Passage], position: float, used: int
    ) -> list[Passage]:
        """Each wanted passage before the first distractor that begins behind its share of the distractors' tokens."""
        shares = [position + (1 - position) * k / len(wanted) for k in range(len(wanted))]
        order: list[Passage] = []
        before = 0
        rest = list(zip(shares, wanted, strict=True))
        for passage in chosen:
            while rest and before >= rest[0][0] * used:
                order.append(rest.pop(0)[1])
            order.append(passage)
            before += self.tokens_of(passage)
        return order + [passage for _, passage in rest]
