"""The stages of a build as datatrove pipeline steps: each task reads its documents, and writes its own.

extract → filter → sign → (find duplicates, in one process) → clean → tokenize. Task k of a stage reads what task k of
the stage before wrote, and every task holds one source's documents, so tasks are independent everywhere.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# datatrove is an extra. Its step class is a base class here, so this module is imported when a build begins.
from datatrove.pipeline.base import PipelineStep

from plait.data.documents import Document
from plait.data.pipeline.contamination import EvaluationIndex
from plait.data.pipeline.language import language_of, share_in
from plait.data.pipeline.ledger import Ledger
from plait.data.pipeline.near_duplicates import paragraph_hashes, signature, text_hash, word_hashes
from plait.data.pipeline.pii import scrub_pii
from plait.data.pipeline.program_text import program_reason
from plait.data.pipeline.quality import limits_for, quality_reason, repetition_reason
from plait.data.pipeline.recipe import Duplicates, Languages, Source
from plait.data.pipeline.rows import Row, RowWriter, read_rows, task_file, write_note
from plait.data.pipeline.sources import SourceFile, read_file
from plait.data.shards import write_shards
from plait.text import Tokenizer

CODE = "code"  # the language of program text, in books and rows


@dataclass(frozen=True)
class Task:
    """A share of one source's files."""

    source: Source
    files: tuple[SourceFile, ...]


class _Step(PipelineStep):
    """A stage: `work(rank)` does one task. datatrove asks for a generator; there is nothing to pass on."""

    type = "plait"
    out: Path

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        started = time.process_time()
        with self.track_time():
            self.work(rank)
        write_note(self.out, "cpu_seconds", rank, round(time.process_time() - started, 3))
        yield from ()

    @abstractmethod
    def work(self, rank: int) -> None: ...


class Extract(_Step):
    """Files to text with its formatting."""

    name = "extract"

    def __init__(self, out: Path, tasks: tuple[Task, ...]) -> None:
        super().__init__()
        self.out, self.tasks = out, tasks

    def work(self, rank: int) -> None:
        task = self.tasks[rank]
        following: dict[str, str] = {}
        with Ledger(self.out, rank) as books, RowWriter(task_file(self.out, rank)) as kept:
            for file in task.files:
                for raw in read_file(file, task.source):
                    if raw.following:
                        following[raw.id] = f"{task.source.name}:{raw.following}"
                    row = Row(raw.id, raw.text, task.source.name, CODE if raw.code else "")
                    if raw.code:
                        row.meta["code"] = raw.code
                    if raw.error:
                        books.drop("extract", row, raw.error, raw.detail, raw.n_bytes)
                    else:
                        books.keep("extract", row, raw.n_bytes)
                        kept.write(row)
        write_note(self.out, "following", rank, following)


@dataclass(frozen=True)
class Judge:
    """What prose has to pass, by its source's profile."""

    profiles: Mapping[str, str]
    languages: Languages
    thresholds: Mapping[str, Mapping[str, float]]

    def steps(self, row: Row) -> Iterator[tuple[str, str, str]]:
        """(step, reason, detail) in order; the first with a reason ends it. Sets the row's language."""
        profile = self.profiles[row.source]
        language, score = language_of(row.text)
        row.language = language or "none"
        least = self.languages.min_score_web if profile == "web" else self.languages.min_score_docs
        if not language:
            yield "language", "no words", ""
        elif self.languages.keep and language not in self.languages.keep:
            yield "language", "other language", f"{language} {score:.2f}"
        else:
            yield "language", "" if score >= least else "language uncertain", f"{language} {score:.2f}"
        if profile == "none":
            return
        limits = limits_for(profile, language, self.thresholds)
        yield "quality", quality_reason(row.text, language, limits), ""
        yield "repetition", repetition_reason(row.text, limits), ""

    def of_the_rest(self, row: Row) -> str:
        """The same for what a step left of a document; the row keeps its language if it fails."""
        before = row.language
        reason = next((reason for _, reason, _ in self.steps(row) if reason), "")
        if reason:
            row.language = before
        return reason


class Filter(_Step):
    """Language, quality, repetition, program text, and personal data out where it is asked for."""

    name = "filter"

    def __init__(self, out: Path, before: Path, judge: Judge, scrub: bool) -> None:
        super().__init__()
        self.out, self.before, self.judge, self.scrub = out, before, judge, scrub

    def work(self, rank: int) -> None:
        with Ledger(self.out, rank) as books, RowWriter(task_file(self.out, rank)) as kept:
            for row in read_rows(task_file(self.before, rank)):
                steps = _program_steps(row) if row.language == CODE else self.judge.steps(row)
                for step, reason, detail in steps:
                    if reason:
                        books.drop(step, row, reason, detail)
                        break
                    books.keep(step, row)
                else:
                    if self.scrub:
                        size = len(row.text)
                        row.text, row.meta["pii"] = scrub_pii(row.text)
                        books.keep("personal data", row, size)
                    kept.write(row)


def _program_steps(row: Row) -> Iterator[tuple[str, str, str]]:
    yield "program text", program_reason(row.text), ""


class Sign(_Step):
    """What duplicates are found by: a hash, a signature and the hashes of its paragraphs for each document."""

    name = "sign"

    def __init__(self, out: Path, before: Path, duplicates: Duplicates) -> None:
        super().__init__()
        self.out, self.before, self.duplicates = out, before, duplicates

    def work(self, rank: int) -> None:
        n_hashes = self.duplicates.bands * self.duplicates.rows_per_band
        texts: list[int] = []
        signatures: list[np.ndarray] = []
        paragraphs: list[np.ndarray] = []
        for row in read_rows(task_file(self.before, rank)):
            words = word_hashes(row.text)
            texts.append(text_hash(words))
            signatures.append(signature(words, self.duplicates.shingle_words, n_hashes))
            own = [] if row.language == CODE else paragraph_hashes(row.text, self.duplicates.boilerplate_words)
            paragraphs.append(np.unique(np.array([h for h, _, _ in own], dtype=np.uint64)))
        (self.out / "signatures").mkdir(parents=True, exist_ok=True)
        path = signature_file(self.out, rank)
        unfinished = path.with_name(f".{path.name}.tmp.npz")
        np.savez(
            unfinished,
            texts=np.array(texts, dtype=np.uint64),
            signatures=np.array(signatures, dtype=np.uint32).reshape(-1, n_hashes),
            paragraphs=np.concatenate([*paragraphs, np.zeros(0, dtype=np.uint64)]),
            n_paragraphs=np.array([len(p) for p in paragraphs], dtype=np.int64),
        )
        unfinished.replace(path)


def signature_file(folder: Path, rank: int) -> Path:
    return folder / "signatures" / f"{rank:05d}.npz"


class Clean(_Step):
    """Out with duplicates, with boilerplate, with half-translated pages and with what evaluation sets hold."""

    name = "clean"

    def __init__(
        self,
        out: Path,
        before: Path,
        decisions: Path,
        *,
        evaluation: EvaluationIndex,
        least_words: int,
        judge: Judge,
    ) -> None:
        super().__init__()
        self.out, self.before, self.decisions = out, before, decisions
        self.evaluation, self.least_words, self.judge = evaluation, least_words, judge

    def work(self, rank: int) -> None:
        decided = np.load(self.decisions / f"{rank:05d}.npz")
        boilerplate = np.load(self.decisions / "boilerplate.npz")
        known, owners = boilerplate["hashes"], boilerplate["owners"]
        names = (self.decisions / "kept.txt").read_text(encoding="utf-8").split("\n")
        first = int(decided["first_document"])
        with Ledger(self.out, rank) as books, RowWriter(task_file(self.out, rank)) as kept:
            for i, row in enumerate(read_rows(task_file(self.before, rank))):
                if (original := int(decided["kept"][i])) >= 0:
                    alike = float(decided["similarity"][i])
                    reason = "exact duplicate" if decided["exact"][i] else "near duplicate"
                    books.drop("duplicates", row, reason, f"{alike:.2f} like {names[original]}")
                    continue
                books.keep("duplicates", row)
                if self._stays(row, first + i, known, owners, books):
                    kept.write(row)

    def _stays(self, row: Row, document: int, known: np.ndarray, owners: np.ndarray, books: Ledger) -> bool:
        size = len(row.text)
        if row.language != CODE:
            row.text = without_boilerplate(row.text, document, known, owners, self.least_words)
        if not row.text.strip():
            books.drop("boilerplate", row, "nothing but boilerplate", characters_in=size)
            return False
        if len(row.text) < size and (reason := self.judge.of_the_rest(row)):
            books.drop("boilerplate", row, f"the rest: {reason}", characters_in=size)
            return False
        books.keep("boilerplate", row, size)
        if row.language != CODE:
            share = share_in(row.text, row.language)
            if share < self.judge.languages.min_share:
                books.drop("mixed languages", row, "several languages", f"{share:.0%} {row.language}")
                return False
            books.keep("mixed languages", row)
        if name := self.evaluation.hit(word_hashes(row.text)):
            books.drop("contamination", row, "holds an evaluation item", name)
            return False
        books.keep("contamination", row)
        return True


def without_boilerplate(text: str, document: int, known: np.ndarray, owners: np.ndarray, least_words: int) -> str:
    """The text without the paragraphs whose hashes are in `known` (sorted), except those that `document` owns."""
    if not len(known):
        return text
    cuts = []
    for value, start, end in paragraph_hashes(text, least_words):
        place = int(np.searchsorted(known, np.uint64(value)))
        if place < len(known) and int(known[place]) == value and int(owners[place]) != document:
            cuts.append((start, end))
    for start, end in reversed(cuts):
        text = text[:start] + text[end:].lstrip("\n")
    return text.rstrip("\n") + "\n" if text.strip() else ""


class Tokenize(_Step):
    """Token shards of one task, the held-out documents apart."""

    name = "tokenize"

    def __init__(self, out: Path, before: Path, tokenizer: Path, heldout_share: float) -> None:
        super().__init__()
        self.out, self.before, self.tokenizer, self.heldout_share = out, before, tokenizer, heldout_share

    def work(self, rank: int) -> None:
        import shutil

        tokenizer = Tokenizer.from_folder(self.tokenizer)
        for part in ("train", "heldout"):
            folder = part_folder(self.out, part, rank)
            shutil.rmtree(folder, ignore_errors=True)
            ids: list[str] = []
            if any(True for _ in self._documents(rank, part, [])):
                write_shards(self._documents(rank, part, ids), tokenizer, folder)
            write_note(self.out, f"{part}_ids", rank, ids)

    def _documents(self, rank: int, part: str, ids: list[str]) -> Iterator[Document]:
        for index, row in enumerate(read_rows(task_file(self.before, rank))):
            if (part == "heldout") == is_heldout(row.text, self.heldout_share):
                ids.append(row.id)
                yield Document(row.text, f"{row.source}/{row.language}", index)


def part_folder(folder: Path, part: str, rank: int) -> Path:
    return folder / part / f"{rank:05d}"


def is_heldout(text: str, share: float) -> bool:
    """By the text alone, so that no other setting moves a document from one side to the other."""
    import zlib

    return zlib.crc32(text.encode("utf-8", "replace")) < share * (1 << 32)
