"""Log-probabilities in OpenAI's two forms: chat's list of objects, and the parallel lists of plain completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.text import Detokenizer, Tokenizer, TokenLogprob

_LEAST = -9999.0  # JSON has no -Infinity; this is what OpenAI writes


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """A model may have more ids than its tokenizer; those stand for no text."""
    return tokenizer.token_bytes(token_id) if token_id < tokenizer.vocab_size else b""


def chat_logprobs(tokenizer: Tokenizer, drawn: Sequence[TokenLogprob], end_ids: frozenset[int]) -> list[dict[str, Any]]:
    """One object per token; the token that ends the message is left out, as it is no part of it."""
    return [
        {**_token(tokenizer, t.token_id, t.logprob), "top_logprobs": [_token(tokenizer, i, p) for i, p in t.top]}
        for t in drawn
        if t.token_id not in end_ids
    ]


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = token_bytes(tokenizer, token_id)
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, _LEAST), "bytes": list(data)}


@dataclass
class CompletionLogprobs:
    """Grows token by token; `take` gives what came since the last time.

    A token that is part of a character is written `bytes:\\xe2\\x80`, so that different tokens have different names.
    """

    tokenizer: Tokenizer
    offset: int = 0  # characters so far
    _detokenizer: Detokenizer = field(init=False)
    _lists: dict[str, list[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self._detokenizer = self.tokenizer.detokenizer()
        self._lists = _empty()

    def add(self, token_id: int, noted: TokenLogprob | None) -> None:
        """`noted` None: the first token of a prompt, which follows nothing."""
        lists = self._lists
        name = _name(self.tokenizer, token_id)
        lists["tokens"].append(name)
        lists["text_offset"].append(self.offset)
        lists["token_logprobs"].append(None if noted is None else max(noted.logprob, _LEAST))
        lists["top_logprobs"].append(None if noted is None else self._top(name, noted))
        if token_id < self.tokenizer.vocab_size:
            self.offset += len(self._detokenizer.push(token_id))

    def take(self) -> dict[str, list[Any]]:
        taken, self._lists = self._lists, _empty()
        return taken

    def _top(self, name: str, noted: TokenLogprob) -> dict[str, float]:
        """The likeliest, and the token itself if it is not among them."""
        top: dict[str, float] = {}
        for token_id, logprob in noted.top:
            top.setdefault(_name(self.tokenizer, token_id), max(logprob, _LEAST))
        top.setdefault(name, max(noted.logprob, _LEAST))
        return top


def _empty() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _name(tokenizer: Tokenizer, token_id: int) -> str:
    data = token_bytes(tokenizer, token_id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
