"""Batches that the server answers by itself, in OpenAI's states. The next process goes on with what it left."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.types import ASGIApp

from plait.serve.http.batch_file import BatchFileError, BatchLine, Journal, answer_lines, read_lines, status_of
from plait.serve.http.logs import logger
from plait.serve.http.stored_files import FileStore, StoredFile, read_record, write_whole

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "cancelling", "cancelled"]
_RUNNING = ("validating", "in_progress", "finalizing", "cancelling")


class Counts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0

    def note(self, answer: dict[str, Any]) -> None:
        if status_of(answer) >= 400:
            self.failed += 1
        else:
            self.completed += 1


class Job(msgspec.Struct):
    """A batch; field by field what the API tells, but for `owner`."""

    id: str
    endpoint: str
    input_file_id: str
    owner: str | None
    metadata: dict[str, str] | None
    created_at: int
    status: Status = "validating"
    request_counts: Counts = msgspec.field(default_factory=Counts)
    errors: dict[str, Any] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    def shown(self) -> dict[str, Any]:
        told: dict[str, Any] = msgspec.to_builtins(self)
        del told["owner"]
        return {name: value for name, value in told.items() if value is not None} | {
            "object": "batch", "completion_window": "24h"
        }  # fmt: skip

    def go(self, status: Status) -> None:
        self.status = status
        setattr(self, f"{status}_at", int(time.time()))


class BatchJobs:
    """`app` is the server's own application, through which the lines of batches pass like other requests."""

    def __init__(self, folder: Path, files: FileStore, *, n_parallel: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._files, self._n_parallel = folder, files, n_parallel
        self.app: ASGIApp | None = None
        self._jobs = {path.stem: read_record(path, Job) for path in folder.glob("batch_*.json")}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def create(self, file: StoredFile, endpoint: str, metadata: dict[str, str] | None, owner: str | None) -> Job:
        job = Job(f"batch_{secrets.token_hex(12)}", endpoint, file.id, owner, metadata, int(time.time()))
        self._keep(job)
        self._jobs[job.id] = job
        self._start(job)
        return job

    def get(self, batch_id: str, owner: str | None) -> Job | None:
        job = self._jobs.get(batch_id)
        return job if job is not None and job.owner == owner else None

    def all(self, owner: str | None) -> list[Job]:
        """The newest first."""
        mine = (job for job in self._jobs.values() if job.owner == owner)
        return sorted(mine, key=lambda job: (job.created_at, job.id), reverse=True)

    def cancel(self, job: Job) -> bool:
        """What was answered is kept. False if it has ended already."""
        if job.status not in _RUNNING:
            return False
        if job.status != "cancelling":
            job.go("cancelling")
            self._keep(job)
            task = self._tasks.get(job.id)
            if task is not None:
                task.cancel()
        return True

    def resume(self) -> None:
        """Goes on with what an earlier process left; needs a running event loop."""
        for job in self._jobs.values():
            if job.status in _RUNNING and job.id not in self._tasks:
                self._start(job)

    async def stop(self) -> None:
        """The next process goes on from here."""
        for task in self._tasks.values():
            task.cancel("stop")
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, job: Job) -> None:
        task = asyncio.create_task(self._run(job), name=job.id)
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._ended(job))

    def _ended(self, job: Job) -> None:
        del self._tasks[job.id]
        if job.status == "cancelling":  # before its file was read
            self._finish(job, "cancelled", [])

    async def _run(self, job: Job) -> None:
        try:
            await self._answer(job)
        except BatchFileError as error:
            self._fail(job, "invalid_request", error.said, error.line)
        except Exception as error:
            logger.exception("batch failed", extra={"batch": job.id})
            self._fail(job, "server_error", f"the server failed: {type(error).__name__}", None)

    async def _answer(self, job: Job) -> None:
        source = await asyncio.to_thread(self._source, job)
        lines = await asyncio.to_thread(read_lines, source, "the file", urls=[job.endpoint])
        journal = Journal(self._journal(job), source, job.id)
        job.request_counts = Counts(len(lines))
        for answer in journal.answers.values():
            job.request_counts.note(answer)
        try:
            if job.status != "cancelling":
                await self._ask(job, lines, journal)
        except asyncio.CancelledError:
            if job.status != "cancelling":
                raise
        finally:
            journal.close()
        answers = [journal.answers[line.custom_id] for line in lines if line.custom_id in journal.answers]
        self._finish(job, "cancelled" if job.status == "cancelling" else "completed", answers)

    async def _ask(self, job: Job, lines: Sequence[BatchLine], journal: Journal) -> None:
        assert self.app is not None
        job.go("in_progress")
        self._keep(job)
        await answer_lines(
            self.app,
            lines,
            journal,
            n_parallel=self._n_parallel,
            waits=True,
            key=job.owner,
            on_answer=job.request_counts.note,
        )
        job.go("finalizing")
        self._keep(job)

    def _finish(self, job: Job, status: Status, answers: Sequence[dict[str, Any]]) -> None:
        """Answers become files, those with an error status one of their own."""
        for kind, is_error in (("output", False), ("error", True)):
            rows = [answer for answer in answers if (status_of(answer) >= 400) == is_error]
            if rows:
                raw = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
                made = self._files.add(raw, f"{job.id}_{kind}.jsonl", "batch_output", job.owner)
                setattr(job, f"{kind}_file_id", made.id)
        job.go(status)
        self._keep(job)
        self._journal(job).unlink(missing_ok=True)
        logger.info("batch ended", extra={"batch": job.id, "status": status, **msgspec.to_builtins(job.request_counts)})

    def _fail(self, job: Job, code: str, said: str, line: int | None) -> None:
        said = said[:1].upper() + said[1:]
        job.errors = {"object": "list", "data": [{"code": code, "message": said, "line": line, "param": None}]}
        job.go("failed")
        self._keep(job)

    def _source(self, job: Job) -> bytes:
        file = self._files.get(job.input_file_id, job.owner)
        if file is None:
            raise BatchFileError("the file", None, f"the input file {job.input_file_id} was deleted")
        return self._files.data(file)

    def _journal(self, job: Job) -> Path:
        return self._folder / f"{job.id}.partial"

    def _keep(self, job: Job) -> None:
        write_whole(self._folder / f"{job.id}.json", msgspec.json.encode(job))
