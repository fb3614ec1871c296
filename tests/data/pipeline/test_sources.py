"""Every kind of source: its documents, and what can't be read is told and not passed over."""

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.data.pipeline.debian import get_package
from plait.data.pipeline.recipe import Source
from plait.data.pipeline.sources import Raw, open_source, read_file

PAGE = "<html><body><p>A page of text.</p></body></html>"


def read(source: Source, cache: Path) -> list[Raw]:
    opened = open_source(source, cache)
    return [raw for file in opened.files for raw in read_file(file, source)]


def test_files_by_their_endings(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b" / "c.txt.gz").write_bytes(gzip.compress(b"zipped\r\ntext"))
    (tmp_path / "d.md").write_text("# kept as it is\n")
    (tmp_path / "e.png").write_bytes(b"\x89PNG")
    found = read(Source("s", "files", path=str(tmp_path)), tmp_path)
    assert [(raw.id, raw.text) for raw in found] == [
        ("s:a.html", "A page of text.\n"),
        ("s:b/c.txt.gz", "zipped\ntext"),
        ("s:d.md", "# kept as it is\n"),
    ]
    only = Source("s", "files", path=str(tmp_path), include=("*.md", "*.html"), exclude=("a.*",))
    assert [raw.id for raw in read(only, tmp_path)] == ["s:d.md"]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        json.dumps({"body": "text"}),
        "",
        "{",
        json.dumps({"body": 3}),
        json.dumps({"body": "a\ud800"}),
        json.dumps(["x"]),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = read(Source("s", "jsonl", path=str(tmp_path), text_key="body"), tmp_path)
    assert [(raw.id, raw.text, raw.error) for raw in found] == [
        ("s:a.jsonl:1", "text", ""),
        ("s:a.jsonl:3", "", "not JSON"),
        ("s:a.jsonl:4", "", "no string under 'body'"),
        ("s:a.jsonl:5", "", "half a surrogate pair"),
        ("s:a.jsonl:6", "", "no string under 'body'"),
    ]


def test_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"page": [PAGE, None], "n": [1, 2]}), tmp_path / "a.parquet")
    source = Source("s", "parquet", path=str(tmp_path / "a.parquet"), text_key="page", text_format="html")
    assert [(raw.text, raw.error) for raw in read(source, tmp_path)] == [
        ("A page of text.\n", ""),
        ("", "no string under 'page'"),
    ]
    with pytest.raises(ValueError, match="has no column 'text'; it has page, n"):
        read(Source("s", "parquet", path=str(tmp_path)), tmp_path)


def test_warc_pages_without_headers_do_not_vanish(tmp_path: Path) -> None:
    writer_of = pytest.importorskip("warcio.warcwriter")
    headers = pytest.importorskip("warcio.statusandheaders")
    with (tmp_path / "a.warc.gz").open("wb") as out:
        writer = writer_of.WARCWriter(out, gzip=True)

        def add(url: str, body: bytes, kind: str, status: str = "200 OK", record: str = "response") -> None:
            http = headers.StatusAndHeaders(status, [("Content-Type", kind)] if kind else [], protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record(url, record, payload=io.BytesIO(body), http_headers=http))

        add("http://a/html", PAGE.encode(), "text/html; charset=utf-8")
        add("http://a/xhtml", PAGE.encode(), "application/xhtml+xml")
        add("http://a/bare", PAGE.encode(), "")
        add("http://a/plain", b"plain text", "text/plain")
        add("http://a/picture", b"\x89PNG", "image/png")
        add("http://a/gone", PAGE.encode(), "text/html", "404 Not Found")
        add("http://a/asked", b"", "text/html", record="request")
    found = read(Source("s", "warc", path=str(tmp_path)), tmp_path)
    assert [(raw.id.rpartition("/")[2], raw.text, raw.error) for raw in found] == [
        ("html", "A page of text.\n", ""),
        ("xhtml", "A page of text.\n", ""),
        ("bare", "A page of text.\n", ""),
        ("plain", "plain text", ""),
        ("picture", "", "neither HTML nor text"),
        ("gone", "", "status is not 2xx"),
    ]


def test_code_knows_its_language(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.so").write_bytes(b"\0")
    (tmp_path / "c.c").write_bytes(b"int x;\0")
    found = read(Source("s", "code", path=str(tmp_path)), tmp_path)
    assert [(raw.id, raw.code, raw.error) for raw in found] == [("s:a.py", "python", ""), ("s:c.c", "c", "binary file")]


@pytest.fixture
def make_deb(tmp_path: Path) -> Callable[[], Path]:
    """A package of two files, made by hand as an ar archive."""

    def make() -> Path:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            for name, content in {
                "./usr/share/doc/tiny-doc/index.html": PAGE.encode(),
                "./usr/share/doc/tiny-doc/copyright": b"Files: *\nLicense: GPL-2+\n\nLicense: MIT\n",
            }.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        path = tmp_path / "cache" / "tiny-doc_1%3a2.0-1_all.deb"
        path.parent.mkdir()
        parts = [("debian-binary", b"2.0\n"), ("control.tar.gz", _empty_tar()), ("data.tar.gz", data.getvalue())]
        with path.open("wb") as deb:
            deb.write(b"!<arch>\n")
            for name, content in parts:
                deb.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
                deb.write(content + b"\n" * (len(content) % 2))
        return path

    return make


def _empty_tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz"):
        pass
    return data.getvalue()


def test_debian_packages_by_name_and_hash(tmp_path: Path, make_deb: Callable[[], Path]) -> None:
    if subprocess.run(["which", "dpkg-deb"], capture_output=True, check=False).returncode:
        pytest.skip("dpkg-deb is not on this machine")
    deb = make_deb()
    package = get_package("tiny-doc", deb.parent)
    assert (package.version, package.licences) == ("1:2.0-1", ("GPL-2+", "MIT"))
    opened = open_source(
        Source("s", "debian", packages=(f"tiny-doc={package.sha256}",), include=("*.html",)), deb.parent
    )
    assert opened.licence == "GPL-2+; MIT"
    assert opened.origins[0]["sha256"] == package.sha256
    (raw,) = read_file(opened.files[0], opened.source)
    assert (raw.id, raw.text) == ("s:tiny-doc/usr/share/doc/tiny-doc/index.html", "A page of text.\n")
    with pytest.raises(ValueError, match="the recipe asks for 00"):
        get_package("tiny-doc=00", deb.parent)
    with pytest.raises(ValueError, match="not the name of a Debian package"):
        get_package("../etc", deb.parent)


def test_what_is_wrong_with_a_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_source(Source("s", "files", path=str(tmp_path / "nowhere")), tmp_path)
    with pytest.raises(ValueError, match="has no file that kind 'jsonl' reads"):
        open_source(Source("s", "jsonl", path=str(tmp_path)), tmp_path)
    for wrong, message in (
        ({"name": "a/b", "kind": "files", "path": "x"}, "letters, digits"),
        ({"name": "a", "kind": "zip", "path": "x"}, "must be one of files, code"),
        ({"name": "a", "kind": "debian", "path": "x"}, "takes packages and no path"),
        ({"name": "a", "kind": "files"}, "every other kind a path"),
    ):
        with pytest.raises(ValueError, match=message):
            Source(**wrong)  # type: ignore[arg-type]


def damaged(whole: bytes) -> list[bytes]:
    """Cut short, with bytes changed inside, and not what the name says."""
    broken = bytearray(whole)
    for place in range(len(whole) // 2, len(whole) // 2 + 24):
        broken[place] ^= 0xFF
    return [whole[: len(whole) * 2 // 3], bytes(broken), b"not what the name says", b""]


@pytest.mark.parametrize("kind", ["files", "jsonl", "parquet", "warc"])
def test_damaged_files_are_told_and_do_not_stop_a_build(kind: str, tmp_path: Path) -> None:
    text = "".join(json.dumps({"text": f"{n * 7919} documents of text"}) + "\n" for n in range(2000))
    name = {"files": "a.txt.gz", "jsonl": "a.jsonl.gz", "parquet": "a.parquet", "warc": "a.warc.gz"}[kind]
    path = tmp_path / name
    if kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"text": text.splitlines()}), path)
    elif kind == "warc":
        pytest.importorskip("warcio")
        pages = [gzip.compress(warc_record(f"http://x/{n}", PAGE * 40)) for n in range(40)]
        path.write_bytes(b"".join(pages))
    else:
        path.write_bytes(gzip.compress(text.encode()))
    source = Source("s", kind, path=str(tmp_path))  # type: ignore[arg-type]
    assert not any(raw.error for raw in read(source, tmp_path))
    whole = path.read_bytes()
    for content in damaged(whole):
        path.write_bytes(content)
        found = read(source, tmp_path)
        assert found or (kind != "files" and not content)
        errors = [(raw.error, bool(raw.detail)) for raw in found if raw.error]
        if content:
            assert errors, (kind, content[:30])
        if content in damaged(whole)[:2]:
            assert errors[-1] in (("damaged file", True), ("damaged record", True))


def warc_record(url: str, page: str) -> bytes:
    body = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{page}".encode()
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Record-ID: <urn:uuid:{url}>\r\n"
    head += "WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Type: application/http; msgtype=response\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"


def test_an_archive_without_compression_that_is_cut_short(tmp_path: Path) -> None:
    pytest.importorskip("warcio")
    whole = b"".join(warc_record(f"http://x/{n}", PAGE) for n in range(3))
    path = tmp_path / "a.warc"
    path.write_bytes(whole)
    source = Source("s", "warc", path=str(path))
    assert [raw.error for raw in read(source, tmp_path)] == ["", "", ""]
    path.write_bytes(whole[:-20])
    assert [raw.error for raw in read(source, tmp_path)] == ["", "", "damaged record"]
