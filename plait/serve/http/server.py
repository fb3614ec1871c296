"""What the endpoints share: the engine, the settings, the queue, the figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Scope

from plait.serve.http.admission import Admission
from plait.serve.http.api_keys import ApiKeys
from plait.serve.http.batch_jobs import BatchJobs
from plait.serve.http.body import Body, read_body
from plait.serve.http.chat_request import Asked
from plait.serve.http.errors import ApiError
from plait.serve.http.form import AnswerForm
from plait.serve.http.logs import logger
from plait.serve.http.metrics import Metrics
from plait.serve.http.settings import ServerSettings
from plait.serve.http.stored_files import FileStore
from plait.serve.http.trace import Trace
from plait.serve.service import Delta, EngineError, Service

B = TypeVar("B", bound=Body)


class Server:
    def __init__(self, service: Service, settings: ServerSettings) -> None:
        self.service, self.settings = service, settings
        self.model_names = settings.model_names or (service.name,)
        self.form = AnswerForm.of(service.chat_template, service.tokenizer)
        self.keys = ApiKeys(settings.api_keys, settings.api_key_file) if settings.needs_key else None
        self.admission = Admission(max_concurrent=settings.max_concurrent, max_queued=settings.max_queued)
        self.metrics = Metrics(self.model_names[0], self.admission)
        self.files: FileStore | None = None
        self.jobs: BatchJobs | None = None
        if settings.batch_folder is not None:
            self.files = FileStore(settings.batch_folder / "files")
            n_parallel = max(1, settings.max_concurrent // 2)  # half of the places stay for those who wait
            self.jobs = BatchJobs(settings.batch_folder / "batches", self.files, n_parallel=n_parallel)

    @property
    def max_tokens(self) -> int:
        """Of an answer whose request sets no limit; the engine cuts it to what the context has room for."""
        return self.settings.max_tokens or self.service.max_context

    def read(self, scope: Scope, kind: type[B]) -> B:
        """The body that `Front` has read, checked; ApiError if it isn't right, isn't JSON, or names another model."""
        content_type = scope["state"]["headers"].get(b"content-type", b"")
        if content_type.partition(b";")[0].strip().lower() != b"application/json":
            raise ApiError(415, "the body must be sent as Content-Type: application/json", code="not_json")
        raw: bytes = scope["state"]["body"]
        body = read_body(kind, raw, lenient=self.settings.lenient)
        model = getattr(body, "model", None)
        if model is not None and model not in self.model_names:
            served = ", ".join(self.model_names)
            raise ApiError(404, f"this server has {served}, not {model}", param="model", code="model_not_found")
        trace = trace_of(scope)
        trace.model, trace.user = model, getattr(body, "user", None)
        if self.settings.log_prompts:
            trace.prompt = raw.decode("utf-8", "replace")
        return body

    def check_tokens(self, wanted: int | None, param: str) -> None:
        """ApiError 400 if an answer asks for more tokens than one may have."""
        limit = self.settings.max_tokens
        if wanted is not None and limit is not None and wanted > limit:
            raise ApiError(400, f"{param}={wanted} is over this server's limit of {limit}", param=param)

    async def deltas(self, asked: Asked, trace: Trace, prompt: int = 0) -> AsyncGenerator[Delta, None]:
        """The pieces of a prompt's answers. ApiError 400 for what the engine refuses, 503 if it fails."""
        is_first = True
        try:
            answers = self.service.answers(asked.request, priority=asked.priority, grammar=asked.grammar)
            async with aclosing(answers):
                async for delta in answers:
                    if is_first:
                        trace.note_prompt(delta)
                        is_first = False
                    trace.note(prompt, delta)
                    if delta.finish_reason == "abort":
                        raise EngineError("the engine gave the request up")
                    yield delta
        except ValueError as error:
            if not is_first:
                raise
            raise ApiError(400, str(error)) from error
        except EngineError as error:
            trace.outcome = "failed"
            logger.error("engine failed", extra={"request_id": trace.request_id, "error": str(error)})
            raise ApiError(503, f"the engine failed: {error}", code="engine_failed", retry_after_s=2) from error

    async def encode(self, text: str) -> list[int]:
        """Token ids behind the begin token. Long texts are cut in a thread, so that streams go on meanwhile."""
        tokenizer = self.service.tokenizer
        try:
            ids = tokenizer.encode(text) if len(text) < 10_000 else await asyncio.to_thread(tokenizer.encode, text)
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        return [tokenizer.bos_id, *ids]


def trace_of(scope: Scope) -> Trace:
    trace: Trace = scope["state"]["trace"]
    return trace


def json_response(raw: bytes, status: int = 200) -> Response:
    return Response(raw, status, media_type="application/json")


def usage(trace: Trace) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": trace.prompt_tokens,
        "completion_tokens": trace.completion_tokens,
        "total_tokens": trace.prompt_tokens + trace.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": trace.cached_tokens},
    }
