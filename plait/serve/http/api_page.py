"""The API's reference as Markdown, from the OpenAPI description: `python -m plait.serve.http.api_page FILE`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.serve.http.openapi import describe

Schema = dict[str, Any]

_TOP = """# API reference

Made of the server's own description (`GET /openapi.json`) by
`python -m plait.serve.http.api_page docs/serving/api.md`; a test fails when it is out of date. How to use it is in
[README.md](README.md).

Fields of bodies in **bold** must be given, all others may be left out or null; those of answers in **bold** are always
there. "Ours" marks what OpenAI's API hasn't. Bodies are JSON and are sent as `Content-Type: application/json`; with a
key, `Authorization: Bearer KEY`.
"""


def page() -> str:
    found = describe()
    schemas: dict[str, Schema] = found["components"]["schemas"]
    parts = [_TOP]
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            parts += _operation(f"{method.upper()} {path}", operation)
    parts.append("## Errors\n")
    errors = next(iter(found["paths"].values()))["post"]["responses"]
    rows = ((status, said["description"]) for status, said in errors.items() if status != "200")
    parts += [_table(("status", "when"), rows), f"The body is always an {_link('ErrorReply')}.\n", "## Objects\n"]
    for name, schema in sorted(schemas.items()):
        parts += [f"### {name}\n", *_object(schema)]
    return "\n".join(parts).rstrip() + "\n"


def _operation(title: str, operation: Schema) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"{operation['summary']}. {operation.get('description', '')}".rstrip() + "\n"
    if "requestBody" in operation:
        kind, body = next(iter(operation["requestBody"]["content"].items()))
        fields = "" if "$ref" in body["schema"] else f" of {' and '.join(map(_code, body['schema']['properties']))}"
        yield f"Body: {_type(body['schema']) if not fields else f'a form (`{kind}`)'}{fields}."
    query = [p for p in operation.get("parameters", ()) if p["in"] == "query"]
    if query:
        yield "Query: " + ", ".join(f"{_code(p['name'])} ({_type(p['schema'])})" for p in query) + "."
    content = operation["responses"]["200"]["content"]
    whole = content.get("application/json") or next(iter(content.values()))
    yield f"Answer: {_type(whole['schema'])}.\n"


def _object(schema: Schema) -> Iterator[str]:
    if "description" in schema:
        yield _one_line(schema["description"]) + "\n"
    required, fields = schema.get("required", ()), schema.get("properties", {})
    rows = (
        (f"**`{name}`**" if name in required else f"`{name}`", _type(field), _one_line(field.get("description", "")))
        for name, field in fields.items()
    )
    yield _table(("field", "is", ""), rows) if fields else f"{_type(schema)}\n"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _code(name: str) -> str:
    return f"`{name}`"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _type(schema: Schema) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    for joined in ("anyOf", "oneOf"):
        if joined in schema:
            kinds = [_type(kind) for kind in schema[joined] if kind.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"`{_literal(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{_literal(value)}`" for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        places = schema.get("prefixItems")
        items = " and ".join(map(_type, places)) if places else _type(schema.get("items", {}))
        return f"list of {items}{_bounds(schema, 'minItems', 'maxItems')}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"object of {_type(values)}" if isinstance(values, dict) and values else "object"
    return str(kind) + _bounds(schema, "minimum", "maximum", "exclusiveMinimum")


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bounds(schema: Schema, low: str, high: str, above: str = "") -> str:
    huge = 2**31 - 1
    parts = [f"above {schema[above]:g}"] if above in schema else []
    parts += [f"from {schema[low]:g}"] if abs(schema.get(low, -huge)) < huge else []
    parts += [f"to {schema[high]:g}"] if abs(schema.get(high, huge)) < huge else []
    return f", {' '.join(parts)}" if parts else ""


def main(target: str) -> None:
    file = Path(target)
    part = file.with_suffix(".partial")
    part.write_text(page(), encoding="utf-8")
    os.replace(part, file)


if __name__ == "__main__":
    main(sys.argv[1])
