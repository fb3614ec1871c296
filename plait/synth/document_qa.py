"""Document QA: questions a model writes on passages of real documents, answered with citations (paper section 5.3).

The answer names the documents that support it in the chat template's form; quotes are checked to the letter, a judge
must find the answer in the cited documents, and for several documents must not find it without each of them. The
passages are then hidden among similar ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from plait.data import Document
from plait.synth.conversation import without_artifacts
from plait.synth.long_context import ContextBuilder, CountTokens, passages_of
from plait.synth.pipeline import Ask, Dropped
from plait.synth.record import Record, random_for, request_seed
from plait.synth.reward import says_yes
from plait.synth.table_text import json_object
from plait.text import GenerationRequest, SamplingParams

MAX_CONTEXT_TOKENS = 262_144
_RESERVED_TOKENS = 512  # of a context, for question, answer, and what the chat template writes around documents
UNANSWERED = "The documents don't answer this question."
_POINTS_AT_TEXT = re.compile(
    r"\b(?:(?:this|the (?:above|following|given|provided)) (?:passage|paragraph|text|document|excerpt)s?"
    r"|according to the (?:passage|paragraph|text|document|excerpt)s?|mentioned above)\b",
    re.IGNORECASE,
)
_NAMES_AND_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*|(?<![.!?]\s)(?<!\A)\b[A-Z][\w'’-]+")
_KNOBS = {"is_set": True, "citation_mode": "fast"}


class DocumentQA:
    """`context_tokens` are lengths of whole conversations to choose from, 0 meaning no distractors; `positions` where
    the answer stands, as a share."""

    name = "document_qa"

    def __init__(
        self,
        documents: Iterable[Document],
        *,
        context_tokens: Sequence[int] = (0,),
        positions: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        multiple: float = 0.4,
        unanswerable: float = 0.1,
        count_tokens: CountTokens | None = None,
        similarity: str = "words",
        judges: bool = True,
    ) -> None:
        """`multiple` is the share of questions on two passages, `unanswerable` that of contexts without the support.

        `similarity` of the texts around: by `words` (BM25) or by `meaning` (an embedder that needs no download).
        """
        if not all(0 <= tokens <= MAX_CONTEXT_TOKENS for tokens in context_tokens) or not context_tokens:
            raise ValueError(f"context_tokens={context_tokens} must be from 0 to {MAX_CONTEXT_TOKENS}")
        if not all(0 <= share <= 1 for share in (*positions, multiple, unanswerable)) or not positions:
            raise ValueError(
                f"positions={positions}, multiple={multiple} and unanswerable={unanswerable} must be from 0 to 1"
            )
        self.context_tokens = tuple(context_tokens)
        self.positions = tuple(positions)
        self.multiple = multiple
        self.unanswerable = unanswerable
        self.judges = judges
        self.similarity = similarity
        passages = [p for document in documents for p in passages_of(document)]
        self._builder = ContextBuilder(passages, count_tokens, similarity=similarity)
        if len(self._builder.passages) < 2:
            raise ValueError("the documents give fewer than two passages of 400 to 1,600 characters: give longer ones")

    def settings(self) -> dict[str, Any]:
        keys = ("context_tokens", "positions", "multiple", "unanswerable", "similarity", "judges")
        return {**{key: getattr(self, key) for key in keys}, "passages": len(self._builder.passages)}

    def prompts(self, n: int, seed: int) -> Iterator[Record]:
        passages = self._builder.passages
        for i in range(n):
            random = random_for("document_qa", seed, i)
            wanted = [random.choice(passages)]
            if random.random() < self.multiple:
                wanted += self._builder.similar(wanted[0].text, 1, besides=wanted)
            max_tokens = random.choice(self.context_tokens)
            facts = {
                "passages": [passages.index(passage) for passage in wanted],
                "texts": [passage.text for passage in wanted],
                "max_tokens": max_tokens,
                "position": random.choice(self.positions),
                "is_answerable": not max_tokens or random.random() >= self.unanswerable,
            }
            source = {"documents": [passage.title for passage in wanted], "seed": seed}
            yield Record(f"document_qa-{seed}-{i}", self.name, facts=facts, source=source)

    def respond(self, record: Record, ask: Ask) -> Sequence[Record]:
        answer = ask(_question_request(record))[0]
        written = json_object(answer)
        if written is None or not _is_whole(written):
            raise Dropped(f"not the JSON that was asked for: {answer[:200]!r}")
        record = record.with_facts(
            question=written["question"].strip(),
            answer=without_artifacts(written["answer"]),
            quotes=[quote.strip() for quote in written["quotes"]],
        )
        return [self._embedded(record)]

    def _embedded(self, record: Record) -> Record:
        facts = record.facts
        wanted = [self._builder.passages[i] for i in facts["passages"]]
        context = self._builder.build(
            wanted if facts["is_answerable"] else [],
            f"{facts['question']} {' '.join(facts['texts'])}",
            max_tokens=facts["max_tokens"] - _RESERVED_TOKENS
            if facts["max_tokens"]
            else sum(map(self._builder.tokens_of, wanted)),
            position=facts["position"],
            random=random_for("context", record.id),
            forbidden=[*facts["quotes"], *facts["texts"]],
        )
        if context is None:
            raise Dropped(f"too little text: no context of {facts['max_tokens']} tokens")
        question = {"role": "user", "content": facts["question"]}
        text = facts["answer"] if facts["is_answerable"] else UNANSWERED
        cited = [{"document_id": i} for i in sorted(context.ids)]
        answer = {"role": "assistant", "content": text, "citations": cited}
        record = record.with_facts(context=context.facts()).with_messages(question, answer)
        return replace(record, documents=context.documents, knobs=_KNOBS)

    def check(self, record: Record, ask: Ask) -> Record:
        wrong = wrong_question(record.facts) or wrong_support(record.facts) or wrong_citations(record)
        if wrong is not None:
            raise Dropped(wrong)
        if not self.judges:
            return record.with_scores(quoted=1.0)
        self._judge(record.facts, ask)
        return record.with_scores(quoted=1.0, judged=1.0)

    def _judge(self, facts: dict[str, Any], ask: Ask) -> None:
        question, answer, texts = facts["question"], facts["answer"], facts["texts"]
        if not says_yes(_support_prompt(question, answer, texts), ask):
            raise Dropped(f"judge finds no support: {question!r} {answer!r}")
        for i in range(len(texts) if len(texts) > 1 else 0):
            if says_yes(_support_prompt(question, answer, texts[:i] + texts[i + 1 :]), ask):
                raise Dropped(f"needs only one document: {question!r}")

    def edit(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            left_out = ("texts", "passages", "answer", "question")
            yield replace(record, facts={key: value for key, value in record.facts.items() if key not in left_out})


def _question_request(record: Record) -> GenerationRequest:
    texts = record.facts["texts"]
    numbered = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(texts))
    need = "the document" if len(texts) == 1 else "all documents together, and can't be answered without any of them"
    prompt = (
        f"Write a question that is answered by {need}. It must be understood without seeing them: name what it is"
        " about, and don't speak of a text or document. Answer with a JSON object with the keys question, answer (one"
        " to three sentences) and quotes (a list with one sentence from each document in order, copied to the letter,"
        f" that supports the answer).\n\n{numbered}"
    )
    sampling = SamplingParams(temperature=0.7, max_tokens=768, seed=request_seed(record.id))
    return GenerationRequest(messages=[{"role": "user", "content": prompt}], sampling=sampling)


def _is_whole(written: dict[str, Any]) -> bool:
    texts = [written.get("question"), written.get("answer")]
    quotes = written.get("quotes")
    if not isinstance(quotes, list) or not quotes:
        return False
    return all(isinstance(text, str) and text.strip() for text in [*texts, *quotes])


def wrong_question(facts: dict[str, Any]) -> str | None:
    """Why a question can't stand among other documents, or None."""
    question, answer = facts["question"], facts["answer"]
    if not question.endswith("?") or len(question.split()) < 4:
        return f"no question: {question!r}"
    if pointing := _POINTS_AT_TEXT.search(question):
        return f"question points at its text: {pointing.group()!r}"
    if _squeezed(answer).rstrip(".") in _squeezed(question):
        return f"question gives its answer: {question!r}"
    return None


def wrong_support(facts: dict[str, Any]) -> str | None:
    """Why the passages don't carry the answer, or None: one quote each, to the letter; names and numbers from them."""
    texts, quotes = [_squeezed(text) for text in facts["texts"]], facts["quotes"]
    if len(quotes) != len(texts):
        return f"quotes missing: {len(quotes)} for {len(texts)} documents"
    for text, quote in zip(texts, quotes, strict=True):
        if len(quote.split()) < 3 or _squeezed(quote) not in text:
            return f"quote isn't in its document: {quote!r}"
    known = " ".join([*texts, _squeezed(facts["question"])])
    for name in _NAMES_AND_NUMBERS.findall(facts["answer"]):
        if re.search(rf"(?<!\w){re.escape(_squeezed(name))}(?!\w)", known) is None:
            return f"not in the documents: {name!r} of the answer"
    return None


def wrong_citations(record: Record) -> str | None:
    """Why citations and documents don't fit, or None: exactly the supporting documents are cited, and no other has a
    quote; what isn't answerable cites nothing."""
    cited = [citation["document_id"] for citation in record.messages[-1]["citations"]]
    if record.facts["is_answerable"]:
        if any(not 0 <= i < len(record.documents) for i in cited) or len(set(cited)) != len(cited):
            return f"cites what isn't there: {cited} of {len(record.documents)} documents"
        if sorted(record.documents[i]["text"] for i in cited) != sorted(record.facts["texts"]):
            return f"cites the wrong documents: {cited}"
    elif cited or record.answer != UNANSWERED:
        return f"answers without support: {record.answer!r}"
    others = [document["text"] for i, document in enumerate(record.documents) if i not in cited]
    for quote in record.facts["quotes"]:
        if any(_squeezed(quote) in _squeezed(text) for text in others):
            return f"answer stands in a distractor: {quote!r}"
    limit = record.facts["max_tokens"]
    if limit and record.facts["context"]["n_tokens"] > limit:
        return f"context too long: {record.facts['context']['n_tokens']} tokens of {limit}"
    return None


def _support_prompt(question: str, answer: str, texts: Sequence[str]) -> str:
    joined = "\n\n".join(texts)
    return (
        "Does the text below, alone, say everything that is needed to give this answer to this question? Say yes or"
        f" no.\n\nQuestion: {question}\nAnswer: {answer}\n\nText:\n{joined}"
    )


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()
