"""The text side of an answer: from token ids of the engine to pieces of text, ended by stop strings."""

from __future__ import annotations

from plait.serve.request import Output, Request
from plait.serve.service import Delta, EngineError
from plait.text import Completion, StopChecker, Tokenizer, TokenLogprob
from plait.text.generator import FinishReason


class AnswerText:
    """One answer's text as its tokens come. Half characters and what may become a stop string are held back.

    A stop string is met here and not in the engine, which knows no text: a piece then has a `finish_reason` though its
    output had none, and whoever steps the engine aborts the answer there.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer | None, answer: int = 0, *, control_tokens: bool = False
    ) -> None:
        """`control_tokens`: the text keeps their spelling (answers to messages, for tool calls)."""
        self.params, self.answer = request.params, answer
        self._n_prompt = len(request.prompt)
        self._detokenizer = tokenizer.detokenizer(control_tokens=control_tokens) if tokenizer else None
        self._n_known_ids = tokenizer.vocab_size if tokenizer else 0  # a model may have more, which stand for no text
        self._stops = StopChecker(self.params.stop)
        self._n_tokens = 0
        self._scores: list[TokenLogprob | None] | None = None if self.params.prompt_logprobs is None else [None]

    def push(self, out: Output) -> Delta | None:
        """The piece that an output makes, or None if there is nothing to tell yet. Raises EngineError if it failed."""
        if out.error is not None:
            raise EngineError(out.error)
        if self._scores is not None:
            self._scores += out.prompt_logprobs
        if not out.token_ids and out.finish_reason is None:
            return None
        text, n_taken = self._text(out)
        reason: FinishReason | None = "stop" if self._stops.stopped_by is not None else out.finish_reason
        if reason is not None:
            text += self._stops.finish()
        scores, self._scores = self._scores, None
        return Delta(
            self.answer,
            text,
            out.token_ids[:n_taken],
            None if self.params.logprobs is None else out.logprobs[:n_taken],
            reason,
            self._n_prompt,
            None if scores is None else tuple(scores),
            out.prefix,
        )

    def _text(self, out: Output) -> tuple[str, int]:
        """What an output's tokens spell, and how many of them are the answer's: those up to a stop string."""
        text = ""
        for nth, token_id in enumerate(out.token_ids, start=1):
            self._n_tokens += 1
            is_last = out.finish_reason is not None and nth == len(out.token_ids)
            is_end = is_last and out.finish_reason == "stop"  # an end token is no text
            text += self._until_stop(self._spelling(token_id, is_end) + self._rest(is_last))
            if self._stops.stopped_by is not None:
                return text, nth
        return text, len(out.token_ids)

    def _spelling(self, token_id: int, is_end: bool) -> str:
        if self._detokenizer is None or is_end or token_id >= self._n_known_ids:
            return ""
        return self._detokenizer.push(token_id)

    def _rest(self, is_last: bool) -> str:
        return self._detokenizer.finish() if is_last and self._detokenizer else ""

    def _until_stop(self, text: str) -> str:
        return self._stops.push(text) if self._n_tokens > self.params.min_tokens else text


class Gathered:
    """The pieces of one answer, put together."""

    def __init__(self) -> None:
        self._pieces: list[Delta] = []

    def add(self, piece: Delta) -> None:
        self._pieces.append(piece)

    def completion(self) -> Completion:
        """The whole answer; it must have ended."""
        first, last = self._pieces[0], self._pieces[-1]
        assert last.finish_reason is not None
        token_ids = tuple(t for piece in self._pieces for t in piece.token_ids)
        return Completion(
            text="".join(piece.text for piece in self._pieces),
            token_ids=token_ids,
            finish_reason=last.finish_reason,
            prompt_tokens=first.prompt_tokens,
            completion_tokens=len(token_ids),
            logprobs=None if first.logprobs is None else tuple(e for p in self._pieces for e in p.logprobs or ()),
            prompt_logprobs=first.prompt_logprobs,
            cached_tokens=first.prefix.usable,
            lost_tokens=first.prefix.lost,
        )
