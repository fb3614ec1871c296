"""From what a caller asks (`GenerationRequest`) to what the engine is given (`Request`): tokens, limits, end tokens."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from plait.config import ModelConfig
from plait.serve.request import Request
from plait.serve.service import Grammar
from plait.text import ChatTemplate, GenerationRequest, SamplingParams, Tokenizer

TURN_ENDS = ("<|eom|>", "<|im_end|>")


class Prompts:
    """Knows a model's tokenizer, chat template and limits; refuses what can't be answered."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        chat_template: ChatTemplate | None,
        *,
        max_context: int | None = None,
    ) -> None:
        """A model without a tokenizer takes token ids only. `max_context` bounds prompt and answer together (None: the
        model's own).
        """
        self.config, self.tokenizer, self.chat_template = config, tokenizer, chat_template
        self.max_context = max_context or config.max_context
        self.end_ids = frozenset({*config.eos_ids, *(tokenizer.eos_ids if tokenizer else ())})
        control_ids = tokenizer.control_ids if tokenizer else {}
        self._turn_ends = frozenset(control_ids[name] for name in TURN_ENDS if name in control_ids)

    @classmethod
    def of_folder(cls, folder: Path, config: ModelConfig, *, max_context: int | None = None) -> Prompts:
        """With the tokenizer and template of a checkpoint, if it has them."""
        if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
            return cls(config, None, None, max_context=max_context)
        tokenizer, template = Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder)
        return cls(config, tokenizer, template, max_context=max_context)

    def request(
        self,
        asked: GenerationRequest,
        *,
        priority: int = 0,
        grammar: Grammar | None = None,
        salt: str = "",
        is_private: bool = False,
    ) -> Request:
        """What the engine is to do. Raises ValueError for anything wrong with the prompt or its parameters."""
        ids, params = self.prompt_ids(asked), asked.sampling
        self._check(ids, params)
        room = self.max_context - len(ids)
        if params.max_tokens > room:
            params = replace(params, max_tokens=room, min_tokens=min(params.min_tokens, room))
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.end_ids)
        turns = () if asked.messages is None else tuple(i + 1 for i, t in enumerate(ids) if t in self._turn_ends)
        return Request(
            tuple(ids), params, ends, turns=turns, priority=priority, grammar=grammar, salt=salt, is_private=is_private
        )  # fmt: skip

    def prompt_ids(self, asked: GenerationRequest) -> list[int]:
        """The prompt's tokens: messages through the chat template, text behind bos, token ids as they are."""
        if asked.messages is not None:
            tokenizer = self.need_tokenizer()
            assert self.chat_template is not None
            return self.chat_template.encode(
                tokenizer, asked.messages, tools=asked.tools, documents=asked.documents, knobs=asked.knobs
            )
        if asked.prompt is not None:
            return [self.config.bos_id, *self.encode(asked.prompt)]
        assert asked.token_ids is not None
        return _integers(asked.token_ids)

    def encode(self, text: str | Sequence[int]) -> list[int]:
        """Token ids of text, without bos; token ids as they are."""
        return self.need_tokenizer().encode(text) if isinstance(text, str) else list(text)

    def need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this model's folder has no tokenizer.json, so prompts must be lists of token ids")
        return self.tokenizer

    def _check(self, ids: list[int], params: SamplingParams) -> None:
        vocab_size = self.config.vocab_size
        if not ids:
            raise ValueError("the prompt is empty: give at least one token")
        bad = [i for i in ids if not 0 <= i < vocab_size]
        if bad:
            raise ValueError(f"token id {bad[0]} is not between 0 and vocab_size-1={vocab_size - 1}")
        if len(ids) + (params.max_tokens > 0) > self.max_context:
            room = " with room for an answer" if params.max_tokens else ""
            raise ValueError(
                f"the prompt has {len(ids)} tokens;{room} at most {self.max_context - bool(room)} fit "
                f"in max_context={self.max_context}"
            )
        for name, given in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            unknown = [i for i in given if i >= vocab_size]
            if unknown:
                raise ValueError(f"{name}: token id {unknown[0]} is not below vocab_size={vocab_size}")
        if params.stop and self.tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this model's folder has none; use stop_token_ids")


def _integers(token_ids: Sequence[int]) -> list[int]:
    """A list of Python's integers, also from an array or a tensor: the prefix cache compares them by value."""
    given = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
    try:
        return [operator.index(i) for i in given]
    except TypeError:
        wrong = next(i for i in given if not hasattr(i, "__index__"))
        raise ValueError(f"token ids must be integers, got {wrong!r}") from None
