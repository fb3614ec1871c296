"""/v1/files and /v1/batches: a file of requests is left here, and its answers are fetched when they are there.

They need a folder (`--batch-dir`); without one they say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from plait.serve.http.batch_body import BatchBody, BatchesQuery, FilesQuery
from plait.serve.http.batch_jobs import BatchJobs, Job
from plait.serve.http.body import read_query
from plait.serve.http.errors import ApiError
from plait.serve.http.multipart import read_form
from plait.serve.http.server import Server, json_response, trace_of
from plait.serve.http.stored_files import FileStore, StoredFile

T = TypeVar("T", StoredFile, Job)


def batch_routes(server: Server) -> list[Route]:
    async def upload(request: Request) -> Response:
        files, _ = _kept(server)
        data, filename, purpose = _uploaded(request)
        made = await asyncio.to_thread(files.add, data, filename, purpose, _owner(request))
        return json_response(to_json(made.shown()))

    async def list_files(request: Request) -> Response:
        files, _ = _kept(server)
        query = read_query(FilesQuery, request.query_params)
        found = await asyncio.to_thread(files.all, _owner(request))
        found = [file for file in found if query.purpose in (None, file.purpose)]
        return _page(found if query.order == "desc" else found[::-1], query.after, query.limit)

    async def file(request: Request) -> Response:
        return json_response(to_json(_file(server, request).shown()))

    async def content(request: Request) -> Response:
        found = _file(server, request)
        files, _ = _kept(server)
        return Response(await asyncio.to_thread(files.data, found), media_type="application/octet-stream")

    async def delete(request: Request) -> Response:
        found = _file(server, request)
        files, _ = _kept(server)
        files.delete(found)
        return json_response(to_json({"id": found.id, "object": "file", "deleted": True}))

    async def create(request: Request) -> Response:
        files, jobs = _kept(server)
        body = server.read(request.scope, BatchBody)
        given = files.get(body.input_file_id, _owner(request))
        if given is None or given.purpose != "batch":
            said = f"there is no file {body.input_file_id} with purpose batch"
            raise ApiError(400, said, param="input_file_id", code="invalid_value")
        server.admission.check()
        return json_response(to_json(jobs.create(given, body.endpoint, body.metadata, _owner(request)).shown()))

    async def list_batches(request: Request) -> Response:
        _, jobs = _kept(server)
        query = read_query(BatchesQuery, request.query_params)
        return _page(jobs.all(_owner(request)), query.after, query.limit)

    async def batch(request: Request) -> Response:
        return json_response(to_json(_batch(server, request).shown()))

    async def cancel(request: Request) -> Response:
        found = _batch(server, request)
        _, jobs = _kept(server)
        if not jobs.cancel(found):
            raise ApiError(409, f"the batch is {found.status} already", code="batch_has_ended")
        return json_response(to_json(found.shown()))

    table: tuple[tuple[str, Callable[[Request], Any], str], ...] = (
        ("/v1/files", upload, "POST"),
        ("/v1/files", list_files, "GET"),
        ("/v1/files/{file_id}", file, "GET"),
        ("/v1/files/{file_id}", delete, "DELETE"),
        ("/v1/files/{file_id}/content", content, "GET"),
        ("/v1/batches", create, "POST"),
        ("/v1/batches", list_batches, "GET"),
        ("/v1/batches/{batch_id}", batch, "GET"),
        ("/v1/batches/{batch_id}/cancel", cancel, "POST"),
    )
    return [Route(path, endpoint, methods=[method]) for path, endpoint, method in table]


def _kept(server: Server) -> tuple[FileStore, BatchJobs]:
    if server.files is None or server.jobs is None:
        said = "this server keeps no files: start it with --batch-dir DIR, or answer the file with `plait batch`"
        raise ApiError(404, said, code="no_batch_folder")
    return server.files, server.jobs


def _owner(request: Request) -> str | None:
    return trace_of(request.scope).key


def _file(server: Server, request: Request) -> StoredFile:
    files, _ = _kept(server)
    file_id = request.path_params["file_id"]
    found = files.get(file_id, _owner(request))
    if found is None:
        raise ApiError(404, f"there is no file {file_id}", param="file_id", code="no_such_file")
    return found


def _batch(server: Server, request: Request) -> Job:
    _, jobs = _kept(server)
    batch_id = request.path_params["batch_id"]
    found = jobs.get(batch_id, _owner(request))
    if found is None:
        raise ApiError(404, f"there is no batch {batch_id}", param="batch_id", code="no_such_batch")
    return found


def _page(found: Sequence[T], after: str | None, limit: int) -> Response:
    """At most `limit` of them, behind the one called `after`."""
    ids = [item.id for item in found]
    if after is not None and after not in ids:
        raise ApiError(400, f"there is no {after} to go on behind", param="after", code="invalid_value")
    rest = found[ids.index(after) + 1 :] if after is not None else found
    shown = [item.shown() for item in rest[:limit]]
    made: dict[str, Any] = {"object": "list", "data": shown, "has_more": len(rest) > limit}
    made["first_id"], made["last_id"] = (shown[0]["id"], shown[-1]["id"]) if shown else ("", "")
    return json_response(to_json(made))


def _uploaded(request: Request) -> tuple[bytes, str, str]:
    """Data, name and purpose of the file in a form."""
    _refuse_other_sites(request)
    headers, raw = request.scope["state"]["headers"], request.scope["state"]["body"]
    parts = {part.name: part for part in read_form(headers.get(b"content-type", b""), raw)}
    unknown = [name for name in parts if name not in ("file", "purpose")]
    if unknown:
        code = "unsupported_parameter" if unknown[0].startswith("expires_after") else "unknown_parameter"
        raise ApiError(400, f"{unknown[0]} is not supported by this server: leave it out", param=unknown[0], code=code)
    for name in ("file", "purpose"):
        if name not in parts:
            raise ApiError(400, f"{name}: Field required", param=name, code="missing_field")
    purpose = parts["purpose"].data.decode("utf-8", "replace")
    if purpose != "batch":
        raise ApiError(400, f"purpose={purpose} must be batch", param="purpose", code="invalid_value")
    if not parts["file"].data:
        raise ApiError(400, "the file is empty", param="file", code="invalid_value")
    return parts["file"].data, parts["file"].filename or "file", purpose


def _refuse_other_sites(request: Request) -> None:
    """Browsers send forms to other sites without asking them first; JSON they don't."""
    origin, host = request.headers.get("origin"), request.headers.get("host")
    if origin is not None and urlsplit(origin).netloc != host:
        raise ApiError(403, f"pages of {origin} may not leave files here", code="other_site")
