"""What every request passes first: an id, the key, the limits on its body; and the log when it ends. Plain ASGI."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plait.serve.http.errors import ApiError, internal_error, send_error
from plait.serve.http.logs import logger
from plait.serve.http.page import PAGE
from plait.serve.http.server import Server
from plait.serve.http.trace import Trace

OPEN_PATHS = frozenset({"/health", "/ready", *PAGE})  # the page asks for the key itself
_QUIET_PATHS = frozenset({"/health", "/ready", "/metrics", "/stats", *PAGE})
_PATHS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models", "/v1/files",
     "/v1/batches", "/tokenize", "/detokenize", "/health", "/ready", "/metrics", "/stats", "/openapi.json", "/"}
)  # fmt: skip
_IDS = random.Random()  # ids are no secrets
_GOOD_ID = re.compile(r"[A-Za-z0-9._\-]{1,128}")


class ClientLeft(Exception):
    """The client closed the connection before its request was whole."""


class Front:
    """`answers` are the applications behind POST paths that have no parameters: these need no routing."""

    def __init__(self, app: ASGIApp, server: Server, answers: Mapping[str, ASGIApp]) -> None:
        self.app, self.server, self.answers = app, server, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        trace = Trace(_request_id(headers), scope["method"], scope["path"], (scope["client"] or (None,))[0])
        state = scope.setdefault("state", {})
        state["trace"], state["headers"] = trace, headers
        id_header = (b"x-request-id", trace.request_id.encode())

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                message["headers"] = [*message["headers"], id_header]
            await send(message)

        try:
            self._authorize(scope, headers, trace)
            state["body"] = await self._body(trace.path, headers, receive)
            app = self.answers.get(trace.path, self.app) if trace.method == "POST" else self.app
            await app(scope, receive, send_noted)
        except ClientLeft:
            trace.outcome = "disconnected"
        except Exception as error:
            if not isinstance(error, ApiError):
                trace.outcome = "failed"
                logger.exception("request failed", extra={"request_id": trace.request_id})
                error = internal_error(trace.request_id)
            if trace.status == 0:
                await send_error(send_noted, error)
        finally:
            self._note(trace)

    def _authorize(self, scope: Scope, headers: dict[bytes, bytes], trace: Trace) -> None:
        if "plait.key" in scope:  # from inside this process: a line of a batch
            trace.key = scope["plait.key"]
            return
        if self.server.keys is None or trace.path in OPEN_PATHS:
            return
        given = headers.get(b"authorization")
        trace.key = self.server.keys.holder(given.decode("latin-1") if given else None)
        if trace.key is None:
            said = "the API key is not known" if given else "give an API key: Authorization: Bearer KEY"
            raise ApiError(401, said, code="invalid_api_key", close=True)

    async def _body(self, path: str, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, within its limits."""
        length = headers.get(b"content-length", b"")
        if not length and b"transfer-encoding" not in headers:
            return b""
        settings = self.server.settings
        limit = settings.max_file_bytes if path == "/v1/files" else settings.max_body_bytes
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        pieces, n_bytes = [], 0
        try:
            async with asyncio.timeout(settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    pieces.append(message.get("body", b""))
                    n_bytes += len(pieces[-1])
                    if n_bytes > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError as error:
            said = f"the body did not arrive within {settings.body_timeout_s:g} s"
            raise ApiError(408, said, code="body_timeout", close=True) from error

    def _note(self, trace: Trace) -> None:
        path = next((kept for kept in ("/v1/files", "/v1/batches") if trace.path.startswith(kept)), trace.path)
        self.server.metrics.note(trace, path if path in _PATHS else "other")
        if trace.path not in _QUIET_PATHS or trace.status >= 400:
            logger.info("request", extra=trace.log_fields())


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The client's own id if it is a plain word, so that logs on both sides can be compared."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _GOOD_ID.fullmatch(given) else f"{_IDS.getrandbits(96):024x}"


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit:,} bytes", code="body_too_large", close=True)
