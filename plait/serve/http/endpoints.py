"""The small endpoints: models, embeddings, tokens, health and metrics."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from collections.abc import AsyncGenerator
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from plait.serve.http.chat_request import chat_documents, chat_knobs, chat_messages, chat_tools
from plait.serve.http.completion_body import DetokenizeBody, EmbeddingBody, TokenizeBody
from plait.serve.http.errors import ApiError
from plait.serve.http.logprobs import token_bytes
from plait.serve.http.server import Server, json_response
from plait.serve.http.trace import Trace
from plait.serve.service import EngineError, EngineStats


class EmbeddingAnswer:
    """The mean of the model's final hidden states over a text's tokens. No model here is trained for that."""

    streams = False

    def __init__(self, server: Server, trace: Trace, body: EmbeddingBody) -> None:
        self.server, self.trace, self.body = server, trace, body

    async def whole(self) -> dict[str, Any]:
        given: Any = self.body.input
        texts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        as_base64 = self.body.encoding_format == "base64"
        data = []
        for index, text in enumerate(texts):
            ids = await self.server.encode(text) if isinstance(text, str) else text
            vector = await self._embed(ids)
            self.trace.prompt_tokens += len(ids)
            data.append({"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector})
        n_tokens = self.trace.prompt_tokens
        return {
            "object": "list",
            "data": data,
            "model": self.body.model,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    async def _embed(self, ids: list[int]) -> list[float]:
        try:
            return await self.server.service.embed(ids)
        except ValueError as error:
            raise ApiError(400, str(error), param="input") from error
        except EngineError as error:
            self.trace.outcome = "failed"
            raise ApiError(503, f"the engine failed: {error}", code="engine_failed", retry_after_s=2) from error

    def pieces(self) -> AsyncGenerator[bytes, None]:
        raise AssertionError("embeddings are not streamed")

    def failure(self, error: ApiError) -> bytes:
        raise AssertionError("embeddings are not streamed")


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def small_routes(server: Server) -> list[Route]:
    service, tokenizer = server.service, server.service.tokenizer
    began = int(time.time())

    def model_object(name: str) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": began, "owned_by": "plait", "max_model_len": service.max_context
        }  # fmt: skip

    async def models(request: Request) -> Response:
        return json_response(to_json({"object": "list", "data": [model_object(n) for n in server.model_names]}))

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        if name not in server.model_names:
            served = ", ".join(server.model_names)
            raise ApiError(404, f"this server has {served}, not {name}", param="model", code="model_not_found")
        return json_response(to_json(model_object(name)))

    async def tokenize(request: Request) -> Response:
        body = server.read(request.scope, TokenizeBody)
        ids = await _tokens_of(server, body)
        found: dict[str, Any] = {"count": len(ids), "max_model_len": service.max_context, "tokens": ids}
        if body.return_token_strs:
            found["token_strs"] = [token_bytes(tokenizer, i).decode("utf-8", "replace") for i in ids]
        return json_response(to_json(found))

    async def detokenize(request: Request) -> Response:
        body = server.read(request.scope, DetokenizeBody)
        unknown = [i for i in body.tokens if i >= tokenizer.vocab_size]
        if unknown:
            raise ApiError(400, f"token id {unknown[0]} is not below vocab_size={tokenizer.vocab_size}", param="tokens")
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, control_tokens=True)
        return json_response(to_json({"prompt": text}))

    async def health(request: Request) -> Response:
        return json_response(b'{"status":"ok"}')

    async def ready(request: Request) -> Response:
        if server.admission.is_draining or not await service.is_ready():
            raise ApiError(503, "not ready for requests", code="not_ready", retry_after_s=1)
        return json_response(b'{"status":"ready"}')

    async def metrics(request: Request) -> Response:
        stats = await _stats(server) or EngineStats()  # the counters of an engine that starts again begin at 0 anyway
        return Response(server.metrics.text(stats), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def stats(request: Request) -> Response:
        found = await _stats(server)
        if found is None:
            raise ApiError(503, "the engine is starting", code="not_ready", retry_after_s=1)
        admission = server.admission
        queue = {"running": admission.running, "waiting": admission.waiting, "max_running": admission.max_concurrent}
        return json_response(to_json({"model": server.model_names[0], "requests": queue, "engine": found}))

    table = (
        ("/v1/models", models, "GET"),
        ("/v1/models/{model:path}", model, "GET"),
        ("/tokenize", tokenize, "POST"),
        ("/detokenize", detokenize, "POST"),
        ("/health", health, "GET"),
        ("/ready", ready, "GET"),
        ("/metrics", metrics, "GET"),
        ("/stats", stats, "GET"),
    )
    return [Route(path, endpoint, methods=[method]) for path, endpoint, method in table]


async def _stats(server: Server) -> EngineStats | None:
    """The engine's figures; None while there is no engine, so that whoever watches is never made to wait for one."""
    try:
        return await server.service.stats() if await server.service.is_ready() else None
    except EngineError:
        return None


async def _tokens_of(server: Server, body: TokenizeBody) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give exactly one of prompt and messages", param="prompt")
    if body.prompt is not None:
        extras = [name for name in ("tools", "documents", "knobs") if getattr(body, name) is not None]
        if extras:
            raise ApiError(400, f"{extras[0]} go with messages, not with prompt", param=extras[0])
        return (await server.encode(body.prompt))[not body.add_special_tokens :]
    assert body.messages is not None
    try:
        return await asyncio.to_thread(
            server.service.chat_template.encode,
            server.service.tokenizer,
            chat_messages(body.messages),
            tools=chat_tools(body.tools),
            documents=chat_documents(body.documents),
            knobs=chat_knobs(body.knobs),
        )
    except ValueError as error:
        raise ApiError(400, str(error)) from error
