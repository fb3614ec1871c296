"""The four steps of all synthesis: prompts, responses, filter, post-edit (paper section 5.3).

A `Skill` says what happens to one record; `run_pipeline` does it to all: each step reads the file of the one before,
holds a window of records in memory, and leaves a file of its own that appears whole, with its counts beside it. A run
that was stopped goes on behind the last finished step, and inside a step the answer cache makes repeating cheap.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from plait.synth.conversation import wrong_conversation
from plait.synth.decontaminate import Decontaminator
from plait.synth.funnel import Stage, save_funnel
from plait.synth.record import Record, read_records, write_jsonl, write_records, write_text
from plait.synth.requester import RefusedRequest, Requester
from plait.text import GenerationRequest

Ask = Callable[[GenerationRequest], tuple[str, ...]]
In = TypeVar("In")
Out = TypeVar("Out")

STEPS = ("prompts", "responses", "filter", "post-edit")
RUN_FILE = "run.json"
CHAT_FILE = "chat.jsonl"
_MAX_THREADS = 64
_LOCAL_THREADS = 2  # without a model: what is checked by a query engine or a compressor runs outside of Python's lock
_LOCAL_CHUNK = 32


class Dropped(Exception):
    """A record that a step rejects. The reason up to its first colon is counted in the funnel, the rest is detail."""


class Skill(Protocol):
    """One kind of data. `respond` and `check` may ask the model, from many threads; both may raise Dropped."""

    name: str

    def settings(self) -> dict[str, Any]:
        """What decides the output beside n and seed, JSON-like: a resumed run must have the same."""
        ...

    def prompts(self, n: int, seed: int) -> Iterator[Record]:
        """(i) `n` prompts in the target distribution, the same ones for the same seed."""
        ...

    def respond(self, record: Record, ask: Ask) -> Sequence[Record]:
        """(ii) One or more candidates for a prompt, each a whole conversation."""
        ...

    def check(self, record: Record, ask: Ask) -> Record:
        """(iii) The candidate with its scores, or Dropped. Of those left per prompt the highest `reward` is kept."""
        ...

    def edit(self, records: Iterable[Record]) -> Iterator[Record]:
        """(iv) Records as they go out; may join several to one."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Where the conversations are, how many, and how they came to be so many."""

    chat: Path
    n_records: int
    stages: tuple[Stage, ...]
    requests: dict[str, int]  # of this call: asked, cached, calls, retries, refused
    contamination: dict[str, Any] | None  # what was compared with, and how many records shared text with it


def run_pipeline(
    skill: Skill,
    out: Path,
    *,
    n: int,
    seed: int = 0,
    requester: Requester | None = None,
    keep: int = 1,
    decontaminator: Decontaminator | None = None,
    resume: bool = False,
) -> Outcome:
    """Run what isn't done of `skill`'s four steps into the folder `out`.

    `keep` candidates per prompt go on, if the `decontaminator` finds no evaluation text in them. Without `resume` the
    folder must be new. Raises ValueError when it isn't, or was made with other settings, and OSError when
    the model can't be reached: then the same call with `resume` goes on.
    """
    if n < 1 or keep < 1:
        raise ValueError(f"n={n} and keep={keep} must be at least 1")
    model = None if requester is None else requester.name
    settings = {"skill": skill.name, "n": n, "seed": seed, "keep": keep, "model": model, **skill.settings()}
    settings["decontamination"] = None if decontaminator is None else decontaminator.settings()
    _claim(out, settings, resume)
    run = _Run(skill, requester, keep, decontaminator)
    stages: list[Stage] = []
    for index, step in enumerate(STEPS):
        done = out / "steps" / f"{index + 1}_{step}.json"
        produced = done.with_suffix(".jsonl")
        if not done.exists():
            stage = Stage(step)
            before = iter(()) if index == 0 else read_records(out / "steps" / f"{index}_{STEPS[index - 1]}.jsonl")
            try:
                write_records(run.step(step, before, stage, n, seed), produced)
            except (ValueError, OSError):
                if index == 0:  # nothing is made yet, so the call may be put right and the folder used for it
                    (out / RUN_FILE).unlink()
                    (out / "steps").rmdir()
                raise
            write_text(json.dumps(stage.as_dict(), ensure_ascii=False), done)
        stages.append(Stage.from_dict(json.loads(done.read_text(encoding="utf-8"))))
    contamination = None if decontaminator is None else decontaminator.report_for(stages)
    last = out / "steps" / f"{len(STEPS)}_{STEPS[-1]}.jsonl"
    n_records = write_jsonl((record.chat() for record in read_records(last)), out / CHAT_FILE)
    save_funnel(stages, settings, out, contamination)
    counts = {} if requester is None else dict(requester.counts)
    return Outcome(out / CHAT_FILE, n_records, tuple(stages), counts, contamination)


def _claim(out: Path, settings: dict[str, Any], resume: bool) -> None:
    asked = json.loads(json.dumps(settings, default=str))
    if (out / RUN_FILE).exists():
        made = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
        if made != asked:
            differs = sorted(key for key in made.keys() | asked.keys() if made.get(key) != asked.get(key))
            raise ValueError(f"{out} was begun with other settings ({', '.join(differs)}): give another folder")
        if not resume:
            raise ValueError(f"{out} holds a run already: resume it, or give another folder")
        for leftover in (out / "steps").glob(".*.tmp"):
            leftover.unlink()
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} isn't empty and holds no {RUN_FILE}: give another folder")
    shutil.rmtree(out / "steps", ignore_errors=True)
    (out / "steps").mkdir(parents=True)
    write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n", out / RUN_FILE)


class _Run:
    """The steps of one run; each yields what goes on and counts in `stage` what doesn't."""

    def __init__(
        self, skill: Skill, requester: Requester | None, keep: int, decontaminator: Decontaminator | None
    ) -> None:
        self.skill = skill
        self.keep = keep
        self.decontaminator = decontaminator
        self._ask = _no_model if requester is None else requester.ask
        self._names = () if requester is None else (requester.name,)
        limits = None if requester is None else requester.limits
        self._threads = _LOCAL_THREADS if limits is None else min(_MAX_THREADS, 2 * limits.calls * limits.batch)
        self._chunk = _LOCAL_CHUNK if limits is None else 1

    def step(self, step: str, before: Iterator[Record], stage: Stage, n: int, seed: int) -> Iterator[Record]:
        if step == "prompts":
            given = self._prompts(stage, n, seed)
        elif step == "responses":
            given = self._responses(before, stage)
        elif step == "filter":
            given = self._filter(before, stage)
        else:
            given = self.skill.edit(_counted(before, stage))
        for record in given:
            stage.n_out += 1
            yield record

    def _prompts(self, stage: Stage, n: int, seed: int) -> Iterator[Record]:
        for record in self.skill.prompts(n, seed):
            stage.n_in += 1
            yield record

    def _responses(self, before: Iterator[Record], stage: Stage) -> Iterator[Record]:
        for record, found in ordered_map(self._respond, _counted(before, stage), self._threads, chunk=self._chunk):
            if isinstance(found, str):
                stage.drop(found, record.id)
                continue
            for k, candidate in enumerate(found):
                yield replace(candidate, id=f"{record.id}/{k}")

    def _respond(self, record: Record) -> tuple[Record, Sequence[Record] | str]:
        asked: list[bool] = []

        def ask(request: GenerationRequest) -> tuple[str, ...]:
            asked.append(True)
            return self._ask(request)

        try:
            candidates = self.skill.respond(record, ask)
        except Dropped as dropped:
            return record, str(dropped)
        except RefusedRequest as error:
            return record, f"refused by the model: {error}"
        writers = self._names if asked else ()
        return record, [replace(candidate, generators=writers) for candidate in candidates]

    def _filter(self, before: Iterator[Record], stage: Stage) -> Iterator[Record]:
        candidates = ordered_map(self._check, _counted(before, stage), self._threads, chunk=self._chunk)
        for _, group in groupby(candidates, key=lambda pair: pair[0].id.rpartition("/")[0]):
            good: list[Record] = []
            for record, found in group:
                if isinstance(found, Record):
                    good.append(found)
                else:
                    stage.drop(found, record.id)
            good.sort(key=lambda record: -record.scores.get("reward", 0.0))
            for record in good[self.keep :]:
                stage.drop("ranked below another answer", record.id)
            yield from good[: self.keep]

    def _check(self, record: Record) -> tuple[Record, Record | str]:
        wrong = wrong_conversation(record)
        if wrong is not None:
            return record, wrong
        try:
            checked = self.skill.check(record, self._ask)
        except Dropped as dropped:
            return record, str(dropped)
        except RefusedRequest as error:
            return record, f"refused by the judge: {error}"
        wrong = self.decontaminator.reject(checked) if self.decontaminator is not None else None
        return record, checked if wrong is None else wrong


def _counted(records: Iterable[Record], stage: Stage) -> Iterator[Record]:
    for record in records:
        stage.n_in += 1
        yield record


def _no_model(request: GenerationRequest) -> tuple[str, ...]:
    raise ValueError("this needs a model, and none was given: name one, or choose settings that need none")


def ordered_map(work: Callable[[In], Out], items: Iterable[In], n_threads: int, *, chunk: int = 1) -> Iterator[Out]:
    """`map` over threads: results in order, at most twice as many chunks of items in flight as threads.

    Neighbours in a chunk meet the same thread one after the other, which pays where a thread keeps what it loaded.
    """
    items = iter(items)
    chunks = iter(lambda: list(islice(items, chunk)), [])

    def do(several: list[In]) -> list[Out]:
        return [work(item) for item in several]

    with ThreadPoolExecutor(n_threads) as pool:
        running = deque(pool.submit(do, several) for several in islice(chunks, 2 * n_threads))
        try:
            while running:
                yield from running.popleft().result()
                running.extend(pool.submit(do, several) for several in islice(chunks, 1))
        finally:
            for future in running:
                future.cancel()
