"""Sources to raw documents: which files there are, and what is in each."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from plait.data.pipeline.debian import get_package
from plait.data.pipeline.manuals import next_page
from plait.data.pipeline.markup import html_to_markdown, mallard_to_markdown
from plait.data.pipeline.program_text import language_of_code
from plait.data.pipeline.recipe import Source

_HTML = (".html", ".htm", ".xhtml")
_TEXT = (".txt", ".md", ".markdown", ".rst", ".text")
MAX_BYTES = 64 << 20  # of one document


@dataclass(frozen=True)
class SourceFile:
    """`name`: its path inside the source, which ids are made of."""

    path: str
    name: str
    n_bytes: int


@dataclass(frozen=True)
class OpenedSource:
    """A source with its files in a fixed order, and what the manifest says about it."""

    source: Source
    files: tuple[SourceFile, ...]
    sha256: str  # over the names and contents of all files
    licence: str
    origins: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Raw:
    """A document as it was found: `error` says why there is no `text`."""

    id: str
    text: str
    n_bytes: int
    error: str = ""
    detail: str = ""
    code: str = ""  # programming language
    following: str = ""  # the name of the file that this page says is next


def open_source(source: Source, cache: Path) -> OpenedSource:
    """List and hash a source's files. ValueError if there are none that can be read."""
    origins: tuple[dict[str, str], ...] = ({"path": source.path},)
    if source.kind == "debian":
        packages = [get_package(wanted, cache) for wanted in source.packages]
        files = [file for package in packages for file in _files(package.folder, source, f"{package.name}/")]
        origins = tuple(
            {"package": p.name, "version": p.version, "sha256": p.sha256, "licences": "; ".join(p.licences)}
            for p in packages
        )
        licence = source.licence or "; ".join(dict.fromkeys(each for p in packages for each in p.licences))
    else:
        root = Path(source.path)
        if not root.exists():
            raise ValueError(f"source {source.name}: {root} does not exist")
        files = _files(root, source, "")
        licence = source.licence
    if not files:
        raise ValueError(
            f"source {source.name} has no file that kind {source.kind!r} reads: look at include and exclude"
        )
    return OpenedSource(source, tuple(files), _hash_of(files), licence or "not stated", origins)


def _files(root: Path, source: Source, prefix: str) -> list[SourceFile]:
    paths = (
        [root]
        if root.is_file()
        else sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    )
    found = []
    for path in paths:
        inside = path.name if path == root else path.relative_to(root).as_posix()
        if _is_wanted(inside, source):
            found.append(SourceFile(str(path), prefix + inside, path.stat().st_size))
    return found


def _is_wanted(inside: str, source: Source) -> bool:
    if any(fnmatch.fnmatchcase(inside, pattern) for pattern in source.exclude):
        return False
    if source.include:
        return any(fnmatch.fnmatchcase(inside, pattern) for pattern in source.include)
    bare = inside.removesuffix(".gz")
    if source.kind == "code":
        return language_of_code(bare) != ""
    endings = {
        "jsonl": (".jsonl", ".jsonl.gz", ".json.gz"),
        "parquet": (".parquet",),
        "warc": (".warc", ".warc.gz"),
    }.get(source.kind)
    return inside.endswith(endings) if endings else bare.endswith((*_HTML, *_TEXT, ".page"))


def _hash_of(files: list[SourceFile]) -> str:
    total = hashlib.sha256()
    for file in files:
        with Path(file.path).open("rb") as opened:
            total.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def read_file(file: SourceFile, source: Source) -> Iterator[Raw]:
    """The documents of a file. What can't be read is a Raw with an error: nothing is passed over. Of a file that is
    damaged further on, the documents before that place count.
    """
    readers = {"jsonl": _jsonl, "parquet": _parquet, "warc": _warc}
    if source.kind not in readers:
        yield _single(file, source)
        return
    try:
        yield from readers[source.kind](file, source)
    except _damages() as error:
        yield Raw(f"{source.name}:{file.name}", "", file.n_bytes, "damaged file", f"{type(error).__name__}: {error}")


def _damages() -> tuple[type[Exception], ...]:
    """What readers raise where a file is cut short or isn't what its name says."""
    found: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, struct.error)
    if find_spec("pyarrow") is not None:
        from pyarrow import ArrowException

        found += (ArrowException,)
    if find_spec("warcio") is not None:
        from warcio.exceptions import ArchiveLoadFailed

        found += (ArchiveLoadFailed,)
    return found


def _single(file: SourceFile, source: Source) -> Raw:
    name = f"{source.name}:{file.name}"
    if file.n_bytes > MAX_BYTES:
        return Raw(name, "", file.n_bytes, "file too large", f"{file.n_bytes} bytes, at most {MAX_BYTES}")
    try:
        data = Path(file.path).read_bytes()
        bare = file.name
        if bare.endswith(".gz"):
            data, bare = gzip.decompress(data), bare.removesuffix(".gz")
    except (OSError, EOFError, zlib.error) as error:
        return Raw(name, "", file.n_bytes, "damaged file", f"{type(error).__name__}: {error}")
    if source.kind == "code":
        return _decoded(name, data, code=language_of_code(bare) or "other")
    if bare.endswith(".page"):
        return _extracted(name, data, "mallard")
    if bare.endswith(_HTML):
        return replace(_extracted(name, data, "html"), following=next_page(data, file.name))
    return _decoded(name, data)


def _extracted(name: str, data: bytes | str, markup: str) -> Raw:
    if not data.strip():
        return Raw(name, "", len(data), "empty file")
    try:
        text = mallard_to_markdown(data) if markup == "mallard" and isinstance(data, bytes) else html_to_markdown(data)
    except ValueError as error:
        return Raw(name, "", len(data), "markup that can't be parsed", str(error))
    except RecursionError:
        return Raw(name, "", len(data), "markup nested too deep")
    return Raw(name, text, len(data)) if text else Raw(name, "", len(data), "no text in the page")


def _decoded(name: str, data: bytes, code: str = "") -> Raw:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Raw(name, "", len(data), "not UTF-8", f"at byte {error.start}", code)
    if "\0" in text:
        return Raw(name, "", len(data), "binary file", code=code)
    text = text.replace("\r\n", "\n")
    return Raw(name, text, len(data), code=code) if text.strip() else Raw(name, "", len(data), "empty file", code=code)


def _record(name: str, value: object, source: Source) -> Raw:
    if not isinstance(value, str):
        return Raw(name, "", 0, f"no string under {source.text_key!r}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return Raw(name, "", len(value), "half a surrogate pair")
    if source.text_format == "html":
        return _extracted(name, value, "html")
    return Raw(name, value, len(value)) if value.strip() else Raw(name, "", len(value), "empty text")


def _jsonl(file: SourceFile, source: Source) -> Iterator[Raw]:
    with gzip.open(file.path, "rb") if file.path.endswith(".gz") else open(file.path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            name = f"{source.name}:{file.name}:{number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                yield Raw(name, "", len(line), "not JSON", str(error))
                continue
            yield _record(name, record.get(source.text_key) if isinstance(record, dict) else None, source)


def _parquet(file: SourceFile, source: Source) -> Iterator[Raw]:
    import pyarrow.parquet as parquet

    opened = parquet.ParquetFile(file.path)
    if source.text_key not in opened.schema_arrow.names:
        raise ValueError(
            f"{file.path} has no column {source.text_key!r}; it has {', '.join(opened.schema_arrow.names)}"
        )
    number = 0
    for batch in opened.iter_batches(batch_size=256, columns=[source.text_key]):
        for value in batch.column(0).to_pylist():
            number += 1
            yield _record(f"{source.name}:{file.name}:{number}", value, source)


def _warc(file: SourceFile, source: Source) -> Iterator[Raw]:
    """Pages of a web archive. What a page is, is read off its first bytes where no header says it: headers are often
    missing, and pages without them must not vanish.
    """
    from warcio.archiveiterator import ArchiveIterator

    end = 0
    with Path(file.path).open("rb") as opened:
        records = ArchiveIterator(opened)
        for number, record in enumerate(records, start=1):
            if record.rec_type not in ("response", "resource", "conversion"):
                end = records.get_record_offset() + records.get_record_length()
                continue  # requests and descriptions of the archive: no documents
            name = f"{source.name}:{file.name}:{number}:{record.rec_headers.get_header('WARC-Target-URI') or ''}"
            status = record.http_headers.get_statuscode() if record.http_headers else "200"
            kind = _kind_of_record(record)
            data = record.content_stream().read()
            missing = getattr(record.raw_stream, "limit", 0)
            end = records.get_record_offset() + records.get_record_length()
            if missing:
                yield Raw(name, "", len(data), "damaged record", f"{missing} bytes are missing")
            elif status and not status.startswith("2"):
                yield Raw(name, "", len(data), "status is not 2xx", status)
            elif "html" in kind or (not kind and data[:1024].lstrip()[:1] == b"<"):
                yield _extracted(name, data, "html")
            elif kind.startswith("text/plain"):
                yield _decoded(name, data)
            else:
                yield Raw(name, "", len(data), "neither HTML nor text", kind or "no content type")
    if file.n_bytes - end > _LINE_ENDS:  # the iterator ends in silence where a record has no readable beginning
        name = f"{source.name}:{file.name}"
        yield Raw(name, "", file.n_bytes - end, "damaged file", f"no record from byte {end} on, of {file.n_bytes}")


_LINE_ENDS = 4  # bytes behind the last record


def _kind_of_record(record: object) -> str:
    headers = (record.rec_headers.get_header("WARC-Identified-Payload-Type"), None)  # type: ignore[attr-defined]
    http = record.http_headers.get_header("Content-Type") if record.http_headers else None  # type: ignore[attr-defined]
    own = record.rec_headers.get_header("Content-Type")  # type: ignore[attr-defined]
    kind = headers[0] or http or (own if own and not own.startswith("application/http") else "")
    return str(kind or "").lower()
