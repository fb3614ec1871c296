"""The application: routes to answers over a `Service`."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from plait.serve.http.chat import ChatAnswer
from plait.serve.http.chat_body import ChatBody
from plait.serve.http.completion_body import CompletionBody
from plait.serve.http.completions import CompletionAnswer
from plait.serve.http.endpoints import small_routes
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
)


def create_app(service: Service, settings: ServerSettings | None = None) -> ASGIApp:
    """The whole server as one ASGI application."""
    return app_of(Server(service, settings or ServerSettings()))


def app_of(server: Server) -> ASGIApp:
    """Starlette without FastAPI: bodies are read by `Server.read`, so FastAPI's own reading would be time spent
    for nothing, and the description comes from the same models either way (`openapi.describe`).
    """
    routes = [Route(path, _endpoint(server, kind, answer), methods=["POST"]) for path, kind, answer in _ANSWERS]
    described = json_response(to_json(describe(server.model_names, needs_key=server.keys is not None)))

    async def description(request: Request) -> Response:
        return described

    routes += [*small_routes(server), *page_routes(), Route("/openapi.json", description)]
    handlers = {ApiError: _api_error, HTTPException: _http_error, Exception: _fault}
    return Front(Starlette(routes=routes, exception_handlers=handlers), server)


def _endpoint(server: Server, kind: Any, answer: Any) -> Any:
    async def endpoint(request: Request) -> Response:
        body = await server.read(request, kind)
        server.admission.check()
        trace = trace_of(request)
        return Exchange(server, trace, answer(server, trace, body))

    endpoint.__name__ = answer.__name__
    return endpoint


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    made = Response(error.raw(), error.status)
    made.raw_headers = [*error.headers, (b"content-length", str(len(made.body)).encode())]
    return made


async def _fault(request: Request, error: Exception) -> Response:
    """For the client; the error itself is raised on, and `Front` logs it."""
    return await _api_error(request, internal_error(trace_of(request).request_id))


async def _http_error(request: Request, error: Exception) -> Response:
    """A path or method that there is not."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    said = {404: f"there is no {path}", 405: f"{path} does not take {method}"}.get(error.status_code, str(error.detail))
    made = await _api_error(request, ApiError(error.status_code, said, code="no_such_endpoint"))
    for name, value in (error.headers or {}).items():
        made.headers[name] = value
    return made
