"""A data build from its recipe to shards, manifest and funnel. Every stage lies in a folder named by a hash of all that
it depends on: a stopped build goes on task by task, and a changed setting redoes only what comes after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np

import plait.data.pipeline.contamination
import plait.data.pipeline.language
import plait.data.pipeline.manuals
import plait.data.pipeline.markup
import plait.data.pipeline.near_duplicates
import plait.data.pipeline.pii
import plait.data.pipeline.program_text
import plait.data.pipeline.quality
import plait.data.pipeline.sources
from plait.data.pipeline.contamination import index_evaluation_sets
from plait.data.pipeline.funnel import funnel_page, make_funnel
from plait.data.pipeline.ledger import read_books
from plait.data.pipeline.manuals import cut_to_size, reading_orders
from plait.data.pipeline.recipe import BuildRecipe
from plait.data.pipeline.rows import read_note, read_rows, task_file, write_note
from plait.data.pipeline.sources import OpenedSource, SourceFile, open_source
from plait.data.shards import TokenShards, join_documents, merge_shards, open_shards, tokenizer_hash
from plait.text import Tokenizer, train_tokenizer

_PARSERS = (plait.data.pipeline.sources, plait.data.pipeline.markup, plait.data.pipeline.manuals)
_RULES = (
    plait.data.pipeline.quality, plait.data.pipeline.program_text, plait.data.pipeline.language,
    plait.data.pipeline.pii,
)  # fmt: skip

MakeExecutor = Callable[[list[Any], int, Path], Any]
"""(pipeline steps, tasks, folder for logs and completions) -> a datatrove executor."""


@dataclass(frozen=True)
class Built:
    """What a build left: `redone` names the stages that ran now, the others were there."""

    out: Path
    funnel: dict[str, Any]
    manifest: dict[str, Any]
    redone: tuple[str, ...]


def local_executor(workers: int) -> MakeExecutor:
    """On this machine, so many tasks at a time."""

    def make(steps: list[Any], tasks: int, logs: Path) -> Any:
        from plait.data.pipeline.executors import QuietLocalExecutor

        return QuietLocalExecutor(pipeline=steps, tasks=tasks, workers=min(workers, tasks), logging_dir=str(logs))

    return make


def ray_executor(workers: int) -> MakeExecutor:
    """On the nodes of a Ray cluster, which all see the build's folder."""

    def make(steps: list[Any], tasks: int, logs: Path) -> Any:
        from plait.data.pipeline.executors import QuietRayExecutor

        return QuietRayExecutor(pipeline=steps, tasks=tasks, workers=min(workers, tasks), logging_dir=str(logs))

    return make


def slurm_executor(workers: int, settings: Mapping[str, str]) -> MakeExecutor:
    """As array jobs of Slurm, on nodes that all see the build's folder and this Python (executors.slurm_arguments)."""
    from plait.data.pipeline.executors import WaitingSlurmExecutor, slurm_arguments

    slurm_arguments(workers, settings, Path())

    def make(steps: list[Any], tasks: int, logs: Path) -> Any:
        arguments = slurm_arguments(min(workers, tasks), settings, logs)
        return WaitingSlurmExecutor(pipeline=steps, tasks=tasks, logging_dir=str(logs), **arguments)

    return make


def build(
    recipe: BuildRecipe,
    out: Path,
    *,
    workers: int = 1,
    cache: Path | None = None,
    executor: MakeExecutor | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Built:
    """Make `out`/shards/SOURCE, heldout, tokenizer, manifest.json, funnel.json and funnel.html. `cache` holds packages
    that were fetched (`out`/work/packages). What is already done in `out`/work is not done again.

    Raises ValueError for sources that can't be read, and where nothing is left to write.
    """
    check_installed()
    run = _Run(recipe, out / "work", executor or local_executor(workers), say)
    sources = [open_source(source, cache or out / "work" / "packages") for source in recipe.sources]
    tasks = _tasks(sources, round(recipe.task_megabytes * 1e6))
    extracted, filtered, signed = run.documents(sources, tasks)
    decided = run.decisions(signed, filtered, len(tasks))
    cleaned = run.clean(filtered, decided, len(tasks))
    tokenizer, parts = run.tokens(cleaned, len(tasks))
    shards = _publish(out, tokenizer, parts, extracted, tasks, recipe.tokens.manual_tokens)
    say("funnel")
    counts = {is_whole: _counts(shards, is_whole) for is_whole in (False, True)}
    funnel = make_funnel(read_books((extracted, filtered, cleaned)), counts[False], counts[True])
    manifest = _manifest(recipe, sources, shards, run.seconds)
    manifest |= {"cpu_seconds": run.cpu_seconds(len(tasks)), "evaluation": read_note(cleaned, "evaluation", 0)}
    for name, text in (
        ("funnel.json", json.dumps(funnel, indent=1, ensure_ascii=False)),
        ("funnel.html", funnel_page(funnel, recipe.name)),
        ("manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False)),
    ):
        _write(out / name, text)
    return Built(out, funnel, manifest, tuple(run.seconds))


def check_installed() -> None:
    """Raises ValueError if the extra `data` isn't there."""
    for name in ("datatrove", "py3langid", "lxml", "zstandard", "orjson", "loguru"):
        try:
            packages.version(name)
        except packages.PackageNotFoundError:
            raise ValueError(f"plait data build needs {name}: pip install 'plait[data]'") from None


def _tasks(sources: Sequence[OpenedSource], n_bytes: int) -> tuple[Any, ...]:
    """Shares of about `n_bytes`, each of one source's files in order."""
    from plait.data.pipeline.stages import Task

    tasks = []
    for opened in sources:
        share: list[SourceFile] = []
        size = 0
        for file in opened.files:
            if share and size + file.n_bytes > n_bytes:
                tasks.append(Task(opened.source, tuple(share)))
                share, size = [], 0
            share.append(file)
            size += file.n_bytes
        tasks.append(Task(opened.source, tuple(share)))
    return tuple(tasks)


class _Run:
    """The stages in order; `seconds` of those that ran."""

    def __init__(self, recipe: BuildRecipe, work: Path, executor: MakeExecutor, say: Callable[[str], None]) -> None:
        self.recipe, self.work, self.executor, self.say = recipe, work, executor, say
        self.seconds: dict[str, float] = {}
        self._folders: dict[str, Path] = {}

    def cpu_seconds(self, n_tasks: int) -> dict[str, float]:
        """What the tasks of each stage took, whenever they ran: the same on a busy machine."""
        return {
            stage: round(sum(read_note(folder, "cpu_seconds", rank) for rank in range(n_tasks)), 1)
            for stage, folder in self._folders.items()
        }

    def documents(self, sources: Sequence[OpenedSource], tasks: tuple[Any, ...]) -> tuple[Path, Path, Path]:
        """Extracted, filtered, and what duplicates are found by."""
        from plait.data.pipeline.stages import Extract, Filter, Sign

        recipe, n = self.recipe, len(tasks)
        read = [[s.source.name, s.source.kind, s.source.text_key, s.source.text_format, s.sha256] for s in sources]
        parsers = [_source_of(module) for module in _PARSERS]
        extracted = self._folder("extract", [read, recipe.task_megabytes, *parsers])
        self._stage(extracted, Extract(extracted, tasks), n)
        judge = self._judge()
        rules = [_source_of(module) for module in _RULES]
        languages = {k: v for k, v in asdict(recipe.languages).items() if k != "min_share"}  # looked at when clean
        settings = [judge.profiles, languages, judge.thresholds, recipe.scrub_pii]
        filtered = self._folder("filter", [extracted.name, *settings, *rules])
        self._stage(filtered, Filter(filtered, extracted, judge, recipe.scrub_pii), n)
        hashing = _source_of(plait.data.pipeline.near_duplicates)
        duplicates = asdict(recipe.duplicates)
        per_document = {k: duplicates[k] for k in ("shingle_words", "bands", "rows_per_band", "boilerplate_words")}
        signed = self._folder("sign", [filtered.name, per_document, hashing])
        self._stage(signed, Sign(signed, filtered, recipe.duplicates), n)
        return extracted, filtered, signed

    def decisions(self, signed: Path, filtered: Path, n_tasks: int) -> Path:
        from plait.data.pipeline.decide import decide

        folder = self._folder("decide", [signed.name, asdict(self.recipe.duplicates)])
        if not (folder / "done.json").exists():
            with self._timed("decide"):
                decide(signed, filtered, folder, n_tasks, self.recipe.duplicates)
        return folder

    def clean(self, filtered: Path, decided: Path, n_tasks: int) -> Path:
        from plait.data.pipeline.stages import Clean

        settings = self.recipe.contamination
        sets = [_hash_of_path(Path(path)) for path in settings.evaluation_sets]
        rules = _source_of(plait.data.pipeline.contamination)
        folder = self._folder("clean", [decided.name, asdict(settings), sets, self.recipe.languages.min_share, rules])
        self._folders["clean"] = folder
        if not self._is_done(folder, n_tasks):
            index = index_evaluation_sets(
                settings.evaluation_sets, n_words=settings.n_words, least_words=settings.least_words
            )
            looked_for = {"items": index.n_items, "too_short_to_look_for": index.n_short}
            write_note(folder, "evaluation", 0, looked_for)
            least = self.recipe.duplicates.boilerplate_words
            step = Clean(folder, filtered, decided, evaluation=index, least_words=least, judge=self._judge())
            self._stage(folder, step, n_tasks)
        return folder

    def _judge(self) -> Any:
        from plait.data.pipeline.stages import Judge

        profiles = {source.name: source.profile for source in self.recipe.sources}
        changes = {key: dict(value) for key, value in self.recipe.thresholds.items()}
        return Judge(profiles, self.recipe.languages, changes)

    def tokens(self, cleaned: Path, n_tasks: int) -> tuple[Path, Path]:
        """The tokenizer's folder, and the one with each task's shards."""
        from plait.data.pipeline.stages import Tokenize

        settings = self.recipe.tokens
        if settings.tokenizer == "train":
            made_by = [cleaned.name, settings.vocab_size, settings.training_characters]
            tokenizer = self._folder("tokenizer", made_by)
            if not (tokenizer / "tokenizer_config.json").exists():
                with self._timed("tokenizer"):
                    texts = _spread(cleaned, n_tasks, settings.training_characters)
                    if not texts:
                        raise ValueError("no document was kept: look at work/*/dropped and loosen the recipe")
                    train_tokenizer(texts, settings.vocab_size).save(tokenizer)
        else:
            tokenizer = Path(settings.tokenizer)
        key = [cleaned.name, tokenizer_hash(Tokenizer.from_folder(tokenizer)), settings.heldout_share]
        folder = self._folder("tokenize", key)
        self._stage(folder, Tokenize(folder, cleaned, tokenizer, settings.heldout_share), n_tasks)
        return tokenizer, folder

    def _folder(self, stage: str, depends_on: Any) -> Path:
        text = json.dumps(depends_on, sort_keys=True, default=str)
        return self.work / f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _is_done(self, folder: Path, n_tasks: int) -> bool:
        done = folder / "log" / "completions"
        return done.is_dir() and len(list(done.iterdir())) >= n_tasks

    def _stage(self, folder: Path, step: Any, n_tasks: int) -> None:
        self._folders[step.name] = folder
        if self._is_done(folder, n_tasks):
            return
        with self._timed(step.name):
            folder.mkdir(parents=True, exist_ok=True)
            self.executor([step], n_tasks, folder / "log").run()
        if not self._is_done(folder, n_tasks):
            raise ValueError(f"stage {step.name} is not complete: look at {folder / 'log' / 'logs'}, then start again")

    def _timed(self, stage: str) -> _Timed:
        self.say(stage)
        return _Timed(self.seconds, stage)


class _Timed:
    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self.seconds, self.stage = seconds, stage

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.stage] = round(time.perf_counter() - self.started, 2)


def _source_of(module: Any) -> str:
    """A hash of a module's text: rules that were changed are settings that were changed."""
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()


def _hash_of_path(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if not file.is_file():
            raise ValueError(f"evaluation set {file} does not exist")
        total.update(file.read_bytes())
    return total.hexdigest()


def _spread(documents: Path, n_tasks: int, characters: int) -> list[str]:
    """Texts of every task, as much of each as its share of all, at the most `characters` in all."""
    sizes = [task_file(documents, rank).stat().st_size for rank in range(n_tasks)]
    texts = []
    for rank, size in enumerate(sizes):
        left = characters * size // max(1, sum(sizes))
        for row in read_rows(task_file(documents, rank)):
            if left <= 0:
                break
            texts.append(row.text[:left])
            left -= len(row.text)
    return texts


def _publish(
    out: Path, tokenizer: Path, parts: Path, extracted: Path, tasks: Sequence[Any], manual_tokens: int
) -> list[TokenShards]:
    """shards/SOURCE, manuals/SOURCE, heldout and tokenizer in `out`, in place of what an earlier build left there."""
    fresh = out / ".fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    made = Tokenizer.from_folder(tokenizer)
    made.save(fresh / "tokenizer")
    from plait.data.pipeline.stages import part_folder

    heldout = []
    for name in dict.fromkeys(task.source.name for task in tasks):
        ranks = [rank for rank, task in enumerate(tasks) if task.source.name == name]
        train, held = (
            [
                open_shards(folder, check_tokens=False)
                for rank in ranks
                if (folder := part_folder(parts, part, rank)).exists()
            ]
            for part in ("train", "heldout")
        )
        heldout += held
        if train:
            merged = merge_shards(train, fresh / "shards" / name)
            if manual_tokens:
                _write_manuals(merged, fresh / "manuals" / name, parts, extracted, ranks, manual_tokens, made)
    if not (fresh / "shards").exists():
        raise ValueError("no document was kept: look at work/*/dropped and loosen the recipe")
    if heldout:
        merge_shards(heldout, fresh / "heldout")
    for name in ("tokenizer", "shards", "manuals", "heldout"):
        shutil.rmtree(out / name, ignore_errors=True)
        if (fresh / name).exists():
            (fresh / name).rename(out / name)
    shutil.rmtree(fresh)
    written = [*sorted((out / "shards").iterdir()), *sorted(out.glob("manuals/*")), *out.glob("heldout")]
    return [open_shards(folder, check_tokens=False) for folder in written]


def _write_manuals(
    shards: TokenShards, out: Path, parts: Path, extracted: Path, ranks: Sequence[int], most: int, tokenizer: Tokenizer
) -> None:
    """The documents of a source that name each other as next, joined; nothing if none do."""
    ids = [name for rank in ranks for name in read_note(parts, "train_ids", rank)]
    following: dict[str, str] = {}
    for rank in ranks:
        following |= read_note(extracted, "following", rank)
    places, lengths = {name: place for place, name in enumerate(ids)}, np.diff(shards.offsets)
    chains = ([places[page] for page in chain if page in places] for chain in reading_orders(following))
    manuals = [manual for chain in chains for manual in cut_to_size(chain, lengths, most)]
    if manuals:
        join_documents(shards, manuals, tokenizer.encode("\n"), out, f"{out.name}/manuals")


def _counts(shards: Sequence[TokenShards], is_whole: bool) -> list[Any]:
    """One count a source and language, training and held-out together; of whole manuals or of all else."""
    merged: dict[str, Any] = {}
    chosen = [each for each in shards if (each.path.parent.name == "manuals") == is_whole]
    for count in (count for each in chosen for count in each.metadata.sources):
        there = merged.get(count.source)
        sums = {
            key: getattr(count, key) + (getattr(there, key) if there else 0)
            for key in ("n_documents", "n_tokens", "n_characters")
        }
        merged[count.source] = type(count)(count.source, **sums)
    return [merged[name] for name in sorted(merged)]


def _manifest(
    recipe: BuildRecipe, sources: Sequence[OpenedSource], shards: Sequence[TokenShards], seconds: dict[str, float]
) -> dict[str, Any]:
    versions = {name: packages.version(name) for name in ("datatrove", "py3langid", "lxml", "tokenizers", "numpy")}
    return {
        "recipe": json.loads(json.dumps(asdict(recipe))),
        "sources": [
            {
                "name": opened.source.name,
                "licence": opened.licence,
                "n_files": len(opened.files),
                "n_bytes": sum(file.n_bytes for file in opened.files),
                "sha256": opened.sha256,
                "origins": list(opened.origins),
            }
            for opened in sources
        ],
        "shards": [
            {
                "folder": f"{each.path.parent.name}/{each.path.name}" if each.path.name != "heldout" else "heldout",
                "n_documents": each.n_documents,
                "n_tokens": each.n_tokens,
                "dtype": each.metadata.dtype.name,
                "sha256": _hash_of_path(each.path),
            }
            for each in shards
        ],
        "tokenizer_hash": shards[0].metadata.tokenizer_hash,
        "versions": versions,
        "seconds": seconds,
    }


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
