"""The application: routes to answers over a `Service`."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from plait.serve.http.batch_routes import batch_routes
from plait.serve.http.chat import ChatAnswer
from plait.serve.http.chat_body import ChatBody
from plait.serve.http.completion_body import CompletionBody, EmbeddingBody
from plait.serve.http.completions import CompletionAnswer
from plait.serve.http.endpoints import EmbeddingAnswer, small_routes
from plait.serve.http.errors import ApiError, internal_error
from plait.serve.http.exchange import Exchange
from plait.serve.http.front import Front
from plait.serve.http.openapi import describe
from plait.serve.http.page import page_routes
from plait.serve.http.responses import ResponsesAnswer
from plait.serve.http.responses_body import ResponsesBody
from plait.serve.http.server import Server, json_response, trace_of
from plait.serve.http.settings import ServerSettings
from plait.serve.service import Service

_ANSWERS: tuple[tuple[str, Any, Any], ...] = (
    ("/v1/chat/completions", ChatBody, ChatAnswer),
    ("/v1/completions", CompletionBody, CompletionAnswer),
    ("/v1/responses", ResponsesBody, ResponsesAnswer),
    ("/v1/embeddings", EmbeddingBody, EmbeddingAnswer),
)


def create_app(service: Service, settings: ServerSettings | None = None) -> ASGIApp:
    """The whole server as one ASGI application."""
    return app_of(Server(service, settings or ServerSettings()))


def app_of(server: Server) -> ASGIApp:
    """Starlette without FastAPI: bodies are read by `Server.read`, so FastAPI's own reading would be time spent
    for nothing, and the description comes from the same models either way (`openapi.describe`).
    """
    answers = {path: _Answering(server, kind, answer) for path, kind, answer in _ANSWERS}
    routes = [Route(path, app, methods=["POST"]) for path, app in answers.items()]  # for what other methods are told

    @cache
    def described() -> bytes:
        return to_json(describe(server.model_names, needs_key=server.keys is not None))

    async def description(request: Request) -> Response:
        return json_response(described())

    routes += [*small_routes(server), *batch_routes(server), *page_routes(), Route("/openapi.json", description)]
    handlers = {ApiError: _api_error, HTTPException: _http_error, Exception: _fault}
    front = Front(Starlette(routes=routes, exception_handlers=handlers), server, answers)
    if server.jobs is not None:
        server.jobs.app = front
    return front


class _Answering:
    """One endpoint as an application of its own."""

    def __init__(self, server: Server, kind: Any, answer: Any) -> None:
        self.server, self.kind, self.answer = server, kind, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self.server.read(scope, self.kind)
        self.server.admission.check()
        trace = trace_of(scope)
        await Exchange(self.server, trace, self.answer(self.server, trace, body)).run(receive, send)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    made = Response(error.raw(), error.status)
    made.raw_headers = [*error.headers, (b"content-length", str(len(made.body)).encode())]
    return made


async def _fault(request: Request, error: Exception) -> Response:
    """For the client; the error itself is raised on, and `Front` logs it."""
    return await _api_error(request, internal_error(trace_of(request.scope).request_id))


async def _http_error(request: Request, error: Exception) -> Response:
    """A path or method that there is not."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    said = {404: f"there is no {path}", 405: f"{path} does not take {method}"}.get(error.status_code, str(error.detail))
    made = await _api_error(request, ApiError(error.status_code, said, code="no_such_endpoint"))
    if error.status_code == 405:  # Starlette names the methods of one route, and a path may have several
        here = [route for route in request.app.routes if route.path_regex.match(path)]
        made.headers["allow"] = ", ".join(sorted({name for route in here for name in route.methods}))
    return made
