"""Where function schemas come from: OpenAPI documents, JSON schemas, and records in the style of Glaive's data set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.synth.record import read_json, read_jsonl
from plait.synth.schemas import Function

_METHODS = ("get", "post", "put", "patch", "delete")
_MAX_REFERENCES = 8  # followed in a row: deeper ones are recursive or too involved to train on


def read_functions(path: Path) -> list[Function]:
    """Functions of a JSON or JSONL file, told apart by what it holds: `paths` (OpenAPI 2 and 3), `properties` (a JSON
    schema), `system` (Glaive), `function` or `parameters` (OpenAI's form), or lists of these. Not validated."""
    values = list(read_jsonl(path)) if path.suffix == ".jsonl" else [read_json(path)]
    found = [function for value in values for function in _functions(value, path)]
    if not found:
        raise ValueError(f"{path} holds no function")
    return found


def _functions(value: Any, path: Path) -> Iterator[Function]:
    if isinstance(value, list):
        for item in value:
            yield from _functions(item, path)
    elif not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__} where a function's description was expected")
    elif "paths" in value:
        try:
            yield from functions_of_openapi(value)
        except (AttributeError, KeyError, TypeError) as error:  # another type, or no member, where one is prescribed
            raise ValueError(f"{path} is no OpenAPI document: {type(error).__name__}: {error}") from error
    elif "system" in value:
        yield from functions_of_glaive(value)
    elif "function" in value:
        yield value["function"]
    elif "parameters" in value:
        yield value
    elif "properties" in value:
        yield function_of_json_schema(value)
    else:
        raise ValueError(f"{path}: an object with {sorted(value)[:5]} describes no function")


def function_of_json_schema(schema: Mapping[str, Any]) -> Function:
    """A schema with title, description and properties, as a function that takes these."""
    name = re.sub(r"[^a-z0-9]+", "_", str(schema.get("title", "")).lower()).strip("_")
    parameters = {key: schema[key] for key in ("properties", "required") if key in schema}
    description = str(schema.get("description", ""))
    return {"name": name, "description": description, "parameters": {"type": "object", **parameters}}


def functions_of_openapi(document: Mapping[str, Any]) -> Iterator[Function]:
    """One function per operation: its path and query parameters, and the members of its JSON body."""
    for path, operations in document["paths"].items():
        shared = operations.get("parameters", [])
        for method in _METHODS:
            if method in operations:
                yield _operation(document, path, method, operations[method], shared)


def _operation(document: Mapping[str, Any], path: str, method: str, operation: dict[str, Any], shared: Any) -> Function:
    name = operation.get("operationId") or f"{method}{path}"
    properties: dict[str, Any] = {}
    required: list[str] = []
    for given in [*shared, *operation.get("parameters", [])]:
        parameter = _resolved(given, document)
        place = parameter.get("in")
        if place == "body":
            _add_body(parameter.get("schema", {}), document, properties, required)
        elif place in ("path", "query", "formData"):
            schema = parameter.get("schema") or {key: parameter[key] for key in _PLAIN_KEYS if key in parameter}
            properties[parameter["name"]] = _described(_resolved(schema, document), parameter)
            if parameter.get("required"):
                required.append(parameter["name"])
    content = _resolved(operation.get("requestBody", {}), document).get("content", {})
    if "application/json" in content:
        _add_body(content["application/json"].get("schema", {}), document, properties, required)
    return {
        "name": re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_"),
        "description": _one_line(operation.get("summary") or operation.get("description") or ""),
        "parameters": {"type": "object", "properties": properties, "required": sorted(set(required))},
    }


_PLAIN_KEYS = ("type", "items", "enum", "default", "format", "minimum", "maximum", "minLength", "maxLength", "pattern")
_SCHEMA_KEYS = (*_PLAIN_KEYS, "properties", "required", "minItems", "maxItems", "description")


def _add_body(schema: Any, document: Mapping[str, Any], properties: dict[str, Any], required: list[str]) -> None:
    body = _resolved(schema, document)
    for name, value in body.get("properties", {}).items():
        if not value.get("readOnly"):
            properties.setdefault(name, value)
    required += [name for name in body.get("required", []) if name in properties]


def _resolved(value: Any, document: Mapping[str, Any], depth: int = 0) -> Any:
    """`value` with local references followed everywhere, and what function schemas don't know left out of schemas."""
    if depth > _MAX_REFERENCES:
        return {}  # has no type, so the validation rejects the function
    if isinstance(value, list):
        return [_resolved(item, document, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _resolved(_target(str(value["$ref"]), document), document, depth + 1)
    found = {key: _resolved(item, document, depth + 1) for key, item in value.items()}
    if isinstance(found.get("type"), str) and "in" not in found:
        found = {key: item for key, item in found.items() if key in (*_SCHEMA_KEYS, "readOnly")}
    return found


def _target(reference: str, document: Mapping[str, Any]) -> Any:
    target: Any = document
    for part in reference.removeprefix("#/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        target = target.get(key, {}) if isinstance(target, dict) else {}
    return target


def _described(schema: dict[str, Any], parameter: Mapping[str, Any]) -> dict[str, Any]:
    text = _one_line(parameter.get("description") or schema.get("description") or "")
    return {**schema, "description": text} if text else dict(schema)


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", str(text)).split())[:300]


def functions_of_glaive(record: Mapping[str, Any]) -> Iterator[Function]:
    """The JSON objects written one behind the other in the record's `system` text."""
    text, at, decoder = str(record["system"]), 0, json.JSONDecoder()
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            at += 1
            continue
        if isinstance(value, dict) and "name" in value:
            empty = {"type": "object", "properties": {}}
            yield {**value, "parameters": value.get("parameters") or empty}
