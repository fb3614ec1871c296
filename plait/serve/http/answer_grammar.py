"""What an answer must match when tools or a response format say so, in llguidance's form of Lark.

A free answer has no grammar. A format alone, on a model whose answers are nothing else, is the engine's plain JSON
constraint; all else is spelled out here, tags included, so that a constrained answer reads like a free one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from plait.serve.http.chat_body import Function, NamedTool, ResponseFormat
from plait.serve.http.errors import ApiError
from plait.serve.http.form import AnswerForm
from plait.serve.service import Grammar

ToolChoice = str | NamedTool | None

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_FREE = r"/(.|\n)*/"
# Between the parts of JSON: room for pretty printing, none for a model that would write white space for ever.
_LAYOUT = {"x-guidance": {"whitespace_flexible": True, "whitespace_pattern": r"[ \t]{0,2}(\n[ \t]{0,32})?"}}


def answer_grammar(
    form: AnswerForm,
    *,
    response_format: ResponseFormat | None = None,
    tools: Sequence[Function] = (),
    choice: ToolChoice = None,
    parallel: bool = True,
) -> Grammar | None:
    """None if the answer is free. Raises ApiError 400 for a choice among tools that can't be made."""
    offered = _offered(tools, choice)
    must_call = choice == "required" or isinstance(choice, NamedTool)
    if must_call and form.calls is None:
        raise ApiError(400, "this model's chat template has no tool calls", param="tool_choice")
    schema = _schema(response_format)
    holds_calls = must_call or any(tool.strict for tool in offered) or not parallel or schema is not None
    if holds_calls and offered and not must_call and schema is None and not form.call_is_control:
        raise ApiError(
            400,
            "in this model's tokenizer a call begins with ordinary text, so strict tools and parallel_tool_calls: false"
            " need a tool_choice that asks for a call",
            param="tool_choice",
        )
    has_calls = bool(offered) and holds_calls and form.calls is not None
    if schema is None and not has_calls:
        return None
    if not has_calls and not form.leading_space and not form.reasons:
        return Grammar("json_object", "") if schema == {"type": "object"} else Grammar("json_schema", _dump(schema))
    return Grammar("grammar", "\n".join(_rules(form, schema, offered if has_calls else (), must_call, parallel)) + "\n")


def _offered(tools: Sequence[Function], choice: ToolChoice) -> Sequence[Function]:
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice asks for a call, but tools offers none", param="tool_choice")
        return ()
    if choice == "none":
        return ()
    if not isinstance(choice, NamedTool):
        return tools
    named = [tool for tool in tools if tool.name == choice.function.name]
    if not named:
        names = ", ".join(tool.name for tool in tools)
        raise ApiError(400, f"tool_choice names {choice.function.name}, but tools offers {names}", param="tool_choice")
    return named


def _schema(response_format: ResponseFormat | None) -> dict[str, Any] | None:
    if response_format is None or response_format.type == "text":
        return None
    return {"type": "object"} if response_format.type == "json_object" else response_format.json_schema.schema_


def _rules(
    form: AnswerForm, schema: dict[str, Any] | None, tools: Sequence[Function], must_call: bool, parallel: bool
) -> list[str]:
    ways = ([] if must_call else ["said"]) + (["calls"] if tools and (must_call or schema is not None) else [])
    whole = " | ".join(ways) if schema is not None or must_call or not tools else "said calls?"
    space = '" "? ' if form.leading_space else ""
    thinking = "thinking " if form.reasons else ""
    rules = [f"start: {thinking}{space}body", f"body: {whole}"]
    if form.reasons:
        rules += _thinking_rules(form)
    if not must_call:
        rules.append(f"said: {_FREE}" if schema is None else f"said: %json {_dump(_LAYOUT | schema)}")
    return rules + (_call_rules(form, tools, parallel) if tools else [])


def _thinking_rules(form: AnswerForm) -> list[str]:
    """Free text up to the closing tag. As plain text the tag must be a suffix: the text's own rule would swallow it."""
    opening, thought = "", "thought"
    if not form.reasoning_is_open:
        opening = "<think> " if form.think_is_control else '"<think>" '
    if form.think_is_control:
        thought, rule = "thought </think>", f"thought: {_FREE}"
    else:
        rule = f'thought[suffix="</think>"]: {_FREE}'
    return [rf"thinking: {opening}{thought} /\s*/", rule]


def _call_rules(form: AnswerForm, tools: Sequence[Function], parallel: bool) -> list[str]:
    assert form.calls is not None
    closing = f"</{form.calls[1:]}"
    begin, end = (form.calls, closing) if form.call_is_control else (f'"{form.calls}"', f'"{closing}"')
    if form.calls == "<tool_calls>":
        more = ' ("," space call)*' if parallel else ""
        calls = f'calls: {begin} "[" space call{more} space "]" {end}'
    else:
        one = f"{begin} space call space {end}"
        calls = f"calls: {one} (space {one})*" if parallel else f"calls: {one}"
    rules = [calls, r"space: /[ \n]{0,2}/", "call: " + " | ".join(f"call_{n}" for n in range(len(tools)))]
    for n, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool.name)}, "arguments": '
        rules.append(f'call_{n}: {json.dumps(head)} arguments_{n} "}}"')
        rules.append(f"arguments_{n}: %json {_dump(_LAYOUT | _arguments_schema(tool))}")
    return rules


def _arguments_schema(tool: Function) -> dict[str, Any]:
    schema = {"type": "object", **(tool.parameters or _NO_ARGUMENTS)}
    if schema["type"] != "object":
        raise ApiError(400, f"the parameters of {tool.name} must be a schema of type object", param="tools")
    return schema


def _dump(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False)
