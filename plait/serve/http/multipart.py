"""multipart/form-data, as clients send files (RFC 7578)."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message

from plait.serve.http.errors import ApiError


@dataclass(frozen=True)
class Part:
    name: str
    data: bytes
    filename: str | None = None


def read_form(content_type: bytes, raw: bytes) -> list[Part]:
    """The parts of a body. Raises ApiError 415 for another type, 400 for a body that is not of its type."""
    boundary = _header("Content-Type", content_type, "multipart/form-data").get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        said = "the body must be sent as Content-Type: multipart/form-data with a boundary"
        raise ApiError(415, said, code="not_a_form")
    pieces = (b"\r\n" + raw).split(b"\r\n--" + boundary.encode("latin-1", "replace"))
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise ApiError(400, "the form has no end: its last boundary is missing", code="invalid_form")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    head, found, data = piece.lstrip(b" \t").removeprefix(b"\r\n").partition(b"\r\n\r\n")
    for line in head.split(b"\r\n") if found else ():
        field, _, value = line.partition(b":")
        if field.strip().lower() == b"content-disposition":
            header = _header("Content-Disposition", value, "form-data")
            name = header.get_param("name", header="content-disposition")
            filename = header.get_param("filename", header="content-disposition")
            if isinstance(name, str):
                return Part(name, data, filename if isinstance(filename, str) else None)
    raise ApiError(400, "a part of the form has no name", code="invalid_form")


def _header(name: str, value: bytes, kind: str) -> Message:
    """The header's parameters; none if it is not of this kind."""
    made = Message()
    text = value.decode("utf-8", "replace").strip()
    made[name] = text if text.partition(";")[0].strip().lower() == kind else "other/other"
    return made
