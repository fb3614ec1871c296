"""The OpenAPI description, from the models that bodies are read with and that replies are tested with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from plait.serve.http import reply
from plait.serve.http.chat_body import ChatBody
from plait.serve.http.completion_body import CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from plait.serve.http.responses_body import ResponsesBody

_STREAMED = "With stream: true server-sent events, each a chunk of the same answer."
_POSTS: tuple[tuple[str, str, type[BaseModel], type[BaseModel], str], ...] = (
    ("/v1/chat/completions", "Answer a conversation", ChatBody, reply.ChatReply, _STREAMED),
    ("/v1/completions", "Continue text", CompletionBody, reply.CompletionReply, _STREAMED),
    ("/v1/responses", "Answer as items and typed events", ResponsesBody, reply.ResponsesReply, _STREAMED),
    ("/v1/embeddings", "Mean of the final hidden states", EmbeddingBody, reply.EmbeddingReply, ""),
    ("/tokenize", "Token ids of a prompt or a conversation", TokenizeBody, reply.TokenizeReply, ""),
    ("/detokenize", "Text of token ids", DetokenizeBody, reply.DetokenizeReply, ""),
)
_GETS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("/v1/models", "The models served", reply.ModelsReply),
    ("/v1/models/{model}", "One of them", reply.ModelReply),
    ("/health", "The process is alive", reply.StatusReply),
    ("/ready", "Requests are taken", reply.StatusReply),
    ("/stats", "The engine now: batch, pages, states, prefix tree", reply.StatsReply),
)
_ERRORS = {
    "400": "a field is wrong or not supported; param names it",
    "401": "the API key is missing or not known",
    "404": "there is no such model",
    "405": "the path does not take this method",
    "408": "the body or the answer took too long",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "429": "the queue is full; Retry-After says when to come back",
    "503": "the engine is not ready, or the server is shutting down",
}
_STREAMING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})


def describe(model_names: Sequence[str] = (), *, needs_key: bool = False) -> dict[str, Any]:
    """OpenAPI 3.1. With names, `model` of a request must be one of them."""
    bodies = [body for _, _, body, _, _ in _POSTS]
    replies = [found for _, _, _, found, _ in _POSTS] + [found for _, _, found in _GETS] + [reply.ErrorReply]
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies] + [(found, "serialization") for found in dict.fromkeys(replies)],
        ref_template="#/components/schemas/{model}",
    )
    for body in bodies:  # whoever reads this learns the name to send
        model = schemas["$defs"][body.__name__]["properties"]["model"]
        if model_names:
            (model["anyOf"][0] if "anyOf" in model else model)["enum"] = list(model_names)
    paths: dict[str, Any] = {row[0]: {"post": _post(*row)} for row in _POSTS}
    paths |= {path: {"get": _get(path, summary, found)} for path, summary, found in _GETS}
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
    if "{model}" in path:
        where = {"name": "model", "in": "path", "required": True}
        made["parameters"] = [where | {"schema": {"type": "string", "minLength": 1}}]
    return made


def _described(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    errors = {
        status: {"description": text, "content": {"application/json": _ref(reply.ErrorReply)}}
        for status, text in _ERRORS.items()
    }
    return {"summary": summary, "responses": {"200": {"description": "the answer", "content": content}, **errors}}
