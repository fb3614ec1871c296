"""Text with its formatting out of HTML, XHTML and Mallard: our parser (paper section 5.2, "text and formatting").

Headings, lists, definition lists, tables, quotes and code come out as Markdown; menus, sidebars, scripts and lists of
links don't. A page is walked once, so a core does some 15 MB of HTML a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SKIPPED = _words(
    "script style head noscript template nav footer aside form button select option input textarea iframe object embed "
    "svg canvas math audio video map info desc link-list colgroup col title-hidden"
)
_INLINE = _words(
    "a abbr acronym app b bdi bdo big cite cmd code data del dfn em file font gui guiseq i input ins kbd key keyseq "
    "label link mark q ruby rb rt s samp small span strike strong sub sup sys time tt u var wbr output img br"
)
_CODE = frozenset(("code", "tt", "kbd", "samp", "cmd", "file"))
_BOLD, _ITALIC = frozenset(("b", "strong")), frozenset(("i", "em", "cite", "dfn", "var"))
_HEADINGS = {f"h{n}": n for n in range(1, 7)}
_LISTS = frozenset(("ul", "ol", "menu", "dir", "list", "steps"))
_PREFORMATTED = frozenset(("pre", "screen", "listing", "xmp"))
_MENU_NAMES = re.compile(
    r"(?:^|[\s_-])(?:nav|navigation|navbar|navheader|navfooter|sidebar|sphinxsidebar|related|breadcrumbs?|menu|"
    r"footer|cookie|banner|pagination|toc|tableofcontents|contents-menu|headerlink|skip-link|search|editsection|"
    r"printfooter|catlinks|linenos|noprint)(?:$|[\s_-])",
    re.IGNORECASE,
)
_MENU_ROLES = frozenset(("navigation", "search", "banner", "contentinfo", "complementary"))
_LANGUAGE_OF_CODE = re.compile(r"(?:^|\s)(?:language|lang|highlight|brush:?|sourceCode)[- ]([A-Za-z0-9+#]+)")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff¶\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_MENU_LINKS = 0.8  # a list of which so large a share is link text is a menu, if it has several entries


def html_to_markdown(page: bytes | str) -> str:
    """Markdown of an HTML page or an XHTML one; empty if it holds no text. ValueError if it can't be parsed at all."""
    from lxml import etree, html

    parser = html.HTMLParser(encoding="utf-8" if isinstance(page, str) or _is_utf8(page) else _declared(page))
    try:
        root = html.document_fromstring(page.encode() if isinstance(page, str) else page, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError, AssertionError, LookupError) as error:
        raise ValueError(f"not HTML that can be read: {error}") from None
    return _markdown(_content(root))


def mallard_to_markdown(page: bytes) -> str:
    """Markdown of a page in Mallard, GNOME's documentation format: `section` nests, its `title` is a heading."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, recover=True, huge_tree=False)
    root = etree.fromstring(page, parser=parser)
    if root is None:
        raise ValueError("not XML that can be read")
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return _markdown(root)


def _is_utf8(page: bytes) -> bool:
    try:
        page.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _declared(page: bytes) -> str:
    found = re.search(rb"charset=[\"']?([A-Za-z0-9_-]+)", page[:4096])
    declared = found.group(1).decode().lower() if found else "cp1252"
    return "cp1252" if declared in ("utf-8", "utf8", "iso-8859-1", "ascii") else declared


def _content(root: Any) -> Any:
    """What the page is about, where it says so."""
    for path in (".//main", ".//*[@role='main']", ".//article"):
        found = root.findall(path)
        if len(found) == 1:
            return found[0]
    body = root.find(".//body")
    return root if body is None else body


def _markdown(root: Any) -> str:
    blocks: list[str] = []
    _blocks(root, blocks, 1)
    text = "\n\n".join(block for block in blocks if block.strip())
    return text + "\n" if text else ""


def _blocks(element: Any, out: list[str], depth: int) -> None:
    """Append the blocks below `element`; what stands beside blocks becomes a paragraph. `depth`: of sections
    in Mallard.
    """
    run = [element.text or ""]

    def flush() -> None:
        if (paragraph := _squeezed("".join(run))) != "":
            out.append(paragraph)
        run.clear()

    for child in element:
        tag = child.tag
        if isinstance(tag, str) and tag not in _SKIPPED:
            if tag in _INLINE and not _holds_code_block(child, tag):
                run.append(_inline_of(child, tag))
            elif not _is_menu(child):
                flush()
                _block(child, tag, out, depth)
        run.append(child.tail or "")
    flush()


def _holds_code_block(element: Any, tag: str) -> bool:
    """Mallard's `code` beside paragraphs is a block; in HTML it is inline."""
    return tag == "code" and element.get("mime") is not None


def _block(element: Any, tag: str, out: list[str], depth: int) -> None:
    if tag in _HEADINGS:
        _append_heading(out, _HEADINGS[tag], element)
    elif tag == "title":
        _append_heading(out, min(depth, 6), element)
    elif tag in _PREFORMATTED or tag == "code":
        _append_code(out, element)
    elif tag in _LISTS:
        if not _is_list_of_links(element):
            out.extend(_list(element, tag, depth))
    elif tag in ("dl", "terms"):
        out.extend(_definitions(element, depth))
    elif tag == "table":
        _table(element, out, depth)
    elif tag == "blockquote":
        quoted: list[str] = []
        _blocks(element, quoted, depth)
        out.extend("\n".join("> " + line for line in block.split("\n")) for block in quoted)
    elif tag != "hr":
        _blocks(element, out, depth + (tag == "section"))


def _append_heading(out: list[str], level: int, element: Any) -> None:
    if text := _squeezed(_inline(element)).replace("**", "").replace("\n", " "):
        out.append("#" * level + " " + text)


def _append_code(out: list[str], element: Any) -> None:
    code = _INVISIBLE.sub("", "".join(element.itertext())).replace("\r", "").strip("\n").rstrip()
    if not code.strip():
        return
    fence = "````" if "```" in code else "```"
    out.append(f"{fence}{_code_language(element)}\n{code}\n{fence}")


def _code_language(element: Any) -> str:
    for each in (element, *element.iterchildren("code"), *element.iterancestors("div")):
        names = each.get("class") or ""
        if (found := _LANGUAGE_OF_CODE.search(names)) and found.group(1) not in (
            "default",
            "none",
            "text",
            "notranslate",
        ):
            return found.group(1).lower()
    return ""


def _list(element: Any, tag: str, depth: int) -> Iterator[str]:
    """One block a list: items under each other, what they hold indented below them."""
    items: list[str] = []
    for child in element:
        if child.tag in ("li", "item") or child.tag in _LISTS:
            inside: list[str] = []
            _blocks(child, inside, depth)
            mark = f"{len(items) + 1}. " if tag in ("ol", "steps") else "- "
            if inside:
                items.append(mark + _indented("\n".join(inside), len(mark)))
    if items:
        yield "\n".join(items)


def _indented(text: str, width: int) -> str:
    return text.replace("\n", "\n" + " " * width)


def _definitions(element: Any, depth: int) -> Iterator[str]:
    for child in element:
        if child.tag == "dt":
            if term := _squeezed(_inline(child)):
                yield term
        elif child.tag in ("dd", "item", "div"):
            inside: list[str] = []
            _blocks(child, inside, depth)
            if inside and child.tag == "dd":
                yield ": " + _indented("\n".join(inside), 2)
            else:
                yield from inside


def _table(element: Any, out: list[str], depth: int) -> None:
    """Rows with pipes if the cells hold lines; a table that lays out a page is read cell by cell."""
    rows = [row for row in element.iter("tr") if next(row.iterancestors("table")) is element]
    cells = [[cell for cell in row if cell.tag in ("td", "th")] for row in rows]
    cells = [row for row in cells if row]
    if not cells:
        return
    if max(map(len, cells)) < 2 or any(_is_layout(cell) for row in cells for cell in row):
        for cell in (cell for row in cells for cell in row if not _is_menu(cell)):
            _blocks(cell, out, depth)
        return
    lines = [[_one_line(cell, depth) for cell in row] for row in cells]
    lines = [row for row in lines if any(row)]
    if not lines:
        return
    width = max(map(len, lines))
    text = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in lines]
    out.append("\n".join([text[0], "|" + " --- |" * width, *text[1:]]))


def _one_line(cell: Any, depth: int) -> str:
    inside: list[str] = []
    _blocks(cell, inside, depth)
    return " ".join("\n".join(inside).split()).replace("|", "\\|")


def _is_layout(cell: Any) -> bool:
    """Code, tables, headings or many paragraphs: more than a line of text."""
    paragraphs = 0
    for inner in cell.iterdescendants():
        tag = inner.tag
        if tag in _HEADINGS or tag in ("pre", "table", "section"):
            return True
        paragraphs += tag in ("p", "li")
    return paragraphs > 6


def _is_menu(element: Any) -> bool:
    if element.get("role") in _MENU_ROLES or element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return True
    return any(_MENU_NAMES.search(value) for value in (element.get("class"), element.get("id")) if value)


def _is_list_of_links(element: Any) -> bool:
    links = element.findall(".//a")
    if len(links) < 4:
        return False
    linked = sum(len("".join(link.itertext()).strip()) for link in links)
    return linked > _MENU_LINKS * len("".join("".join(element.itertext()).split()))


def _inline(element: Any) -> str:
    """The text of what is inside an element, emphasis and code marked; white space is squeezed by the caller."""
    parts = [element.text or ""]
    for child in element:
        tag = child.tag
        if isinstance(tag, str) and tag not in _SKIPPED and child.get("class") != "headerlink":
            parts.append(_inline_of(child, tag))
        parts.append(child.tail or "")
    return "".join(parts)


def _inline_of(element: Any, tag: str) -> str:
    if tag == "br":
        return "\x1e"
    if tag in _CODE:
        return _marked("".join(element.itertext()), "`")
    if tag in _BOLD:
        return _marked(_inline(element), "**")
    if tag in _ITALIC:
        return _marked(_inline(element), "*")
    return _inline(element) + ("" if tag in _INLINE else " ")


def _marked(text: str, mark: str) -> str:
    inner = text.strip()
    if not inner or mark in inner or (mark != "`" and "*" in inner):
        return text
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before}{mark}{inner}{mark}{after}"


def _squeezed(text: str) -> str:
    """White space to single spaces; line breaks (held as U+001E) to newlines."""
    if "\x1e" not in text:
        return " ".join(_INVISIBLE.sub("", text).split())
    lines = (" ".join(_INVISIBLE.sub("", line).split()) for line in text.split("\x1e"))
    return "\n".join(line for line, _ in groupby(lines)).strip()
