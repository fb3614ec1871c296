"""What a data build is, as values: sources, thresholds, duplicates, evaluation sets to stay clear of, tokenizer."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

PAPER_LANGUAGES = ("en", "es", "fr", "pt", "it", "nl", "de", "ar", "he")

Kind = Literal["files", "code", "jsonl", "parquet", "warc", "debian"]
KINDS = ("files", "code", "jsonl", "parquet", "warc", "debian")
PROFILES = ("web", "docs", "none")


@dataclass(frozen=True)
class Source:
    """Where documents come from. `files`: HTML, Mallard, text and Markdown by their endings, also gzipped; `debian`:
    the same out of packages, each `NAME` or `NAME=SHA256`; `code`: program text; `jsonl`, `parquet`: one record a
    document.
    """

    name: str
    kind: Kind
    path: str = ""  # a file or folder; unused by debian
    packages: tuple[str, ...] = ()
    include: tuple[str, ...] = ()  # of file paths, as fnmatch patterns; empty: every file that can be read
    exclude: tuple[str, ...] = ()
    profile: Literal["web", "docs", "none"] = "docs"
    licence: str = ""  # debian: what the package says, if empty
    text_key: str = "text"  # jsonl and parquet
    text_format: Literal["text", "html"] = "text"  # of what stands under it

    def __post_init__(self) -> None:
        if not self.name or not all(letter.isalnum() or letter in "-_." for letter in self.name):
            raise ValueError(f"source name {self.name!r} must be letters, digits, '-', '_' and '.': it names a folder")
        if self.kind not in KINDS:
            raise ValueError(f"source {self.name}: kind={self.kind!r} must be one of {', '.join(KINDS)}")
        if self.profile not in PROFILES:
            raise ValueError(f"source {self.name}: profile={self.profile!r} must be one of {', '.join(PROFILES)}")
        if (self.kind == "debian") != bool(self.packages) or (self.kind == "debian") == bool(self.path):
            raise ValueError(f"source {self.name}: kind 'debian' takes packages and no path, every other kind a path")
        if self.text_format not in ("text", "html"):
            raise ValueError(f"source {self.name}: text_format={self.text_format!r} must be 'text' or 'html'")


@dataclass(frozen=True)
class Languages:
    """`keep`: ISO 639-1 codes, or empty for all. `min_score`: the identifier's probability, below which no language is
    certain enough (by profile). `min_share`: of a document's prose that must be in its language.
    """

    keep: tuple[str, ...] = PAPER_LANGUAGES
    min_score_web: float = 0.65
    min_score_docs: float = 0.3
    min_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("min_score_web", "min_score_docs", "min_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"languages.{name}={getattr(self, name)} must be between 0 and 1")


@dataclass(frozen=True)
class Duplicates:
    """Documents whose sets of `shingle_words`-word runs overlap by `similarity` (Jaccard) or more are one; the first is
    kept. Paragraphs of `boilerplate_words` words or more in `boilerplate_documents` documents or more stay in the first
    only.
    """

    shingle_words: int = 5
    similarity: float = 0.7
    bands: int = 25
    rows_per_band: int = 5
    boilerplate_words: int = 8
    boilerplate_documents: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"duplicates.similarity={self.similarity} must be more than 0 and at most 1")
        for name in ("shingle_words", "bands", "rows_per_band", "boilerplate_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"duplicates.{name}={getattr(self, name)} must be at least 1")
        if self.boilerplate_documents < 2:
            raise ValueError(f"duplicates.boilerplate_documents={self.boilerplate_documents} must be at least 2")


@dataclass(frozen=True)
class Contamination:
    """Evaluation sets (text, JSON or JSONL files, or folders of them) whose items may not be in the training text."""

    evaluation_sets: tuple[str, ...] = ()
    n_words: int = 13  # a run of so many of an item's words is a hit; items of at least `least_words` count whole
    least_words: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.least_words <= self.n_words:
            raise ValueError(
                f"contamination: least_words={self.least_words} must be between 1 and n_words={self.n_words}"
            )


@dataclass(frozen=True)
class Tokens:
    """`tokenizer`: a folder, or "train" for one of `vocab_size` trained on `training_characters` of what is kept.
    `manual_tokens`: the longest whole manual (manuals.py); 0 makes none.
    """

    tokenizer: str = "train"
    vocab_size: int = 32_768
    training_characters: int = 20_000_000
    heldout_share: float = 0.005  # of the documents, by a hash of their text
    manual_tokens: int = 262_144

    def __post_init__(self) -> None:
        if self.manual_tokens < 0:
            raise ValueError(f"tokens.manual_tokens={self.manual_tokens} must not be negative; 0 makes no manuals")
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"tokens.heldout_share={self.heldout_share} must be at least 0 and less than 1")


@dataclass(frozen=True)
class BuildRecipe:
    """One data set. `thresholds` changes quality limits: `{"docs": {"min_words": 10}, "web.de": {...}}`."""

    name: str
    sources: tuple[Source, ...]
    languages: Languages = field(default_factory=Languages)
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    duplicates: Duplicates = field(default_factory=Duplicates)
    contamination: Contamination = field(default_factory=Contamination)
    scrub_pii: bool = False
    tokens: Tokens = field(default_factory=Tokens)
    task_megabytes: float = 24  # of files, for one task

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"recipe {self.name}: sources {names} must be one or more, each with a name of its own")
        if not self.task_megabytes > 0:
            raise ValueError(f"recipe {self.name}: task_megabytes={self.task_megabytes} must be greater than 0")


def load_build_recipe(name: str, shipped: Mapping[str, Callable[[], BuildRecipe]]) -> BuildRecipe:
    """A shipped recipe by its name, or one's own from a .toml file with the same fields; else ValueError."""
    if name in shipped:
        return shipped[name]()
    path = Path(name)
    if path.suffix != ".toml":
        raise ValueError(f"no data recipe {name!r}: there are {', '.join(shipped)} (or give a .toml file)")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    return recipe_from_values({"name": path.stem} | values)


def recipe_from_values(values: Mapping[str, Any]) -> BuildRecipe:
    """The recipe of a parsed .toml file: tables become the dataclasses above, lists tuples."""
    parts: dict[str, type] = {
        "languages": Languages,
        "duplicates": Duplicates,
        "contamination": Contamination,
        "tokens": Tokens,
    }
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("source", "sources"):
            made["sources"] = tuple(_made(Source, each, f"source {number}") for number, each in enumerate(value))
        elif key in parts:
            made[key] = _made(parts[key], value, key)
        else:
            made[key] = value
    return _made(BuildRecipe, made, "recipe")


def _made(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = {f.name for f in fields(kind)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{where}: there is no {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None
