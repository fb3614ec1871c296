"""The OpenAPI description, from the models that bodies are read with and that replies are tested with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from plait.serve.http import reply
from plait.serve.http.batch_body import BatchBody, BatchesQuery, FilesQuery
from plait.serve.http.chat_body import ChatBody
from plait.serve.http.completion_body import CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from plait.serve.http.responses_body import ResponsesBody

_KEPT = "Needs a server with --batch-dir."
_STREAMED = "With stream: true server-sent events, each a chunk of the same answer."
_POSTS: tuple[tuple[str, str, type[BaseModel], type[BaseModel], str], ...] = (
    ("/v1/chat/completions", "Answer a conversation", ChatBody, reply.ChatReply, _STREAMED),
    ("/v1/completions", "Continue text", CompletionBody, reply.CompletionReply, _STREAMED),
    ("/v1/responses", "Answer as items and typed events", ResponsesBody, reply.ResponsesReply, _STREAMED),
    ("/v1/embeddings", "Mean of the final hidden states", EmbeddingBody, reply.EmbeddingReply, ""),
    ("/tokenize", "Token ids of a prompt or a conversation", TokenizeBody, reply.TokenizeReply, ""),
    ("/detokenize", "Text of token ids", DetokenizeBody, reply.DetokenizeReply, ""),
    ("/v1/batches", "Have a file of requests answered", BatchBody, reply.BatchReply, _KEPT),
)
_GETS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("/v1/models", "The models served", reply.ModelsReply),
    ("/v1/models/{model}", "One of them", reply.ModelReply),
    ("/health", "The process is alive", reply.StatusReply),
    ("/ready", "Requests are taken", reply.StatusReply),
    ("/stats", "The engine now: batch, pages, states, prefix tree", reply.StatsReply),
    ("/v1/files", "The files kept", reply.FilesReply),
    ("/v1/files/{file_id}", "One of them", reply.FileReply),
    ("/v1/batches", "The batches kept, the newest first", reply.BatchesReply),
    ("/v1/batches/{batch_id}", "One of them", reply.BatchReply),
)
_QUERIES: dict[str, type[BaseModel]] = {"/v1/files": FilesQuery, "/v1/batches": BatchesQuery}
_FORM = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary", "minLength": 1, "description": "JSONL: a request a line."},
        "purpose": {"type": "string", "const": "batch"},
    },
    "required": ["file", "purpose"],
    "additionalProperties": False,
}
_ERRORS = {
    "400": "a field is wrong or not supported; param names it",
    "401": "the API key is missing or not known",
    "403": "a page of another site sent it",
    "404": "there is no such model, file or batch",
    "405": "the path does not take this method",
    "408": "the body or the answer took too long",
    "409": "the batch has ended already",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "429": "the queue is full; Retry-After says when to come back",
    "503": "the engine is not ready, or the server is shutting down",
}
_NAMES = re.compile(r"\{(\w+)\}")
_STREAMING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})


def describe(model_names: Sequence[str] = (), *, needs_key: bool = False) -> dict[str, Any]:
    """OpenAPI 3.1. With names, `model` of a request must be one of them."""
    bodies = [body for _, _, body, _, _ in _POSTS]
    replies = [found for _, _, _, found, _ in _POSTS] + [found for _, _, found in _GETS]
    replies += [reply.ErrorReply, reply.DeletedReply]
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies] + [(found, "serialization") for found in dict.fromkeys(replies)],
        ref_template="#/components/schemas/{model}",
    )
    for body in bodies:  # whoever reads this learns the name to send
        model = schemas["$defs"][body.__name__]["properties"].get("model")
        if model_names and model:
            (model["anyOf"][0] if "anyOf" in model else model)["enum"] = list(model_names)
    paths: dict[str, Any] = {row[0]: {"post": _post(*row)} for row in _POSTS}
    for path, summary, found in _GETS:
        paths.setdefault(path, {})["get"] = _get(path, summary, found)
    _add_files(paths)
    paths["/metrics"] = {"get": _described("Figures for Prometheus", {"text/plain": {"schema": {"type": "string"}}})}
    components: dict[str, Any] = {"schemas": schemas["$defs"]}
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "plait", "version": "1", "description": "An OpenAI-compatible server for hybrid models."},
        "paths": paths,
        "components": components,
    }
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
    return made


def _add_files(paths: dict[str, Any]) -> None:
    upload = _described("Leave a file of requests", {"application/json": _ref(reply.FileReply)})
    upload["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    paths["/v1/files"]["post"] = upload | {"description": _KEPT}
    where = paths["/v1/files/{file_id}"]["get"]["parameters"]
    deleted = _described("Delete a file", {"application/json": _ref(reply.DeletedReply)})
    paths["/v1/files/{file_id}"]["delete"] = deleted | {"parameters": where}
    raw = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    paths["/v1/files/{file_id}/content"] = {"get": _described("What is in a file", raw) | {"parameters": where}}
    where = paths["/v1/batches/{batch_id}"]["get"]["parameters"]
    stopped = _described("Stop a batch; what was answered is kept", {"application/json": _ref(reply.BatchReply)})
    paths["/v1/batches/{batch_id}/cancel"] = {"post": stopped | {"parameters": where}}


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}


def _post(path: str, summary: str, body: type[BaseModel], found: type[BaseModel], text: str) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": _ref(found)}
    if path in _STREAMING:
        event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    made = _described(summary, content)
    made["requestBody"] = {"required": True, "content": {"application/json": _ref(body)}}
    if text:
        made["description"] = text
    return made


def _get(path: str, summary: str, found: type[BaseModel]) -> dict[str, Any]:
    made = _described(summary, {"application/json": _ref(found)})
    parameters = [_parameter(name, "path", {"type": "string", "minLength": 1}) for name in _NAMES.findall(path)]
    if path in _QUERIES:
        fields = _QUERIES[path].model_json_schema()["properties"]
        parameters += [_parameter(name, "query", schema) for name, schema in fields.items()]
    if parameters:
        made["parameters"] = parameters
    return made


def _parameter(name: str, where: str, schema: dict[str, Any]) -> dict[str, Any]:
    """What is null in a body is left out of a query."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    plain = kinds[0] if kinds else {key: value for key, value in schema.items() if key != "title"}
    return {"name": name, "in": where, "required": where == "path", "schema": plain}


def _described(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    errors = {
        status: {"description": text, "content": {"application/json": _ref(reply.ErrorReply)}}
        for status, text in _ERRORS.items()
    }
    return {"summary": summary, "responses": {"200": {"description": "the answer", "content": content}, **errors}}
