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
@given(cut_texts(), FORMS, st.sets(st.sampled_from(["calls", "citations"])))
def test_streamed_is_whole(cut: tuple[str, list[str]], form: AnswerForm, sections: Any) -> None:
    text, pieces = cut
    whole, streamed = MessageStream(form, sections=sections), MessageStream(form, sections=sections)
    events = [event for piece in pieces for event in streamed.push(piece)]
    assert join([*events, *streamed.finish()]) == join([*whole.push(text), *whole.finish()])


def test_arguments_are_the_models_own_characters() -> None:
    stream = MessageStream(AnswerForm(), sections=("calls",))
    message = join([*stream.push(CALLS), *stream.finish()])
    assert [call.arguments for call in message.tool_calls] == ['{"a":  1.50, "b": "\\u00e9 </tool_calls>"}', "{}"]


def test_nothing_is_read_that_was_not_asked_for() -> None:
    cited = " so<citations>[1]</citations>"
    for sections, content in (((), CALLS + cited), (("citations",), CALLS + " so"), (("calls",), cited)):
        stream = MessageStream(AnswerForm(), sections=sections)  # type: ignore[arg-type]
        assert join([*stream.push(CALLS + cited), *stream.finish()]).content == content


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize(
    "tokens",
    [["a", " b", " c", "</think>", "\n", "yes"], ["a", " b c", " d", "</", "think", ">", "yes"],
     ["a", "", "é</", "x", "</think>yes"]],
)  # fmt: skip
def test_reasoning_tokens_are_those_between_the_tags(tokens: list[str], is_open: bool) -> None:
    stream = MessageStream(AnswerForm(reasons=True, reasoning_is_open=is_open))
    for token in tokens if is_open else ["<think>", *tokens]:
        stream.push(token, 1)
    stream.finish()
    assert stream.n_reasoning_tokens == (4 if "x" in tokens else 3)


def test_reasoning_tokens_of_an_answer_that_was_cut_off() -> None:
    stream = MessageStream(AnswerForm(reasons=True, reasoning_is_open=True))
    for token in ("a", " b", "</thi"):
        stream.push(token, 1)
    stream.finish()
    assert stream.n_reasoning_tokens == 3
    answer = MessageStream(AnswerForm(reasons=True))
    assert [answer.push("plain", 1), answer.finish(), answer.n_reasoning_tokens][-1] == 0


@pytest.mark.parametrize(("text", "content"), [(" a b", "a b"), ("a", "a"), ("  a", " a"), (" ", None)])
def test_the_space_that_the_template_writes_is_dropped(text: str, content: str | None) -> None:
    stream = MessageStream(AnswerForm(leading_space=True))
    assert join([e for char in text for e in stream.push(char)] + stream.finish()).content == content


def test_usage_tells_reasoning_tokens(make_service: Callable) -> None:
    server = Server(make_service(cuts=["a", " b", "</think>", "yes"]), ServerSettings())
    server.form = AnswerForm(reasons=True, reasoning_is_open=True)

    async def ask() -> tuple[Any, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app_of(server)), base_url="http://test") as client:
            chat = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
            whole = (await client.post("/v1/chat/completions", json=chat)).json()
            item = (await client.post("/v1/responses", json={"model": "demo", "input": "x"})).json()
            return whole, item

    whole, item = asyncio.run(ask())
    assert whole["choices"][0]["message"]["reasoning_content"] == "a b"
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert item["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert whole["usage"]["completion_tokens"] == item["usage"]["output_tokens"] == 4


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


@settings(max_examples=25)
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
