"""What the server returns fits OpenAI's own description of its API (openai_schema.json has where it is from)."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from plait.serve.http import reply

SCHEMA = json.loads((Path(__file__).parent / "openai_schema.json").read_text())
MESSAGES = [{"role": "user", "content": "x"}]
CALL = ' ok <tool_calls>[{"name": "f", "arguments": {"a": 1}}]</tool_calls>'
TOOL: dict[str, Any] = {"name": "f", "description": "adds", "parameters": {"type": "object"}}
EVENTS = {
    "created": "Created", "in_progress": "InProgress", "completed": "Completed", "incomplete": "Incomplete",
    "failed": "Failed", "output_item.added": "OutputItemAdded", "output_item.done": "OutputItemDone",
    "content_part.added": "ContentPartAdded", "content_part.done": "ContentPartDone",
    "output_text.delta": "TextDelta", "output_text.done": "TextDone", "reasoning_text.delta": "ReasoningTextDelta",
    "reasoning_text.done": "ReasoningTextDone", "function_call_arguments.delta": "FunctionCallArgumentsDelta",
    "function_call_arguments.done": "FunctionCallArgumentsDone",
}  # fmt: skip


@cache
def validator(name: str) -> Any:
    assert name in SCHEMA["components"]["schemas"]
    return jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/components/schemas/{name}"})


def check(value: Any, name: str) -> None:
    validator(name).validate(value)


def check_ours(value: Any, model: type[BaseModel]) -> None:
    model.model_validate(value)


def frames(text: str) -> list[Any]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(item) for item in data if item != "[DONE]"]


CHATS: list[dict[str, Any]] = [
    {},
    {"n": 2, "max_tokens": 2},
    {"logprobs": True, "top_logprobs": 3},
    {"tools": [{"type": "function", "function": TOOL}]},
    {"knobs": {"citation_mode": "fast"}, "documents": [{"text": "a"}]},
    {"stop": "l", "seed": 3, "service_tier": "auto"},
]
TEXTS = ["Hello", CALL, " <citations>[0]</citations>", "", "é€𝄞"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("fields", CHATS)
def test_chat(call: Callable, make_service: Callable, fields: dict[str, Any], text: str) -> None:
    body = {"model": "demo", "messages": MESSAGES, **fields}
    service = make_service(text=text)
    answer = call(service, "/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    check(answer.json(), "CreateChatCompletionResponse")
    check_ours(answer.json(), reply.ChatReply)
    stream = call(service, "/v1/chat/completions", body | {"stream": True, "stream_options": {"include_usage": True}})
    chunks = frames(stream.text)
    assert len(chunks) >= 3
    for chunk in chunks:
        check(
            chunk if chunk["usage"] else {k: v for k, v in chunk.items() if k != "usage"},
            "CreateChatCompletionStreamResponse",
        )
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == answer.json()["usage"]


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 2}, {"logprobs": 2}, {"echo": True}, {"prompt": [[5, 6], [7]]}, {"prompt": [5, 6], "logprobs": 0}],
)
def test_completions(call: Callable, make_service: Callable, fields: dict[str, Any]) -> None:
    body = {"model": "demo", "prompt": "It was", **fields}
    answer = call(make_service(), "/v1/completions", body)
    check(answer.json(), "CreateCompletionResponse")
    check_ours(answer.json(), reply.CompletionReply)
    for chunk in frames(call(make_service(), "/v1/completions", body | {"stream": True}).text):
        if all(choice["finish_reason"] for choice in chunk["choices"]):  # their stream has null before; so has ours
            check(chunk, "CreateCompletionResponse")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_output_tokens": 2},
        {"instructions": "be brief", "metadata": {"a": "b"}, "user": "me"},
        {"tools": [{"type": "function", **TOOL}], "tool_choice": {"type": "function", "name": "f"}},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        {"text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}}},
    ],
)
def test_responses(call: Callable, make_service: Callable, fields: dict[str, Any], text: str) -> None:
    body = {"model": "demo", "input": "x", **fields}
    service = make_service(text=text)
    answer = call(service, "/v1/responses", body)
    assert answer.status_code == 200, answer.text
    check(answer.json(), "Response")
    check_ours(answer.json(), reply.ResponsesReply)
    events = frames(call(service, "/v1/responses", body | {"stream": True}).text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        check(event, f"Response{EVENTS[event['type'].removeprefix('response.')]}Event")
    last = events[-1]["response"]
    assert without_ids(last) == without_ids(answer.json())


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("id", "call_id", "created_at")}
    return [without_ids(v) for v in value] if isinstance(value, list) else value


def test_a_failing_response_ends_its_stream_with_typed_events(call: Callable, make_service: Callable) -> None:
    service = make_service(fails_after=2)
    events = frames(call(service, "/v1/responses", {"model": "demo", "input": "x", "stream": True}).text)
    check(events[-2], "ResponseErrorEvent")
    check(events[-1], "ResponseFailedEvent")
    assert "the engine process died" in events[-1]["response"]["error"]["message"]


def test_files_and_batches(make_service: Callable, start: Callable, tmp_path: Path) -> None:
    good = {"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "demo", "input": "x"}}
    text = "".join(json.dumps(line) + "\n" for line in (good, good | {"custom_id": "b", "body": {}}))
    with start(make_service(), batch_folder=tmp_path) as live, live.http() as client:
        for raw, end in ((text, "completed"), ("{", "failed")):
            file = client.post("/v1/files", files={"file": ("in", raw)}, data={"purpose": "batch"}).json()
            check(file, "OpenAIFile")
            asked = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
            batch = client.post("/v1/batches", json=asked | {"metadata": {"a": "b"}}).json()
            while True:
                check(batch, "Batch")
                check_ours(batch, reply.BatchReply)
                if batch["status"] == end:
                    break
                batch = client.get(f"/v1/batches/{batch['id']}").json()
        check_ours(client.get("/v1/files").json(), reply.FilesReply)
        check(client.get("/v1/files").json(), "ListFilesResponse")
        check(client.get("/v1/batches").json(), "ListBatchesResponse")
        check(client.get("/v1/batches?limit=1&after=" + batch["id"]).json(), "ListBatchesResponse")
        check(client.delete(f"/v1/files/{file['id']}").json(), "DeleteFileResponse")


def test_the_rest(call: Callable, make_service: Callable) -> None:
    service = make_service()
    for form in ("float", "base64"):
        body = {"model": "demo", "input": ["a", "b"], "encoding_format": form}
        found = call(service, "/v1/embeddings", body).json()
        check_ours(found, reply.EmbeddingReply)
        if form == "float":
            check(found, "CreateEmbeddingResponse")
    check(call(service, "/v1/models").json(), "ListModelsResponse")
    check(call(service, "/v1/models/demo").json(), "Model")
    for path, body in (("/v1/models/other", None), ("/nowhere", None), ("/v1/completions", {})):
        refused = call(service, path, body)
        assert refused.status_code in (400, 404)
        check(refused.json(), "ErrorResponse")
        check_ours(refused.json(), reply.ErrorReply)
