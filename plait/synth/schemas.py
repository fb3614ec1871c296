"""Function schemas: checked with heuristics, and arguments checked against them (paper section 5.3, tool use).

A function is {"name", "description", "parameters"}, the parameters a JSON schema of type object; of JSON schema the
part that function descriptions use: type, properties, required, items, enum, default, bounds, lengths, pattern, format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

Function = dict[str, Any]
Schema = Mapping[str, Any]

TYPES = ("string", "integer", "number", "boolean", "array", "object")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{1,63}")
_MAX_PARAMETERS = 12
_MAX_DEPTH = 3
_MAX_ITEMS = 20
_FORMATS = {
    "email": re.compile(r"[^@\s]+@[^@\s]+\.[a-z]{2,}"),
    "uri": re.compile(r"[a-z][a-z0-9+.-]*://\S+"),
    "uuid": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "time": re.compile(r"\d\d:\d\d(?::\d\d)?(?:Z|[+-]\d\d:\d\d)?"),
}


def wrong_function(function: Any) -> str | None:
    """Why a function's schema should not be trained on, or None. The reason begins with its kind and a colon."""
    if not isinstance(function, dict) or not _NAME.fullmatch(str(function.get("name", ""))):
        return f"function name: {function.get('name') if isinstance(function, dict) else function!r}"
    if len(str(function.get("description") or "").split()) < 2:
        return f"function description: {function['name']} doesn't say what it does"
    parameters = function.get("parameters")
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        return f"function parameters: those of {function['name']} must be a schema of type object"
    if len(parameters.get("properties") or {}) > _MAX_PARAMETERS:
        return f"function parameters: {function['name']} has more than {_MAX_PARAMETERS}"
    wrong = _wrong_schema(parameters, function["name"], 0)
    return None if wrong is None else f"function schema: {wrong}"


def _wrong_schema(schema: Any, where: str, depth: int) -> str | None:
    if not isinstance(schema, dict) or schema.get("type") not in TYPES:
        kind = schema.get("type") if isinstance(schema, dict) else schema
        return f"{where} has type {kind!r}, not one of {', '.join(TYPES)}"
    if depth > _MAX_DEPTH:
        return f"{where} nests deeper than {_MAX_DEPTH}"
    if wrong := _wrong_keywords(schema, where):
        return wrong
    if schema["type"] == "object":
        return _wrong_object(schema, where, depth)
    if schema["type"] == "array":
        return _wrong_schema(schema.get("items"), f"{where}[]", depth + 1)
    return _wrong_values(schema, where)


def _wrong_keywords(schema: Schema, where: str) -> str | None:
    for key in ("minimum", "maximum", "multipleOf"):
        value = schema.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or (key == "multipleOf" and value <= 0):
            return f"{where} has {key} {value!r}"
    for key in ("minLength", "maxLength", "minItems", "maxItems"):
        value = schema.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return f"{where} has {key} {value!r}"
    if schema.get("minItems", 0) > _MAX_ITEMS:
        return f"{where} needs more than {_MAX_ITEMS} items"
    if not isinstance(schema.get("format", ""), str):
        return f"{where} has format {schema['format']!r}"
    if not _is_pattern(schema.get("pattern", "")):
        return f"{where} has a pattern that is no regular expression: {schema['pattern']!r}"
    enum = schema.get("enum")
    if enum is not None and (not isinstance(enum, list) or not enum):
        return f"{where} has an enum that is no list of values"
    return None


def _wrong_object(schema: Schema, where: str, depth: int) -> str | None:
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or not all(isinstance(name, str) and name for name in properties):
        return f"{where} has properties that are not an object"
    required = schema.get("required", [])
    if not isinstance(required, list) or not set(map(str, required)) <= set(properties):
        return f"{where} requires what is no property: {required}"
    found = (_wrong_schema(value, f"{where}.{name}", depth + 1) for name, value in properties.items())
    return next((wrong for wrong in found if wrong), None)


def _wrong_values(schema: Schema, where: str) -> str | None:
    bare = {key: value for key, value in schema.items() if key != "enum"}
    for value in schema.get("enum") or ():
        if wrong := wrong_value(value, bare, where):
            return f"enum of {wrong}"
    if schema.get("default") is not None and (wrong := wrong_value(schema["default"], schema, where)):
        return f"default of {wrong}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None and not low <= high:
        return f"{where} has minimum {low} above maximum {high}"
    return None


def _is_pattern(pattern: Any) -> bool:
    try:
        re.compile(pattern)
    except (re.error, TypeError):
        return False
    return True


def wrong_arguments(arguments: Any, function: Function) -> str | None:
    """Why `arguments` are no valid call of `function`, or None."""
    return wrong_value(arguments, function["parameters"], function["name"])


def wrong_value(value: Any, schema: Schema, where: str) -> str | None:
    """Why `value` doesn't fit `schema`, or None."""
    kind = schema["type"]
    if not _is_of_type(value, kind):
        return f"{where}: {value!r} is no {kind}"
    if schema.get("enum") is not None and not any(
        type(value) is type(item) and value == item for item in schema["enum"]
    ):
        return f"{where}: {value!r} is none of {schema['enum']}"
    if kind == "object":
        return _wrong_members(value, schema, where)
    if kind == "array":
        return _wrong_items(value, schema, where)
    if kind == "string":
        return _wrong_string(value, schema, where)
    return _wrong_number(value, schema, where) if kind in ("integer", "number") else None


def _is_of_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, float) and kind == "integer":
        return value.is_integer()
    accepted: dict[str, type | tuple[type, ...]] = {
        "string": str, "integer": int, "number": (int, float), "array": list, "object": dict,
    }  # fmt: skip
    return kind in accepted and isinstance(value, accepted[kind])


def _wrong_members(value: dict[str, Any], schema: Schema, where: str) -> str | None:
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", []) if name not in value]
    if missing:
        return f"{where}: required {missing[0]} is missing"
    unknown = [name for name in value if name not in properties]
    if unknown:
        return f"{where}: {unknown[0]} is no parameter"
    found = (wrong_value(item, properties[name], f"{where}.{name}") for name, item in value.items())
    return next((wrong for wrong in found if wrong), None)


def _wrong_items(value: list[Any], schema: Schema, where: str) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{where}: {len(value)} items"
    found = (wrong_value(item, schema["items"], f"{where}[{i}]") for i, item in enumerate(value))
    return next((wrong for wrong in found if wrong), None)


def _wrong_string(value: str, schema: Schema, where: str) -> str | None:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return f"{where}: {value!r} has {len(value)} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{where}: {value!r} doesn't match {schema['pattern']}"
    form = schema.get("format")
    if form in _FORMATS and not _FORMATS[form].fullmatch(value):
        return f"{where}: {value!r} is no {form}"
    if form in ("date", "date-time"):
        try:
            (date if form == "date" else datetime).fromisoformat(value)
        except ValueError:
            return f"{where}: {value!r} is no {form}"
    return None


def _wrong_number(value: float, schema: Schema, where: str) -> str | None:
    low, high = schema.get("minimum"), schema.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        return f"{where}: {value} is not within {low} to {high}"
    step = schema.get("multipleOf")
    return f"{where}: {value} is no multiple of {step}" if step and value % step else None
