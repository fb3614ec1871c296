"""Valid arguments for a function, drawn from its schema: different ones, with values that a request can speak of."""

from __future__ import annotations

import json
import math
from datetime import date, timedelta
from random import Random
from typing import Any

from plait.synth.schemas import Function, Schema, wrong_arguments

_WORDS = (
    "amber", "atlas", "birch", "cobalt", "delta", "ember", "falcon", "garnet", "harbor", "indigo", "juniper",
    "kestrel", "lantern", "maple", "nimbus", "opal", "pioneer", "quartz", "raven", "sierra", "tundra", "umber",
    "violet", "willow", "zephyr",
)  # fmt: skip
_CITIES = (
    "Lisbon", "Nairobi", "Osaka", "Toronto", "Lima", "Kraków", "Hanoi", "Antwerp", "Accra", "Denver",
    "Tbilisi", "Perth",
)  # fmt: skip
_COUNTRIES = (
    "Portugal", "Kenya", "Japan", "Canada", "Peru", "Poland", "Vietnam", "Belgium", "Ghana", "Georgia",
)  # fmt: skip
_NAMES = (
    "Amara Okafor", "Jonas Lindqvist", "Priya Raman", "Mateo Silva", "Leila Haddad", "Greta Vogel",
    "Hiro Tanaka",
)  # fmt: skip
_LANGUAGES = ["English", "Spanish", "French", "Portuguese", "Italian", "Dutch", "German", "Arabic", "Hebrew"]
_CURRENCIES = ["USD", "EUR", "GBP", "JPY", "CHF", "BRL", "ILS", "CAD"]
_HINTS = (  # part of a parameter's name -> what to draw from; the first that fits counts
    ("currency", _CURRENCIES),
    ("language", _LANGUAGES),
    ("country", _COUNTRIES),
    ("city", _CITIES),
    ("location", _CITIES),
    ("address", [f"{number} {word.title()} Street" for number, word in zip(range(12, 400, 16), _WORDS, strict=False)]),
    ("username", [f"{word}{number}" for word, number in zip(_WORDS, range(21, 99, 3), strict=False)]),
    ("filename", [f"{word}.txt" for word in _WORDS]),
    ("name", _NAMES),
    ("recipient", _NAMES),
    ("title", [f"The {word} {other}" for word, other in zip(_WORDS, reversed(_WORDS), strict=True)]),
    ("genre", ["jazz", "comedy", "drama", "thriller", "folk", "documentary"]),
)
_TRIES = 200


def sample_assignments(function: Function, random: Random, n: int) -> list[dict[str, Any]]:
    """Up to `n` different valid arguments of `function`; fewer if it doesn't have so many, none if none was found."""
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_TRIES):
        if len(found) == n:
            break
        arguments = _object(function["parameters"], random, "")
        if wrong_arguments(arguments, function) is None:
            found.setdefault(json.dumps(arguments, sort_keys=True), arguments)
    return list(found.values())


def _object(schema: Schema, random: Random, name: str) -> dict[str, Any]:
    required = schema.get("required", [])
    chosen = [key for key in schema.get("properties", {}) if key in required or random.random() < 0.4]
    return {key: _value(schema["properties"][key], random, key) for key in chosen}


def _value(schema: Schema, random: Random, name: str) -> Any:
    if schema.get("enum"):
        return random.choice(schema["enum"])
    kind = schema["type"]
    if kind == "object":
        return _object(schema, random, name)
    if kind == "array":
        low = max(1, schema.get("minItems", 1))
        return [_value(schema["items"], random, name) for _ in range(random.randint(low, max(low, 3)))]
    if kind == "boolean":
        return random.random() < 0.5
    return _string(schema, random, name) if kind == "string" else _number(schema, random, kind)


def _number(schema: Schema, random: Random, kind: str) -> int | float:
    high = schema.get("maximum")
    low = schema.get("minimum", 1 if high is None or high >= 1 else high - 500)
    high = max(low, 1) * 500 if high is None else high
    step = schema.get("multipleOf", 1 if kind == "integer" else None)
    if step is None:
        return round(random.uniform(low, high), 2)
    first, last = math.ceil(low / step), math.floor(high / step)
    return random.randint(first, max(first, last)) * step  # where none lies between, one outside, which is not valid


def _string(schema: Schema, random: Random, name: str) -> str:
    form, lowered = schema.get("format"), name.lower()
    day = date(2025, 1, 1) + timedelta(days=random.randint(0, 700))
    word = random.choice(_WORDS)
    if form == "date" or (form is None and "date" in lowered):
        return day.isoformat()
    if form == "date-time":
        return f"{day.isoformat()}T{random.randint(0, 23):02}:{random.choice((0, 15, 30, 45)):02}:00"
    if form == "time" or (form is None and lowered.endswith("time")):
        return f"{random.randint(0, 23):02}:{random.choice((0, 15, 30, 45)):02}"
    if form == "email" or "email" in lowered:
        return f"{word}.{random.choice(_WORDS)}@example.com"
    if form == "uri" or "url" in lowered:
        return f"https://example.com/{word}/{random.randint(10, 999)}"
    if form == "uuid":
        return "-".join(f"{random.getrandbits(4 * size):0{size}x}" for size in (8, 4, 4, 4, 12))
    if "expression" in lowered:
        return f"({random.randint(2, 99)} + {random.randint(2, 99)}) * {random.randint(2, 99)}"
    pool = next((pool for hint, pool in _HINTS if hint in lowered), None)
    if pool is not None:
        return random.choice(pool)
    if lowered == "id" or lowered.endswith(("_id", "id", "number", "code")):
        return f"{word[:2].upper()}-{random.randint(1000, 9999)}"
    return f"{word} {random.choice(_WORDS)}"
