"""Every feature through the real client, over a socket."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pydantic
import pytest

MESSAGES: Any = [{"role": "user", "content": "x"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
    for name in ("f", "g")
]
TWO_CALLS = (
    ' <tool_calls>[\n{"name": "f", "arguments": {"a":  1}},\n{"name": "g", "arguments": {"a": 2}}\n]</tool_calls>'
)


@pytest.fixture(scope="module")
def running(make_service: Callable, start: Callable) -> Iterator[Any]:
    with start(make_service()) as live:
        yield live


@pytest.fixture
def service(running: Any) -> Iterator[Any]:
    """The one behind the server, silent about earlier tests."""
    service = running.service
    service.text, service.say, service.cuts, service.fails_after = "Hello there", None, None, None
    service.asked.clear()
    service.grammars.clear()
    return service


@pytest.fixture(scope="module")
def client(running: Any) -> Iterator[openai.OpenAI]:
    with running.client() as client:
        yield client


def test_chat(client: openai.OpenAI, service: Any) -> None:
    answer = client.chat.completions.create(model="demo", messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (12, 5, 17)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_chat_streamed_with_usage(client: openai.OpenAI, service: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 17


def test_the_clients_own_accumulator(client: openai.OpenAI, service: Any) -> None:
    service.text = " first" + TWO_CALLS
    with client.chat.completions.stream(model="demo", messages=MESSAGES, tools=TOOLS) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.content is not None
    assert message.content.startswith("first")
    assert message.tool_calls is not None
    assert [(c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("f", '{"a":  1}'),
        ("g", '{"a": 2}'),
    ]
    assert len({c.id for c in message.tool_calls}) == 2


def test_sampling_reaches_the_engine(client: openai.OpenAI, service: Any) -> None:
    client.chat.completions.create(
        model="demo", messages=MESSAGES, temperature=0.5, top_p=0.9, n=2, stop=["\n", "x"], seed=7,
        presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={"17": -3}, max_completion_tokens=9,
        logprobs=True, top_logprobs=2,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1, "stop_token_ids": [3]},
    )  # fmt: skip
    params = service.asked[-1].sampling
    assert (params.temperature, params.top_p, params.n, params.stop, params.seed) == (0.5, 0.9, 2, ("\n", "x"), 7)
    assert (params.presence_penalty, params.frequency_penalty, params.logit_bias) == (0.5, -0.5, {17: -3})
    assert (params.max_tokens, params.logprobs, params.top_k, params.min_p) == (9, 2, 5, 0.1)
    assert (params.repetition_penalty, params.min_tokens, params.stop_token_ids) == (1.1, 1, (3,))


def test_n_and_stop(client: openai.OpenAI, service: Any) -> None:
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, n=3, stop="o th")
    assert [c.message.content for c in answer.choices] == ["Hell"] * 3
    assert [c.index for c in answer.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="demo", messages=MESSAGES, n=3, stop="o th", stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["Hell"] * 3


def test_logprobs_spell_the_answer(client: openai.OpenAI, service: Any) -> None:
    service.text = "Hé€ 𝄞"
    ask: Any = {"model": "demo", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**ask).choices[0]
    assert whole.logprobs is not None
    tokens = whole.logprobs.content or []
    assert bytes(b for t in tokens for b in t.bytes or []).decode() == whole.message.content == "Hé€ 𝄞"
    assert all(len(t.top_logprobs) == 2 and t.top_logprobs[0].token == t.token for t in tokens)
    streamed = [
        t
        for chunk in client.chat.completions.create(**ask, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for t in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == tokens


def test_tools(client: openai.OpenAI, service: Any) -> None:
    service.text = TWO_CALLS
    choice = client.chat.completions.create(model="demo", messages=MESSAGES, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    assert [c.function.name for c in choice.message.tool_calls] == ["f", "g"]
    assert service.grammars[-1] is None
    shown = [tool["function"]["name"] for tool in service.asked[-1].tools]
    assert shown == ["f", "g"]
    # The next turn, results in the wrong order, with what the client made of our message.
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": call.function.name}
        for call in reversed(choice.message.tool_calls)
    ]
    again: Any = [*MESSAGES, choice.message.model_dump(), *results]
    client.chat.completions.create(model="demo", messages=again, tools=TOOLS)
    roles = [(m["role"], m["content"]) for m in service.asked[-1].messages]
    assert roles == [("user", "x"), ("assistant", None), ("tool", "f"), ("tool", "g")]
    assert service.asked[-1].messages[1]["tool_calls"][0]["function"]["arguments"] == '{"a":  1}'


def test_tool_choice(client: openai.OpenAI, service: Any) -> None:
    service.text = "no call"
    ask: Any = {"model": "demo", "messages": MESSAGES, "tools": TOOLS}
    client.chat.completions.create(**ask, tool_choice="required", parallel_tool_calls=False)
    assert "call_1" in service.grammars[-1].text
    assert '","' not in service.grammars[-1].text
    client.chat.completions.create(**ask, tool_choice={"type": "function", "function": {"name": "g"}})
    assert "call_1" not in service.grammars[-1].text
    assert '\\"g\\"' in service.grammars[-1].text
    service.text = TWO_CALLS
    answer = client.chat.completions.create(**ask, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    tag = service.tokenizer.control_ids["<tool_calls>"]
    assert service.asked[-1].sampling.logit_bias == {tag: -100}


def test_response_format(client: openai.OpenAI, service: Any) -> None:
    class Point(pydantic.BaseModel):
        x: int

    service.text = ' {"x": 3}'
    parsed = client.chat.completions.parse(model="demo", messages=MESSAGES, response_format=Point)
    assert parsed.choices[0].message.parsed == Point(x=3)
    assert '"x"' in service.grammars[-1].text
    assert service.asked[-1].knobs == {"is_set": True, "response_format": "json_object"}
    client.chat.completions.create(model="demo", messages=MESSAGES, response_format={"type": "json_object"})
    assert '"type": "object"}' in service.grammars[-1].text
    client.chat.completions.create(model="demo", messages=MESSAGES, response_format={"type": "text"})
    assert service.grammars[-1] is None


def test_documents_and_citations(client: openai.OpenAI, service: Any) -> None:
    service.text = " yes<citations>[1]</citations>"
    extra = {
        "documents": [{"text": "a", "title": "t"}, {"text": "b", "author": "me"}],
        "knobs": {"citation_mode": "fast"},
    }
    message = client.chat.completions.create(model="demo", messages=MESSAGES, extra_body=extra).choices[0].message
    assert message.content == "yes"
    assert message.model_extra == {"citations": [{"document_id": 1}]}
    assert service.asked[-1].documents[1] == {"text": "b", "author": "me"}
    assert service.asked[-1].knobs == {"is_set": True, "citation_mode": "fast"}


def test_completions(client: openai.OpenAI, service: Any) -> None:
    answer = client.completions.create(model="demo", prompt="It was", max_tokens=3)
    assert answer.choices[0].text == "Hello"
    assert answer.choices[0].finish_reason == "length"
    answer = client.completions.create(model="demo", prompt=["a", "b"], n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert {r.prompt for r in service.asked[-2:]} == {"a", "b"}
    client.completions.create(model="demo", prompt=[[5, 6], [7]])
    assert {tuple(r.token_ids) for r in service.asked[-2:]} == {(5, 6), (7,)}
    client.completions.create(model="demo", prompt=[5, 6])
    assert service.asked[-1].token_ids == [5, 6]
    texts = ["", ""]
    for chunk in client.completions.create(model="demo", prompt=["a", "b"], echo=True, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["aHello there", "bHello there"]


@pytest.mark.parametrize("prompt", ["It wäs € true", [1, 354, 400, 500]])
def test_echo_with_prompt_logprobs(client: openai.OpenAI, service: Any, prompt: Any) -> None:
    ask: Any = {"model": "demo", "prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 1}
    choice = client.completions.create(**ask).choices[0]
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.text_offset is not None
    assert found.token_logprobs is not None
    n_prompt = len(service.asked[-1].token_ids)
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == n_prompt + 1
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1:] == [-0.5] * n_prompt
    assert choice.text == (prompt if isinstance(prompt, str) else service.tokenizer.decode(prompt)) + "H"
    assert choice.text[found.text_offset[-1] :] == "H"
    scored = client.completions.create(**(ask | {"max_tokens": 0})).choices[0]
    assert scored.logprobs is not None
    assert scored.logprobs.tokens == found.tokens[:-1]
    assert scored.finish_reason == "length"
    pieces = [c.choices[0] for c in client.completions.create(**ask, stream=True)]
    assert "".join(p.text for p in pieces) == choice.text
    assert [t for p in pieces if p.logprobs for t in p.logprobs.tokens or []] == found.tokens


def test_responses(client: openai.OpenAI, service: Any) -> None:
    service.text = " hi" + TWO_CALLS.lstrip()
    flat: Any = [{"type": "function", "strict": False, **t["function"]} for t in TOOLS]
    answer = client.responses.create(model="demo", input="x", instructions="be brief", tools=flat)
    assert answer.output_text == "hi"
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [c.arguments for c in calls] == ['{"a":  1}', '{"a": 2}']
    outputs: Any = [{"type": "function_call_output", "call_id": c.call_id, "output": "7"} for c in calls]
    service.text = " done"
    again: Any = [{"role": "user", "content": "x"}, *answer.output, *outputs]
    final = client.responses.create(model="demo", input=again, tools=flat)
    assert final.output_text == "done"
    messages = service.asked[-1].messages
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["content"] == "hi"
    assert len(messages[1]["tool_calls"]) == 2
    service.text = " streamed" + TWO_CALLS.lstrip()
    with client.responses.stream(model="demo", input="x", tools=flat) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == "streamed"


def test_responses_cut_off(client: openai.OpenAI, service: Any) -> None:
    answer = client.responses.create(model="demo", input="x", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_embeddings_and_models(client: openai.OpenAI, service: Any) -> None:
    for form in ({}, {"encoding_format": "float"}):
        found = client.embeddings.create(model="demo", input=["a", "b"], **form)  # type: ignore[arg-type]
        assert [e.embedding for e in found.data] == [[1.0, -0.5, 2.0]] * 2
    assert client.embeddings.create(model="demo", input=[4, 5, 6]).data[0].embedding[2] == 3.0
    assert [m.id for m in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"store": True}, "store", "invalid_value"),
        ({"extra_body": {"foo": 1}}, "foo", "unknown_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"logit_bias": {"99999": 1}}, None, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages.0.content.0.type", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages.0.tool_call_id", None),
    ],
)  # fmt: skip
def test_refused_by_name(
    client: openai.OpenAI, service: Any, fields: dict[str, Any], param: str | None, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**({"model": "demo", "messages": MESSAGES} | fields))
    assert caught.value.param == param
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**({"model": "demo", "messages": MESSAGES, "stream": True} | fields))


def test_stream_options_without_a_stream(client: openai.OpenAI, service: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="needs stream: true"):
        client.chat.completions.create(
            model="demo", messages=MESSAGES, extra_body={"stream_options": {"include_usage": True}}
        )


def test_another_model(client: openai.OpenAI, service: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has demo"):
        client.chat.completions.create(model="gpt", messages=MESSAGES)


def test_a_prompt_that_is_too_long(client: openai.OpenAI, service: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 511 fit"):
        client.completions.create(model="demo", prompt=[5] * 600, stream=True)


def test_an_engine_that_fails(client: openai.OpenAI, service: Any) -> None:
    service.fails_after = 0
    with pytest.raises(openai.InternalServerError, match="the engine process died") as caught:
        client.chat.completions.create(model="demo", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "2"
    service.fails_after = 2
    with pytest.raises(openai.APIError, match="the engine process died"):
        list(client.chat.completions.create(model="demo", messages=MESSAGES, stream=True))


def test_the_request_id_is_told(client: openai.OpenAI, service: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=MESSAGES, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert json.loads(raw.content)["id"] == "chatcmpl-mine-1"


def test_the_async_client(running: Any, service: Any) -> None:
    service.text = "one two three"

    async def ask() -> tuple[str, list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            ask: Any = {"model": "demo", "messages": MESSAGES}
            whole = await client.chat.completions.create(**ask)
            stream = await client.chat.completions.create(**ask, stream=True)
            return whole.choices[0].message.content or "", [c.choices[0].delta.content or "" async for c in stream]

    whole, pieces = asyncio.run(ask())
    assert whole == "".join(pieces) == "one two three"
    assert len(pieces) > 3


def test_parsed_responses(client: openai.OpenAI, service: Any) -> None:
    class Point(pydantic.BaseModel):
        x: int

    service.text = ' {"x": 3}'
    answer = client.responses.parse(model="demo", input="x", text_format=Point)
    assert answer.output_parsed == Point(x=3)
    assert '"x"' in service.grammars[-1].text
    with client.chat.completions.stream(model="demo", messages=MESSAGES, response_format=Point) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.parsed == Point(x=3)


def test_raw_lines(client: openai.OpenAI, service: Any) -> None:
    ask: Any = {"model": "demo", "messages": MESSAGES, "stream": True}
    with client.chat.completions.with_streaming_response.create(**ask) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_retries_are_the_clients_own(running: Any, service: Any) -> None:
    """It comes back by itself, after the time that Retry-After says, to an engine that is there again."""
    service.fails_after = 0
    with running.client(max_retries=1) as client:
        restored = threading.Timer(0.5, setattr, (service, "fails_after", None))
        restored.start()
        answer = client.chat.completions.create(model="demo", messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello there"
    assert len(service.asked) == 2


def test_citations_without_tools_leave_calls_alone(client: openai.OpenAI, service: Any) -> None:
    service.text = TWO_CALLS + "<citations>[0]</citations>"
    extra = {"documents": [{"text": "a"}], "knobs": {"citation_mode": "fast"}}
    choice = client.chat.completions.create(model="demo", messages=MESSAGES, extra_body=extra).choices[0]
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert choice.message.content == TWO_CALLS.lstrip()
    assert choice.message.model_extra == {"citations": [{"document_id": 0}]}
