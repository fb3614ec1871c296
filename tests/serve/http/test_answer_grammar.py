"""What a constrained answer may be, asked of llguidance itself."""

import json
from typing import Any

import pytest

from plait.serve.http.answer_grammar import answer_grammar
from plait.serve.http.chat_body import Function, JsonObjectFormat, JsonSchemaFormat, NamedTool
from plait.serve.http.errors import ApiError
from plait.serve.http.form import AnswerForm
from plait.text import ChatTemplate, Tokenizer

llguidance = pytest.importorskip("llguidance", reason="the extra serve is not installed")

JAMBA = AnswerForm(calls="<tool_calls>", call_is_control=True, leading_space=True)
THINKS = AnswerForm(calls="<tool_call>", reasons=True, reasoning_is_open=True)
POINT = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "required": ["x"], "additionalProperties": False}
F = Function(name="f", parameters={**POINT, "$defs": {"n": {"type": "integer"}}})
G = Function(name="g.h")
SCHEMA = JsonSchemaFormat.model_validate(
    {"type": "json_schema", "json_schema": {"name": "s", "schema": {**POINT, "$defs": {"n": {"type": "integer"}}}}}
)
ONE = '<tool_calls>[\n{"name": "f", "arguments": {"x": 1}}\n]</tool_calls>'
TWO = '<tool_calls>[{"name": "f", "arguments": {"x": 1}},\n{"name": "g.h", "arguments": {}}]</tool_calls>'
WRONG = '<tool_calls>[{"name": "f", "arguments": {"x": "1"}}]</tool_calls>'


def accepts(grammar: Any, text: str, tokenizer: Tokenizer) -> bool:
    """Whether a whole answer fits; control tokens in it count as such."""
    backend = llguidance.LLTokenizer(tokenizer._spec)
    kinds = {"json_schema": llguidance.LLMatcher.grammar_from_json_schema, "grammar": lambda text: text}
    matcher = llguidance.LLMatcher(backend, kinds[grammar.kind](grammar.text))
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.encode(text, control_tokens=True)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("options", "right", "wrong"),
    [
        ({"tools": [F, G], "choice": "required"}, [ONE, " " + TWO], ["no call", WRONG, "so " + ONE]),
        ({"tools": [F, G], "choice": "required", "parallel": False}, [ONE], [TWO]),
        ({"tools": [F, G], "choice": NamedTool.model_validate({"type": "function", "function": {"name": "f"}})},
         [ONE], [TWO, "no call"]),
        ({"tools": [F, G], "parallel": False}, [ONE, "so " + ONE, "no call"], [TWO, WRONG]),
        ({"tools": [F.model_copy(update={"strict": True}), G]}, [ONE, "so " + TWO, "é"], [WRONG]),
        ({"response_format": SCHEMA},
         ['{"x": 3}', ' {"x":3}', '{\n  "x": 3\n}'], ['{"x": "3"}', "{}", "words", '{\n\n\n"x": 3}']),
        ({"response_format": JsonObjectFormat(type="json_object")}, ['{"y": [1]}'], ["[1]", '{"y": ']),
        ({"response_format": SCHEMA, "tools": [F, G]}, ['{"x": 3}', ONE], ["words", WRONG]),
    ],
)  # fmt: skip
def test_jamba(options: dict[str, Any], right: list[str], wrong: list[str], demo_tokenizer: Tokenizer) -> None:
    grammar = answer_grammar(JAMBA, **options)
    assert [accepts(grammar, text, demo_tokenizer) for text in right] == [True] * len(right)
    assert [accepts(grammar, text, demo_tokenizer) for text in wrong] == [False] * len(wrong)


def test_thinking_comes_first_and_is_free(demo_tokenizer: Tokenizer) -> None:
    grammar = answer_grammar(THINKS, response_format=SCHEMA)
    assert accepts(grammar, 'so {"x": no}</think>\n{"x": 3}', demo_tokenizer)
    assert not accepts(grammar, 'so</think>\n{"x": no}', demo_tokenizer)
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    grammar = answer_grammar(THINKS, tools=[F], choice="required")
    assert accepts(grammar, f"well</think>\n{call}\n{call}", demo_tokenizer)
    assert not accepts(grammar, "well</think>\nno", demo_tokenizer)


def test_a_free_answer_has_no_grammar() -> None:
    for options in ({}, {"tools": [F]}, {"tools": [F], "choice": "auto"}, {"tools": [F], "choice": "none"}):
        assert answer_grammar(JAMBA, **options) is None  # type: ignore[arg-type]


def test_a_plain_form_leaves_json_to_the_engine() -> None:
    grammar = answer_grammar(AnswerForm(), response_format=SCHEMA)
    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.text)["required"]) == ("json_schema", ["x"])


@pytest.mark.parametrize(
    ("form", "options", "said"),
    [
        (JAMBA, {"choice": "required"}, "tools offers none"),
        (JAMBA, {"tools": [G], "choice": NamedTool.model_validate({"type": "function", "function": {"name": "f"}})},
         "names f, but tools offers g.h"),
        (AnswerForm(), {"tools": [F], "choice": "required"}, "no tool calls"),
        (THINKS, {"tools": [F], "parallel": False}, "begins with ordinary text"),
        (JAMBA, {"tools": [Function(name="l", parameters={"type": "array"})], "choice": "required"}, "type object"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_made(form: AnswerForm, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError, match=said):
        answer_grammar(form, **options)


def test_the_form_is_read_from_the_template(demo_tokenizer: Tokenizer) -> None:
    form = AnswerForm.of(ChatTemplate(), demo_tokenizer)
    assert form == AnswerForm(calls="<tool_calls>", call_is_control=True, cites=True, leading_space=True)
    thinking = ChatTemplate(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}{# <tool_call> </tool_call> #}"
    )
    form = AnswerForm.of(thinking, demo_tokenizer)
    assert (form.reasons, form.reasoning_is_open, form.calls, form.leading_space) == (True, True, "<tool_call>", False)
