"""What goes wrong, in the form of OpenAI's error body."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.types import Send

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer with an error status. `retry_after_s` becomes the Retry-After header."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        close: bool = False,
    ) -> None:
        """`close`: the connection can't be used again, because part of the request was not read."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s, self.close = retry_after_s, close

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        found = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        if self.close:
            found.append((b"connection", b"close"))
        return found

    def raw(self) -> bytes:
        return to_json(self.body)


async def send_error(send: Send, error: ApiError) -> None:
    raw = error.raw()
    headers: list[Any] = [*error.headers, (b"content-length", b"%d" % len(raw))]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def internal_error(request_id: str) -> ApiError:
    """For faults of ours: the cause stays in the log."""
    return ApiError(
        500, f"the server failed on this request; its log has the cause under {request_id}", code="internal"
    )
