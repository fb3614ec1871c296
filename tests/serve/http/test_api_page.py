"""docs/serving/api.md is what the server describes."""

import re
from pathlib import Path

from plait.serve.http.api_page import main, page
from plait.serve.http.openapi import describe

FILE = Path(__file__).parents[3] / "docs/serving/api.md"


def test_the_page_is_current(tmp_path: Path) -> None:
    main(str(tmp_path / "api.md"))
    made = (tmp_path / "api.md").read_text()
    assert FILE.read_text() == made, "run: python -m plait.serve.http.api_page docs/serving/api.md"


def test_it_has_every_path_field_and_link() -> None:
    text, found = page(), describe()
    assert all(f"/{path.lstrip('/')}\n" in text for path in found["paths"])
    for name, schema in found["components"]["schemas"].items():
        section = text.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert all(f"`{field}`" in section for field in schema.get("properties", {})), name
    anchors = {line.strip("# ").lower() for line in text.splitlines() if line.startswith("### ")}
    assert set(re.findall(r"\(#([a-z]+)\)", text)) <= anchors
