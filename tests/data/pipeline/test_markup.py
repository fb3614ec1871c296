"""HTML, XHTML and Mallard to Markdown: text and formatting kept, menus left out."""

import pytest

from plait.data.pipeline.markup import html_to_markdown, mallard_to_markdown


def body(inner: str) -> str:
    return f"<html><head><title>t</title><style>p {{}}</style></head><body>{inner}</body></html>"


@pytest.mark.parametrize(
    ("page", "markdown"),
    [
        ("<h1>One</h1><h3>Three <a class='headerlink' href='#x'>¶</a></h3>", "# One\n\n### Three\n"),
        (
            "<p>A <b>bold</b>, <i>slanted</i>\n  and <code>x = 1</code> word.</p>",
            "A **bold**, *slanted* and `x = 1` word.\n",
        ),
        ("one<br>two<p>three</p>four", "one\ntwo\n\nthree\n\nfour\n"),
        ("<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li></ul>", "- a\n- b\n  1. c\n  2. d\n"),
        ("<dl><dt>term</dt><dd>what it <em>is</em></dd></dl>", "term\n\n: what it *is*\n"),
        ("<blockquote><p>a</p><p>b</p></blockquote>", "> a\n\n> b\n"),
        (
            "<table><tr><th>n</th><th>x|y</th></tr><tr><td>1</td><td>a<br>b</td></tr><tr><td>2</td></tr></table>",
            "| n | x\\|y |\n| --- | --- |\n| 1 | a b |\n| 2 |  |\n",
        ),
        (
            "<div class='highlight-python3 notranslate'><pre><span>def</span> f():\n    return 1\n</pre></div>",
            "```python3\ndef f():\n    return 1\n```\n",
        ),
        ("<pre>a ``` b</pre>", "````\na ``` b\n````\n"),
        ("<table><tr><td><h2>Lay</h2><p>out</p></td><td><p>right</p></td></tr></table>", "## Lay\n\nout\n\nright\n"),
        ("<p>שלום עולם</p><p>می‌خواهم</p>", "שלום עולם\n\nمی‌خواهم\n"),
    ],
)
def test_formatting_is_kept(page: str, markdown: str) -> None:
    assert html_to_markdown(body(page)) == markdown


@pytest.mark.parametrize(
    "menu",
    [
        "<nav><a href=a>Up</a></nav>",
        "<div class='sphinxsidebar'><p>Up</p></div>",
        "<div role='navigation'>Up</div>",
        "<script>Up()</script>",
        "<footer>Up</footer>",
        "<div id='toc'><ul><li>Up</li></ul></div>",
        "<ul>" + "<li><a href=x>Up and away</a></li>" * 6 + "</ul>",
        "<!-- Up -->",
        "<form><select><option>Up</option></select></form>",
    ],
)
def test_menus_are_left_out(menu: str) -> None:
    assert html_to_markdown(body(f"<p>Text.</p>{menu}<p>More.</p>")) == "Text.\n\nMore.\n"


def test_a_list_with_links_and_text_stays() -> None:
    items = "".join(f"<li><a href=x>Part {k}</a> tells how part {k} works and what it needs.</li>" for k in range(6))
    assert html_to_markdown(body(f"<ul>{items}</ul>")).count("tells how part") == 6


def test_only_the_main_part_where_a_page_names_it() -> None:
    assert html_to_markdown(body("<p>around</p><main><p>inside</p></main>")) == "inside\n"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "iso-8859-15"])
def test_declared_encodings(encoding: str) -> None:
    page = body("<p>café – naïve</p>").replace("–", "-").replace("<head>", f"<head><meta charset='{encoding}'>")
    assert html_to_markdown(page.encode(encoding)) == "café - naïve\n"


def test_xhtml_with_a_declaration() -> None:
    page = (
        b'<?xml version="1.0" encoding="UTF-8"?><html xmlns="http://www.w3.org/1999/xhtml"><body><p>a</p></body></html>'
    )
    assert html_to_markdown(page) == "a\n"


def test_mallard() -> None:
    page = b"""<page xmlns="http://projectmallard.org/1.0/"><info><desc>not this</desc></info><title>Help</title>
    <p>Open the <app>Files</app> app.</p><steps><item><p>Click <gui>New</gui>.</p></item></steps>
    <section><title>More</title><screen>ls -l</screen></section></page>"""
    assert mallard_to_markdown(page) == "# Help\n\nOpen the Files app.\n\n1. Click New.\n\n## More\n\n```\nls -l\n```\n"


def test_entities_are_not_read_from_elsewhere() -> None:
    page = b'<!DOCTYPE page [<!ENTITY x SYSTEM "file:///etc/hostname">]><page><p>a&x;b</p></page>'
    assert mallard_to_markdown(page).replace(" ", "") == "ab\n"


def test_no_text_is_empty_and_nonsense_an_error() -> None:
    assert html_to_markdown(body("<nav>menu</nav>")) == ""
    with pytest.raises(ValueError, match="not HTML"):
        html_to_markdown("")
