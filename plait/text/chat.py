"""Conversations to prompts, through the checkpoint's chat template or ours (jamba.jinja)."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from plait.text.template_sandbox import ChatTemplateError, TemplateSandbox, literals
from plait.text.tokenizer import Tokenizer
from plait.text.tokenizer_json import jamba_template, read_json_object
from plait.text.untrusted import Shield, map_strings

Message = Mapping[str, Any]

_JAMBA_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
}
_JAMBA_NEEDS = ("<|startoftext|>", "<|bom|>", "<|eom|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
_MAX_CHARS = 16_000_000


class ChatTemplate:
    """Renders messages (OpenAI's form: role, content, tool_calls, name …) to the prompt a model was trained on.

    `render` gives text to look at. `encode` gives the prompt: there control tokens are the template's own, and the same
    strings written by users, in messages, tools, documents, names or variables, are plain text.
    """

    def __init__(
        self,
        source: str | None = None,
        *,
        tool_source: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        max_chars: int = _MAX_CHARS,
    ) -> None:
        """`source` None is our template. `tool_source` is rendered in its place when tools are given.

        `special_tokens` are variables of the template (bos_token …), the Jamba family's if None. Raises
        ChatTemplateError, a ValueError, for a template that can't be read; so does an output over `max_chars` later.
        """
        self._is_ours = source is None
        self.source = jamba_template() if source is None else source
        self.special_tokens = dict(_JAMBA_TOKENS if special_tokens is None else special_tokens)
        self._plain = _Variant(self.source, max_chars)
        self._with_tools = _Variant(tool_source, max_chars) if tool_source is not None else self._plain

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> ChatTemplate:
        """The folder's chat_template.jinja, or the chat_template in its tokenizer_config.json, or else ours.

        Of several named templates it takes `default`, and `tool_use` when tools are given.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        config_file = folder / "tokenizer_config.json"
        config = read_json_object(config_file) if config_file.is_file() else {}
        special_tokens = {name: _content(config[name]) for name in _JAMBA_TOKENS if config.get(name)} or None
        if (folder / "chat_template.jinja").is_file():
            return cls((folder / "chat_template.jinja").read_text(encoding="utf-8"), special_tokens=special_tokens)
        found = config.get("chat_template")
        if found is None:
            return cls(special_tokens=special_tokens)
        if isinstance(found, str):
            return cls(found, special_tokens=special_tokens)
        named = {entry["name"]: entry["template"] for entry in found}
        if "default" not in named:
            raise ValueError(f"{config_file} names chat templates {', '.join(named)}, but none is called default")
        return cls(named["default"], tool_source=named.get("tool_use"), special_tokens=special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        knobs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        trusted_variables: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt as text. Raises ChatTemplateError, a ValueError, when the template refuses or fails."""
        given = _given(messages, tools, documents, knobs, variables)
        fixed = self._fixed(add_generation_prompt, trusted_variables)
        return self._variant(tools).sandbox.render(map_strings(given, str) | fixed)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        knobs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        trusted_variables: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> list[int]:
        """The prompt as token ids: the text that `render` gives, in which only the template wrote control tokens.

        `trusted_variables` are from the operator, not from users: control tokens in them count. Raises
        ChatTemplateError, a ValueError, as `render` does, and when the template reads what users wrote in a way that
        hiding control tokens changes.
        """
        if self._is_ours and (lacking := [token for token in _JAMBA_NEEDS if token not in tokenizer.control_ids]):
            raise ChatTemplateError(
                f"the tokenizer lacks {', '.join(lacking)}: this model has no chat format, give a template that fits it"
            )
        variant = self._variant(tools)
        given = _given(messages, tools, documents, knobs, variables)
        fixed = self._fixed(add_generation_prompt, trusted_variables)
        values: list[str] = []
        plain = map_strings(given, lambda text: values.append(text) or text)  # type: ignore[func-returns-value]
        shield = Shield.against(tokenizer.control_ids, variant.literals, values)
        hidden = shield.hide_all(given)
        now = datetime.now()
        text = marked = variant.sandbox.render(plain | fixed, now=now)
        if hidden != plain:
            marked = variant.shielded(shield).render(hidden | fixed, now=now)
            if shield.show(marked) != text:
                raise ChatTemplateError(
                    "the chat template treats this text in a special way, so its control tokens can't be told from the"
                    " template's: remove what looks like a control token from the messages"
                )
        ids: list[int] = []
        for run, control_id in tokenizer.split_at_control_tokens(marked):
            ids += tokenizer.encode(shield.show(run))
            if control_id is not None:
                ids.append(control_id)
        return ids

    def _variant(self, tools: Sequence[Mapping[str, Any]] | None) -> _Variant:
        return self._with_tools if tools else self._plain

    def _fixed(self, add_generation_prompt: bool, trusted: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**self.special_tokens, "add_generation_prompt": add_generation_prompt, **(trusted or {})}


class _Variant:
    """A template compiled twice: as it is, and to compare with hidden text. Ours, which is known to be right, when it
    is first used (60 ms, which `plait generate` need not spend), others at once, so that errors come while loading.
    """

    def __init__(self, source: str, max_chars: int) -> None:
        self.source, self.max_chars = source, max_chars
        self._shielded: tuple[Mapping[str, str], TemplateSandbox] | None = None  # of the stand-ins used last
        if source != jamba_template():
            _ = self.sandbox, self.literals

    @functools.cached_property
    def sandbox(self) -> TemplateSandbox:
        return TemplateSandbox(self.source, max_chars=self.max_chars)

    @functools.cached_property
    def literals(self) -> tuple[str, ...]:
        return tuple(literals(self.source))

    def shielded(self, shield: Shield) -> TemplateSandbox:
        if self._shielded is None or self._shielded[0] != shield.stand_ins:
            rewritten = TemplateSandbox(self.source, max_chars=self.max_chars, rewrite=shield.hide_comparisons)
            self._shielded = (shield.stand_ins, rewritten)
        return self._shielded[1]


def _given(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    knobs: Mapping[str, Any] | None,
    variables: Mapping[str, Any],
) -> dict[str, Any]:
    given = {"messages": messages, "tools": tools, "documents": documents, **variables}
    return given if knobs is None else {**given, "knobs": knobs}


def _content(token: str | Mapping[str, str]) -> str:
    return token if isinstance(token, str) else token["content"]


def assistant_spans(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Where in tokens from `ChatTemplate.encode` the assistant wrote: [start, end) of each turn with its closing token.

    A turn starts behind `<|bom|><|assistant|>` and ends with `<|eom|>`; or, in the 3B models' form, behind
    `<|im_start|>assistant\\n` with `<|im_end|>`. A turn that isn't closed (a generation prompt) has no span. The ids
    alone tell, because users can't write control tokens.
    """
    forms = (("<|bom|>", "<|assistant|>", "<|eom|>"), ("<|im_start|>", "assistant\n", "<|im_end|>"))
    form = next((form for form in forms if form[0] in tokenizer.control_ids and form[2] in tokenizer.control_ids), None)
    if form is None:
        raise ValueError("the tokenizer has neither <|bom|> and <|eom|> nor <|im_start|> and <|im_end|>")
    header = tokenizer.encode(form[0] + form[1], control_tokens=True)
    end_id = tokenizer.control_ids[form[2]]
    spans = []
    at = 0
    while at < len(ids):
        if list(ids[at : at + len(header)]) == header:
            start = at + len(header)
            end = next((i for i in range(start, len(ids)) if ids[i] in (end_id, header[0])), None)
            if end is not None and ids[end] == end_id:
                spans.append((start, end + 1))
        at += 1
    return spans
