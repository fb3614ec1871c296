import json
import random
from pathlib import Path
from typing import Any

import pytest

from plait.synth.assignments import sample_assignments
from plait.synth.function_sources import read_functions
from plait.synth.mock_tools import BUILT_IN_FUNCTIONS, execute, values_to_repeat
from plait.synth.schemas import wrong_arguments, wrong_function

BOOK = {
    "name": "book_table",
    "description": "Book a table at a restaurant",
    "parameters": {
        "type": "object",
        "properties": {
            "restaurant": {"type": "string", "minLength": 2, "pattern": "^[A-Z]"},
            "guests": {"type": "integer", "minimum": 1, "maximum": 12},
            "date": {"type": "string", "format": "date"},
            "seating": {"type": "string", "enum": ["inside", "terrace"], "default": "inside"},
            "deposit": {"type": "number", "multipleOf": 5},
            "extras": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            "contact": {
                "type": "object",
                "properties": {"email": {"type": "string", "format": "email"}, "sms": {"type": "boolean"}},
                "required": ["email"],
            },
        },
        "required": ["restaurant", "guests", "date"],
    },
}
GOOD = {"restaurant": "Luna", "guests": 4, "date": "2025-03-01"}


def changed(path: str, value: Any) -> dict:
    """BOOK with the value at a dotted path replaced (or removed, by `...`)."""
    copy = json.loads(json.dumps(BOOK))
    *parents, last = path.split(".")
    target = copy
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return copy


def test_a_good_function_passes() -> None:
    assert wrong_function(BOOK) is None
    assert all(wrong_function(function) is None for function in BUILT_IN_FUNCTIONS)


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(5):
    DEEP = {"type": "array", "items": DEEP}

PLANTED_IN_FUNCTION = [
    ("name", "book a table", "function name"),
    ("name", ..., "function name"),
    ("description", "Books", "function description"),
    ("parameters", [], "function parameters"),
    ("parameters.type", "array", "function parameters"),
    ("parameters.properties", {f"p{i}": {"type": "string"} for i in range(13)}, "function parameters"),
    ("parameters.required", ["nothing"], "function schema"),
    ("parameters.properties.guests.type", "int", "function schema"),
    ("parameters.properties.guests.type", ..., "function schema"),
    ("parameters.properties.guests.minimum", 20, "function schema"),
    ("parameters.properties.guests.default", "two", "function schema"),
    ("parameters.properties.guests.default", 13, "function schema"),
    ("parameters.properties.seating.enum", [], "function schema"),
    ("parameters.properties.seating.enum", ["inside", 3], "function schema"),
    ("parameters.properties.seating.default", "roof", "function schema"),
    ("parameters.properties.guests.minimum", "one", "function schema"),
    ("parameters.properties.deposit.multipleOf", 0, "function schema"),
    ("parameters.properties.restaurant.pattern", "(", "function schema"),
    ("parameters.properties.restaurant.pattern", 3, "function schema"),
    ("parameters.properties.restaurant.minLength", 0.5, "function schema"),
    ("parameters.properties.date.format", ["date"], "function schema"),
    ("parameters.properties.extras.enum", "cake", "function schema"),
    ("parameters.properties.extras.minItems", 10**9, "function schema"),
    ("parameters.properties.extras.items", ..., "function schema"),
    ("parameters.properties.extras.items", DEEP, "function schema"),
    ("parameters.properties.contact.properties.email", "text", "function schema"),
    ("parameters.properties.contact.required", ["phone"], "function schema"),
    ("parameters.properties.contact.properties", {"": {"type": "string"}}, "function schema"),
    ("parameters.properties.contact", {"type": "object", "properties": ["email"]}, "function schema"),
]


@pytest.mark.parametrize(("path", "value", "reason"), PLANTED_IN_FUNCTION)
def test_each_planted_fault_of_a_schema_is_caught(path: str, value: Any, reason: str) -> None:
    wrong = wrong_function(changed(path, value))
    assert wrong is not None
    assert wrong.startswith(f"{reason}: ")


@pytest.mark.parametrize("value", [None, [], "text", {}])
def test_what_is_no_function_is_caught(value: Any) -> None:
    assert wrong_function(value) is not None


def test_good_arguments_pass() -> None:
    assert wrong_arguments(GOOD, BOOK) is None
    full = {
        **GOOD,
        "seating": "terrace",
        "deposit": 15,
        "extras": ["cake"],
        "contact": {"email": "a@b.org", "sms": True},
    }
    assert wrong_arguments(full, BOOK) is None
    assert wrong_arguments({**GOOD, "guests": 4.0}, BOOK) is None, "JSON has one kind of number"


PLANTED_ARGUMENTS = [
    {"restaurant": ...},
    {"guests": "4"},
    {"guests": 4.5},
    {"guests": True},
    {"guests": 0},
    {"guests": 13},
    {"date": "March 1st"},
    {"date": "2025-02-30"},
    {"seating": "roof"},
    {"deposit": 7},
    {"restaurant": "x"},
    {"restaurant": "luna"},
    {"extras": "cake"},
    {"extras": [1]},
    {"extras": ["a", "b", "c", "d"]},
    {"contact": {}},
    {"contact": {"email": "nowhere"}},
    {"contact": {"email": "a@b.org", "fax": "1"}},
    {"surprise": 1},
]


@pytest.mark.parametrize("change", PLANTED_ARGUMENTS)
def test_each_planted_fault_of_arguments_is_caught(change: dict) -> None:
    arguments = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    assert wrong_arguments(arguments, BOOK) is not None


def test_assignments_are_valid_different_and_repeatable() -> None:
    free = changed("parameters.properties.restaurant.pattern", ...)
    for function in (free, *BUILT_IN_FUNCTIONS):
        found = sample_assignments(function, random.Random(1), 6)
        assert len({json.dumps(a, sort_keys=True) for a in found}) == len(found) == 6
        assert all(wrong_arguments(arguments, function) is None for arguments in found)
        assert found == sample_assignments(function, random.Random(1), 6)


@pytest.mark.parametrize(
    ("schema", "n"),
    [
        ({"type": "integer", "maximum": -3}, 6),
        ({"type": "integer", "minimum": 0.5, "maximum": 1.5}, 1),
        ({"type": "integer", "minimum": 1, "maximum": 3, "multipleOf": 5}, 0),
        ({"type": "number", "maximum": 0}, 6),
        ({"type": "number", "minimum": 0, "maximum": 2, "multipleOf": 0.5}, 5),
    ],
)
def test_numbers_fit_any_bounds(schema: dict, n: int) -> None:
    function = changed("parameters", {"type": "object", "properties": {"part": schema}, "required": ["part"]})
    assert wrong_function(function) is None
    assert len(sample_assignments(function, random.Random(1), 6)) == n


def test_tools_run_and_always_give_the_same() -> None:
    calculate, convert, days, count = BUILT_IN_FUNCTIONS
    assert execute(calculate, {"expression": "(3 + 4) * 2.5"}) == {"result": 17.5}
    assert execute(convert, {"value": 3, "from_unit": "km", "to_unit": "m"}) == {"value": 3000.0, "unit": "m"}
    assert execute(days, {"start_date": "2024-02-28", "end_date": "2024-03-01"}) == {"days": 2}
    assert execute(count, {"text": "one two three"}) == {"words": 3}
    assert execute(BOOK, GOOD) == execute(BOOK, dict(reversed(GOOD.items())))
    assert execute(BOOK, GOOD) != execute(BOOK, {**GOOD, "guests": 5})
    assert execute(BOOK, GOOD, {"book_table": lambda **given: given["guests"]}) == 4


@pytest.mark.parametrize("expression", ["1 / 0", "2 ** 9", "(1", "9" * 300])
def test_tools_answer_failures_as_a_server_would(expression: str) -> None:
    assert set(execute(BUILT_IN_FUNCTIONS[0], {"expression": expression})) == {"error"}


def test_what_an_answer_must_repeat() -> None:
    result = {"status": "done", "reference": "A12345", "items": [{"price": 4.5, "ok": True, "note": None}]}
    assert values_to_repeat(result) == ["A12345", "4.5"]


OPENAPI = {
    "openapi": "3.0.0",
    "paths": {
        "/pets/{petId}": {
            "parameters": [{"name": "petId", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {"operationId": "showPet", "summary": "Show one <b>pet</b>", "parameters": [
                {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                {"name": "fields", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
            ]},
            "put": {"summary": "Change a pet", "requestBody": {"content": {"application/json": {
                "schema": {"$ref": "#/components/schemas/Pet"}}}}},
        }
    },
    "components": {"schemas": {
        "Pet": {"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "example": "Rex"},
            "id": {"type": "integer", "readOnly": True},
            "parent": {"$ref": "#/components/schemas/Pet"},
        }},
    }},
}  # fmt: skip


def test_openapi_operations_become_functions(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(OPENAPI))
    show, change = read_functions(tmp_path / "a.json")
    assert show["description"] == "Show one pet"
    assert show["name"] == "showPet"
    assert set(show["parameters"]["properties"]) == {"petId", "fields"}
    assert show["parameters"]["required"] == ["petId"]
    assert wrong_function(show) is None
    assert change["name"] == "put_pets_petId"
    assert set(change["parameters"]["properties"]) == {"petId", "name", "parent"}
    assert change["parameters"]["properties"]["name"] == {"type": "string"}
    assert wrong_function(change).startswith("function schema"), "a pet whose parent is a pet never ends"


def test_swagger_2_json_schema_openai_and_glaive_are_read(tmp_path: Path) -> None:
    swagger = {"swagger": "2.0", "paths": {"/a": {"post": {"summary": "Do it now", "parameters": [
        {"name": "n", "in": "query", "type": "integer", "required": True},
        {"in": "body", "name": "b", "schema": {"type": "object", "properties": {"text": {"type": "string"}}}},
    ]}}}}  # fmt: skip
    schema = {"title": "Send Mail", "description": "Send a mail", "properties": {"to": {"type": "string"}}}
    openai = {"type": "function", "function": BOOK}
    glaive = {"system": 'SYSTEM: you have functions -\n{"name": "f", "description": "d"}\n{oops} ' + json.dumps(BOOK)}
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, [swagger, schema, openai, BOOK, glaive])))
    names = [function["name"] for function in read_functions(tmp_path / "all.jsonl")]
    assert names == ["post_a", "send_mail", "book_table", "book_table", "f", "book_table"]


@pytest.mark.parametrize("text", ["{", "[]", '{"what": 1}', "3"])
def test_files_without_functions_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        read_functions(tmp_path / "x.json")


@pytest.mark.parametrize(
    "paths", [[], {"/x": 3}, {"/x": {"get": []}}, {"/x": {"get": {"parameters": [{"in": "query"}]}}}]
)
def test_what_is_no_openapi_is_named(paths: Any, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"paths": paths}))
    with pytest.raises(ValueError, match=r"x\.json is no OpenAPI document"):
        read_functions(tmp_path / "x.json")
