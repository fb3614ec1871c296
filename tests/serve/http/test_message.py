"""However an answer is cut into pieces, streamed and whole are the same message."""

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.serve.http.app import app_of
from plait.serve.http.form import AnswerForm
from plait.serve.http.message import MessageStream, join
from plait.serve.http.server import Server
from plait.serve.http.settings import ServerSettings

CALLS = (
    '<tool_calls>[{"name": "f", "arguments": {"a":  1.50, "b": "\\u00e9 </tool_calls>"}},\n'
    '{"name":"g","arguments":"{}"}]</tool_calls>'
)
PARTS = st.sampled_from(
    [CALLS, "<tool_calls>[oops]</tool_calls>", "<citations>[0, 2]</citations>",
     '<tool_call>{"name": "h", "arguments": {"x":[1, 2]}}</tool_call>',
     "<think>", "</think>", "<tool", "_calls>", " ", "\n", "plain words", "é𝄞", "<", "</", "{", "<citations>", "why"]
)  # fmt: skip
TEXTS = st.lists(PARTS, max_size=7).map("".join)
FORMS = st.builds(AnswerForm, reasons=st.booleans(), reasoning_is_open=st.booleans(), leading_space=st.booleans())


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(TEXTS)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    bounds = [0, *places, len(text)]
    return text, [text[a:b] for a, b in pairwise(bounds)]


@settings(max_examples=300)
@given(cut_texts(), FORMS, st.booleans())
def test_streamed_is_whole(cut: tuple[str, list[str]], form: AnswerForm, reads_sections: bool) -> None:
    text, pieces = cut
    whole = MessageStream(form, reads_sections=reads_sections)
    streamed = MessageStream(form, reads_sections=reads_sections)
    events = [event for piece in pieces for event in streamed.push(piece)]
    assert join([*events, *streamed.finish()]) == join([*whole.push(text), *whole.finish()])


def test_arguments_are_the_models_own_characters() -> None:
    stream = MessageStream(AnswerForm(), reads_sections=True)
    message = join([*stream.push(CALLS), *stream.finish()])
    assert [call.arguments for call in message.tool_calls] == ['{"a":  1.50, "b": "\\u00e9 </tool_calls>"}', "{}"]


def test_nothing_is_read_that_was_not_asked_for() -> None:
    stream = MessageStream(AnswerForm(), reads_sections=False)
    assert join([*stream.push(CALLS), *stream.finish()]).content == CALLS


@pytest.mark.parametrize(("text", "content"), [(" a b", "a b"), ("a", "a"), ("  a", " a"), (" ", None)])
def test_the_space_that_the_template_writes_is_dropped(text: str, content: str | None) -> None:
    stream = MessageStream(AnswerForm(leading_space=True), reads_sections=False)
    assert join([e for char in text for e in stream.push(char)] + stream.finish()).content == content


def joined_chat(chunks: list[Any]) -> dict[str, Any]:
    """The message that a client makes of a stream's chunks."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": {}, "citations": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                message[name] += delta.get(name) or ""
            message["citations"] += delta.get("citations", [])
            for call in delta.get("tool_calls", []):
                into = message["tool_calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                into["name"] += call["function"].get("name", "")
                into["arguments"] += call["function"].get("arguments", "")
            message["finish_reason"] = choice["finish_reason"] or message.get("finish_reason")
    return message


@settings(max_examples=60)
@given(cut=cut_texts())
def test_the_endpoints_streams_are_their_whole_answers(cut: tuple[str, list[str]], make_service: Callable) -> None:
    tool = {"name": "f", "parameters": {"type": "object"}}
    chat = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
    chat |= {"tools": [{"type": "function", "function": tool}], "knobs": {"citation_mode": "fast"}}
    flat = {"model": "demo", "input": "x", "tools": [{"type": "function", **tool}], "knobs": {"citation_mode": "fast"}}

    async def both() -> None:
        service = make_service(cuts=cut[1])
        transport = httpx.ASGITransport(app_of(Server(service, ServerSettings())))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            whole = (await client.post("/v1/chat/completions", json=chat)).json()["choices"][0]
            lines = (await client.post("/v1/chat/completions", json=chat | {"stream": True})).text.split("\n\n")
            streamed = joined_chat([json.loads(line[6:]) for line in lines if line.startswith("data: {")])
            message = whole["message"]
            assert streamed["content"] == (message["content"] or "")
            assert streamed["reasoning_content"] == message.get("reasoning_content", "")
            assert streamed["citations"] == message.get("citations", [])
            calls = [call["function"] for call in message.get("tool_calls", [])]
            assert list(streamed["tool_calls"].values()) == calls
            assert streamed["finish_reason"] == whole["finish_reason"]
            whole = (await client.post("/v1/responses", json=flat)).json()
            text = (await client.post("/v1/responses", json=flat | {"stream": True})).text
            events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
            ended = events[-1]["response"]
            assert [strip(item) for item in ended["output"]] == [strip(item) for item in whole["output"]]
            assert ended.get("citations") == whole.get("citations")
            deltas = {"output_text": "", "function_call_arguments": ""}
            for event in events:
                kind = event["type"].removeprefix("response.").removesuffix(".delta")
                if kind in deltas:
                    deltas[kind] += event["delta"]
            assert deltas["output_text"] == streamed["content"]
            assert deltas["function_call_arguments"] == "".join(call["arguments"] for call in calls)

    asyncio.run(both())


def strip(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}
