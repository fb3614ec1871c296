"""Answers that match a JSON schema, a regular expression, a list of choices or a grammar, through llguidance.

A `Guide` follows one answer. It works on the CPU: while the model runs on a GPU, another thread reads which tokens came
and writes the masks of those that may come next.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from plait.serve.service import Grammar
from plait.text import Tokenizer

# Pretty-printed JSON of some depth, but no answer that is blanks for ever, which small models fall into.
JSON_DEFAULTS = {"whitespace_pattern": r"[ \t\n\r]{1,32}"}


class Grammars:
    """Makes guides for one tokenizer and vocabulary."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, end_ids: Collection[int]) -> None:
        """`vocab_size` is the model's; ids beyond the tokenizer's stand for nothing and are never allowed. `end_ids`
        end an answer that matches.
        """
        self.tokenizer, self.vocab_size, self.end_ids = tokenizer, vocab_size, sorted(end_ids)
        self._vocabulary: Any = None

    def guide(self, grammar: Grammar) -> Guide:
        """Raises ValueError for a grammar that is none, and where llguidance or a tokenizer is missing."""
        library = _library()
        if self._vocabulary is None:
            self._vocabulary = self._make_vocabulary(library)
        compiled = _compiled(library.LLMatcher, grammar)
        wrong = library.LLMatcher.validate_grammar(compiled, self._vocabulary)
        if wrong:
            raise ValueError(f"{grammar.kind} can't be followed: {wrong.strip()}")
        matcher = library.LLMatcher(self._vocabulary, compiled, log_level=0)
        if matcher.is_error():
            raise ValueError(f"{grammar.kind} can't be followed: {matcher.get_error().strip()}")
        return Guide(matcher, self.vocab_size, self.end_ids)

    def _make_vocabulary(self, library: Any) -> Any:
        if self.tokenizer is None:
            raise ValueError("grammars need a tokenizer, and this model's folder has none")
        if not self.end_ids:
            raise ValueError("grammars need an end token, and this model has none")
        wrapper = library.TokenizerWrapper(_Vocabulary(self.tokenizer, self.vocab_size, self.end_ids[0]))
        return library.LLTokenizer(wrapper, n_vocab=self.vocab_size, eos_token=self.end_ids)


class _Vocabulary:
    """A tokenizer under the names llguidance asks for."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_id: int) -> None:
        self._tokenizer = tokenizer
        for name, token_id in (("eos", end_id), ("bos", tokenizer.bos_id)):
            setattr(self, f"{name}_token_id", token_id)
        known = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [tokenizer.token_bytes(i) for i in range(known)] + [b""] * (vocab_size - known)
        self.special_token_ids = sorted(tokenizer.control_ids.values())

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


class Guide:
    """Where one answer is in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._matcher, self._end_ids = matcher, end_ids
        self._n_words = -(-vocab_size // 32)
        self.error: str | None = None  # why it can't go on

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take note of drawn tokens."""
        for token_id in token_ids:
            if self.error is not None or self._matcher.is_stopped():
                return  # what follows a whole answer is not the grammar's
            if not self._matcher.consume_token(token_id):
                self.error = f"token {token_id} does not fit the grammar"

    def masks(self, drafts: Sequence[int] = ()) -> np.ndarray:
        """[len(drafts) + 1, ceil(vocab_size / 32)] int32: a bit for each token allowed here, and behind each draft.

        Behind a draft that is not allowed itself everything is: such a place is never reached. Sets `error` where
        nothing is allowed.
        """
        masks = np.full((len(drafts) + 1, self._n_words), -1, np.int32)
        n_tried = 0
        for mask, draft in zip(masks, (*drafts, None), strict=True):
            mask[:] = np.frombuffer(self._matcher.compute_bitmask(), np.int32)[: self._n_words]
            if draft is None or not mask[draft // 32] >> (draft % 32) & 1 or self._matcher.is_stopped():
                break
            if draft in self._end_ids or not self._matcher.consume_token(draft):
                break
            n_tried += 1
        if n_tried:
            self._matcher.rollback(n_tried)
        if self.error is None and self._matcher.is_error():
            self.error = self._matcher.get_error().strip() or "the grammar allows no token here"
        if self.error is None and not masks[0].any():
            self.error = "the grammar allows no token here"
        return masks

    def must_end(self, mask: np.ndarray) -> bool:
        """Whether a mask allows end tokens alone: then not even min_tokens can forbid them."""
        others = mask.copy()
        for end_id in self._end_ids:
            others[end_id // 32] &= ~np.int32(np.uint32(1 << (end_id % 32)).view(np.int32))
        return not others.any()


def _library() -> Any:
    try:
        return import_module("llguidance")
    except ModuleNotFoundError as error:
        raise ValueError("structured output needs llguidance: pip install 'plait[serve]'") from error


def _compiled(matcher: Any, grammar: Grammar) -> str:
    match grammar.kind:
        case "json_schema":
            _json("json_schema", grammar.text, (dict, bool))
            return matcher.grammar_from_json_schema(grammar.text, defaults=JSON_DEFAULTS)
        case "json_object":
            return matcher.grammar_from_json_schema('{"type": "object"}', defaults=JSON_DEFAULTS)
        case "regex":
            return matcher.grammar_from_regex(grammar.text)
        case "choice":
            return matcher.grammar_from_lark(_choice(grammar.text))
        case "grammar":
            return matcher.grammar_from_lark(grammar.text)
    raise ValueError(f"kind={grammar.kind!r} must be json_schema, json_object, regex, choice or grammar")


def _json(kind: str, text: str, types: tuple[type, ...]) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{kind} is not JSON: {error}") from error
    if not isinstance(value, types):
        raise ValueError(f"{kind} must be a JSON {' or '.join(t.__name__ for t in types)}, not {text[:80]!r}")
    return value


def _choice(text: str) -> str:
    choices = _json("choice", text, (list,))
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError(f"choice={text[:80]!r} must be a JSON list of strings that are not empty")
    return "start: " + " | ".join(json.dumps(choice) for choice in choices)
