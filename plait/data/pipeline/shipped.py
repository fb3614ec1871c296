"""Data recipes that ship: what goes in, how much comes out, how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import resources

from plait.data.pipeline.recipe import BuildRecipe, Languages, Source, Tokens

_OFFICE = tuple(f"libreoffice-help-{code}" for code in ("en-us", "es", "fr", "pt", "it", "nl", "de"))


def novels() -> BuildRecipe:
    """The two novels that ship, in whole books: no network, seconds. For a first look at a funnel."""
    corpus = resources.files("plait.data") / "corpus"
    source = Source("austen", "files", path=str(corpus), include=("*.txt",), licence="public domain")
    return BuildRecipe("novels", (source,), tokens=Tokens(vocab_size=4096, heldout_share=0.0))


def small_docs() -> BuildRecipe:
    """Three of debian_docs' packages: a long book on anarchism, PostgreSQL's manual, GNOME's help in seven languages.
    18 MB to download, a minute; what the `_cpu` recipes of the training stages read.
    """
    chosen = {"anarchism", "postgresql", "gnome"}
    sources = tuple(source for source in debian_docs().sources if source.name in chosen)
    return BuildRecipe("small_docs", sources, tokens=Tokens(vocab_size=8192, heldout_share=0.02), task_megabytes=8)


def debian_docs() -> BuildRecipe:
    """Ten documentation packages of Debian (LibreOffice's in seven languages): manuals, books and reference in the nine
    languages of the paper. 160 MB to download.
    """
    return BuildRecipe(
        "debian_docs",
        (
            Source(
                "linux", "debian", packages=("linux-doc-6.1",), include=("*/html/*.html",), exclude=("*/genindex*",)
            ),
            Source("python", "debian", packages=("python3.11-doc",), include=("*/html/*.html",)),
            Source("rust", "debian", packages=("rust-doc",), include=_RUST_BOOKS),
            Source("anarchism", "debian", packages=("anarchism",)),
            Source("postgresql", "debian", packages=("postgresql-doc-15",), include=("*.html",)),
            Source("cppreference", "debian", packages=("cppreference-doc-en-html",), include=("*.html",)),
            Source("handbook", "debian", packages=("debian-handbook",), include=("*.html",)),
            Source("installation", "debian", packages=("installation-guide-amd64",), include=("*.html",)),
            Source("libreoffice", "debian", packages=_OFFICE, include=("*.html",)),
            Source("gnome", "debian", packages=("gnome-user-docs",), include=("*.page",)),
        ),
    )


def debian_docs_all_languages() -> BuildRecipe:
    """The same in every language that the packages have: 26 in the handbook, 50 in GNOME's."""
    return replace(debian_docs(), name="debian_docs_all_languages", languages=Languages(keep=()))


_RUST_BOOKS = tuple(
    f"*/html/{book}/*.html"
    for book in (
        "book", "reference", "nomicon", "rust-by-example", "cargo", "edition-guide", "embedded-book", "rustc",
        "rustdoc", "unstable-book",
    )
)  # fmt: skip

SHIPPED: dict[str, Callable[[], BuildRecipe]] = {
    recipe.__name__: recipe for recipe in (novels, small_docs, debian_docs, debian_docs_all_languages)
}
