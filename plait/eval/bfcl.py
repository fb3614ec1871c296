"""BFCL v1, function calling (paper section 6.1): calls compared with possible answers, as trees and not as text.

The files of the public `bfcl-eval` package go into the data folder as `bfcl/`: `BFCL_v*_CATEGORY.json` and
`possible_answer/` beside them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.eval.task import Answer, Inputs, Metric, Option, Plan, Sample, Task, file_version, ready
from plait.text import parse_tool_calls

CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Mapping[str, Any]


def plan(inputs: Inputs) -> Plan:
    folder = inputs.file("bfcl")
    samples: list[Sample] = []
    sources = {}
    for category in inputs.options["categories"].split(","):
        if category not in CATEGORIES:
            raise ValueError(f"BFCL here has no category {category!r}; it has {', '.join(CATEGORIES)}")
        questions, answers = _files(folder, category)
        sources[category] = file_version(questions)
        possible = {} if answers is None else {row["id"]: row["ground_truth"] for row in _rows(answers)}
        samples += [_sample(category, row, possible.get(row["id"], [])) for row in _rows(questions)]
    return Plan(ready(samples, inputs), sources)


def _files(folder: Path, category: str) -> tuple[Path, Path | None]:
    """Of several versions the newest; older ones call simple_python `simple`."""
    names = (category, "simple") if category == "simple_python" else (category,)
    found = [path for name in names for path in sorted(folder.glob(f"*BFCL_v*_{name}.json"), reverse=True)]
    if not found:
        raise ValueError(f"{folder} has no BFCL_v*_{category}.json: copy the data of the bfcl-eval package there")
    answers = folder / "possible_answer" / found[0].name
    if category == "irrelevance":
        return found[0], None
    if not answers.exists():
        raise ValueError(f"{answers} is missing: copy possible_answer of the bfcl-eval package as well")
    return found[0], answers


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _sample(category: str, row: dict[str, Any], possible: list[Any]) -> Sample:
    functions = row["function"] if isinstance(row["function"], list) else [row["function"]]
    turns = row["question"][0] if isinstance(row["question"], list) else [{"role": "user", "content": row["question"]}]
    return Sample(
        id=row["id"],
        group=category,
        messages=turns,
        tools=[_tool(function) for function in functions],
        references=(json.dumps(possible, ensure_ascii=False),),
        max_tokens=512,
        facts={"functions": functions},
    )


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    """In OpenAI's form. Names may hold no dot there, and types have JSON Schema's names."""
    parameters = _json_schema(function["parameters"])
    about = function.get("description", "")
    return {
        "type": "function",
        "function": {"name": function["name"].replace(".", "_"), "description": about, "parameters": parameters},
    }


def _json_schema(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: _JSON_TYPES.get(value, value) if key == "type" and isinstance(value, str) else _json_schema(value)
            for key, value in schema.items()
        }
    return [_json_schema(item) for item in schema] if isinstance(schema, list) else schema


def read_calls(output: str) -> list[Call] | None:
    """Calls in an answer: in tool-call tags, or Python calls in a list, `[f(a=1), g(b="x")]`. None if it is neither."""
    parsed = parse_tool_calls(output)
    if parsed.tool_calls:
        return [Call(call.name, json.loads(call.arguments)) for call in parsed.tool_calls]
    return _python_calls(output)


def _python_calls(output: str) -> list[Call] | None:
    text = output.strip().strip("`").removeprefix("python").strip()
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    calls = []
    for node in nodes:
        if not isinstance(node, ast.Call) or node.args:
            return None
        try:
            arguments = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg is not None}
        except (ValueError, TypeError, RecursionError):
            return None
        calls.append(Call(ast.unparse(node.func), arguments))
    return calls or None


def all_match(
    calls: Sequence[Call], possible: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]]
) -> bool:
    """As many calls as expected, and a way to pair them so that each matches; the order doesn't count."""
    if len(calls) != len(possible):
        return False
    fits = [[matches(call, wanted, functions) for call in calls] for wanted in possible]
    return _pairing(fits, 0, set())


def _pairing(fits: Sequence[Sequence[bool]], row: int, taken: set[int]) -> bool:
    if row == len(fits):
        return True
    return any(fit and n not in taken and _pairing(fits, row + 1, taken | {n}) for n, fit in enumerate(fits[row]))


def matches(call: Call, wanted: Mapping[str, Any], functions: Sequence[Mapping[str, Any]]) -> bool:
    """Name equal; required arguments there, others known; each value of its type and among the possible ones."""
    name, possible = next(iter(wanted.items()))
    function = next((f for f in functions if f["name"] == name), None)
    if function is None or call.name not in (name, name.replace(".", "_")):
        return False
    properties = function["parameters"].get("properties", {})
    if any(required not in call.arguments for required in function["parameters"].get("required", ())):
        return False
    if any(given not in properties or given not in possible for given in call.arguments):
        return False
    if any("" not in values for given, values in possible.items() if given not in call.arguments):
        return False
    return all(_value_fits(value, properties[given], possible[given]) for given, value in call.arguments.items())


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "any": (str,), "integer": (int,), "float": (float, int), "number": (float, int),
    "boolean": (bool,), "array": (list,), "tuple": (list, tuple), "dict": (dict,), "object": (dict,),
}  # fmt: skip


def _value_fits(value: Any, schema: Mapping[str, Any], possible: Sequence[Any]) -> bool:
    """A value of another type passes only as a variable's name that the possible answers hold themselves."""
    types = _TYPES[schema["type"]]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        return any(type(value) is type(one) and value == one for one in possible if one != "")
    if isinstance(value, list | tuple) and not _items_fit(value, schema.get("items", {}), possible):
        return False
    return any(_same(value, one) for one in possible) or (value == [] and "" in possible)


def _items_fit(items: Sequence[Any], schema: Mapping[str, Any], possible: Sequence[Any]) -> bool:
    """Each of an array's items has exactly the schema's type (no integer for a float), or that of an expected one."""
    wanted = _TYPES.get(schema.get("type", ""), (object,))[0]
    for one in possible:
        if not isinstance(one, list):
            return True
        named = next((type(item) for item in one if item != ""), None)
        if all(wanted is object or type(item) is wanted or type(item) is named for item in items):
            return True
    return False


def _same(value: Any, one: Any) -> bool:
    if isinstance(value, str) and isinstance(one, str):
        return _plain(value) == _plain(one)
    if isinstance(value, list | tuple) and isinstance(one, list | tuple):
        return len(value) == len(one) and all(_same(a, b) for a, b in zip(value, one, strict=True))
    if isinstance(value, dict) and isinstance(one, dict):
        return _same_object(value, one)
    return (
        type(value) in (int, float, bool, type(None))
        and value == one
        and isinstance(value, bool) == isinstance(one, bool)
    )


def _same_object(value: dict[str, Any], one: dict[str, Any]) -> bool:
    """Inside an expected object each key lists its possible values; "" lets it be left out."""
    if any(key not in one for key in value):
        return False
    for key, listed in one.items():
        choices = listed if isinstance(listed, list) else [listed]
        if key not in value:
            if "" not in choices:
                return False
        elif not any(_same(value[key], choice) for choice in choices):
            return False
    return True


def _plain(text: str) -> str:
    """What strings are compared by: no spaces and signs, small letters, one kind of quotes."""
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def score(sample: Sample, answer: Answer) -> dict[str, float]:
    try:
        calls = read_calls(answer.text)
    except ValueError:
        calls = None
    if sample.group == "irrelevance":
        return {"correct": float(not calls)}
    possible = json.loads(sample.references[0])
    return {"correct": float(calls is not None and all_match(calls, possible, sample.facts["functions"]))}


BFCL = Task(
    name="bfcl",
    about="function calling, BFCL v1 (Table 2): calls match possible answers as trees; mean of the categories",
    plan=plan,
    score=score,
    metrics=(Metric("correct"),),
    options={"categories": Option(",".join(CATEGORIES), "which to run")},
    prompt_format="chat",
    mean_over="groups",
)
