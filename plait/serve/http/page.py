"""The page at `/`: a conversation, and the engine at work beside it. Plain files of `web/`, read once at import.

Nothing comes from elsewhere, and the policy sent with them makes browsers hold it to that: no inline scripts or styles,
no other hosts, no frames.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
_FILES = {file.name: file.read_bytes() for file in (Path(__file__).parent / "web").iterdir() if file.suffix in _TYPES}

PAGE = frozenset({"/", *(f"/web/{name}" for name in _FILES if name != "index.html")})
"""Paths of the page. They hold no secret and need no key."""


def page_routes() -> list[Route]:
    return [_route(path) for path in sorted(PAGE)]


def _route(path: str) -> Route:
    name = path.removeprefix("/web/") if path != "/" else "index.html"
    raw = _FILES[name]
    tag = f'"{hashlib.sha256(raw).hexdigest()[:16]}"'
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": _POLICY,
        "content-type": f"{_TYPES[Path(name).suffix]}; charset=utf-8",
        "etag": tag,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    async def file(request: Request) -> Response:
        known = re.findall(r'"[^"]*"', request.headers.get("if-none-match", ""))
        return Response(status_code=304, headers=headers) if tag in known else Response(raw, headers=headers)

    return Route(path, file, methods=["GET"])
