"""The bodies and queries of /v1/files and /v1/batches."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plait.serve.http.body import Body

FileId = Annotated[str, Field(min_length=1, max_length=64)]


class FilesQuery(Body):
    after: FileId | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None


class BatchesQuery(Body):
    after: FileId | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class BatchBody(Body):
    """`completion_window` is as OpenAI has it; a batch takes what time it needs and doesn't expire."""

    not_supported: ClassVar = frozenset({"output_expires_after"})
    input_file_id: FileId = Field(description="Of a file with purpose `batch`.")
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
