"""`plait batch`: a batch file answered without a server, requests in one JSONL file and answers in another, in the same
order.

Answers are collected in `OUT.partial` as they come. A run that is stopped goes on from there; `OUT` appears when all is
done.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plait.serve.http.app import create_app
from plait.serve.http.batch_file import Journal, answer_lines, may_pass, read_lines, replace_rows, status_of
from plait.serve.http.settings import ServerSettings
from plait.serve.service import Service


@dataclass(frozen=True)
class BatchResult:
    n_requests: int
    n_failed: int  # with an error status
    n_resumed: int  # answered by an earlier run


async def run_batch(
    service: Service,
    source: Path,
    target: Path,
    *,
    settings: ServerSettings | None = None,
    n_parallel: int = 256,
    on_answer: Callable[[int, int], None] = lambda n_done, n_requests: None,
) -> BatchResult:
    """Answers every request of `source`. Raises ValueError for a file that is no batch file, before anything runs, and
    for a `target` that exists or a partial one that belongs to another source.
    """
    if target.exists():
        raise ValueError(f"{target} exists already: move it away, or name another file")
    raw = source.read_bytes()
    lines = read_lines(raw, str(source))
    journal = Journal(target.with_name(f"{target.name}.partial"), raw, str(source))
    n_resumed = len(journal.answers)
    try:
        await answer_lines(
            create_app(service, settings),
            lines,
            journal,
            n_parallel=n_parallel,
            on_answer=lambda _: on_answer(len(journal.answers), len(lines)),
        )
    finally:
        journal.close()
    answers = [journal.answers[line.custom_id] for line in lines]
    if not any(map(may_pass, answers)):  # else the partial file stays for the next run
        replace_rows(journal.path, answers)
        os.replace(journal.path, target)
    return BatchResult(len(lines), sum(status_of(answer) >= 400 for answer in answers), n_resumed)
