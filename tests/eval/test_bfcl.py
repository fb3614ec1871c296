"""Function calls compared as trees: order, types, optional arguments, spelling of strings."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.eval.bfcl import BFCL, Call, all_match, read_calls
from plait.eval.task import Answer, Inputs

AREA = {
    "name": "math.area",
    "description": "Area.",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "integer"}, "height": {"type": "float"}, "unit": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}}, "box": {"type": "dict"},
            "exact": {"type": "boolean"}, "sides": {"type": "array", "items": {"type": "integer"}},
            "of": {"type": "dict"},
        },
        "required": ["base", "height"],
    },
}  # fmt: skip
WANTED = {
    "math.area": {
        "base": [10], "height": [5.0, 5], "unit": ["sq. units", ""], "tags": [["a", "b"], ""],
        "box": [{"x": [1, 2], "y": ["left", ""]}, ""], "exact": [True, ""], "sides": [[3, 4], ""], "of": ["Shape", ""],
    }
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"base": 10, "height": 5.0}, True),
        ({"base": 10, "height": 5}, True),
        ({"base": 10}, False),
        ({"base": 11, "height": 5}, False),
        ({"base": 10.0, "height": 5}, False),
        ({"base": True, "height": 5}, False),
        ({"base": "10", "height": 5}, False),
        ({"base": 10, "height": 5, "unit": "Sq Units"}, True),
        ({"base": 10, "height": 5, "unit": "meters"}, False),
        ({"base": 10, "height": 5, "other": 1}, False),
        ({"base": 10, "height": 5, "tags": ["A", "b"]}, True),
        ({"base": 10, "height": 5, "tags": ["b", "a"]}, False),
        ({"base": 10, "height": 5, "tags": []}, True),  # as the published checker has it where it may be left out
        ({"base": 10, "height": 5, "tags": ("a", "b")}, False),
        ({"base": 10, "height": 5, "sides": [3, 4]}, True),
        ({"base": 10, "height": 5, "sides": ["3", "4"]}, False),
        ({"base": 10, "height": 5, "of": "Shape"}, True),  # a variable's name, to the letter
        ({"base": 10, "height": 5, "of": "shape"}, False),
        ({"base": 10, "height": 5, "box": {"x": 2}}, True),
        ({"base": 10, "height": 5, "box": {"x": 2, "y": "left"}}, True),
        ({"base": 10, "height": 5, "box": {"y": "left"}}, False),
        ({"base": 10, "height": 5, "box": {"x": 2, "z": 1}}, False),
        ({"base": 10, "height": 5, "exact": True}, True),
        ({"base": 10, "height": 5, "exact": 1}, False),
    ],
)
def test_arguments(arguments: dict, right: bool) -> None:
    assert all_match([Call("math.area", arguments)], [WANTED], [AREA]) is right
    assert all_match([Call("math_area", arguments)], [WANTED], [AREA]) is right
    assert not all_match([Call("area", arguments)], [WANTED], [AREA])


@pytest.mark.parametrize(("sides", "right"), [([3, 4], True), ([3.0, 4.0], False), ([True, 4], False), ([], False)])
def test_items_have_exactly_their_type(sides: list, right: bool) -> None:
    wanted = {"math.area": {"base": [10], "height": [5.0], "sides": [[3, 4]]}}
    assert all_match([Call("math.area", {"base": 10, "height": 5, "sides": sides})], [wanted], [AREA]) is right


def test_parallel_calls_in_any_order_each_once() -> None:
    one, two = ({"math.area": {"base": [n], "height": [1.0]}} for n in (1, 2))
    first, second = (Call("math.area", {"base": n, "height": 1.0}) for n in (1, 2))
    assert all_match([second, first], [one, two], [AREA])
    assert not all_match([first, first], [one, two], [AREA])
    assert not all_match([first], [one, two], [AREA])
    assert not all_match([first, second, second], [one, two], [AREA])
    either = {"math.area": {"base": [1, 2], "height": [1.0]}}
    assert all_match(
        [first, second], [either, one], [AREA]
    )  # the first that fits must not take the only fit of another


def test_calls_are_read_in_both_forms() -> None:
    wanted = [Call("f", {"a": 1, "b": ["x"]}), Call("g.h", {})]
    assert read_calls('[f(a=1, b=["x"]), g.h()]') == wanted
    assert read_calls('```python\n[f(a=1, b=["x"]), g.h()]\n```') == wanted
    tags = (
        '<tool_calls>[{"name": "f", "arguments": {"a": 1, "b": ["x"]}}, {"name": "g.h", "arguments": {}}]</tool_calls>'
    )
    assert read_calls(tags) == wanted
    assert read_calls("I can't.") is None
    assert read_calls("[f(1)]") is None  # without names
    assert read_calls("[f(a=b)]") is None
    assert read_calls("__import__('os').system('true')") is None
    assert read_calls("(" * 500) is None


def test_the_task(tmp_path: Path, inputs_of: Callable[..., Inputs]) -> None:
    folder = tmp_path / "bfcl"
    (folder / "possible_answer").mkdir(parents=True)
    question = [[{"role": "user", "content": "Area of 10 by 5?"}]]
    for category in ("simple_python", "irrelevance"):
        row = {"id": f"{category}_0", "question": question, "function": [AREA]}
        (folder / f"BFCL_v4_{category}.json").write_text(json.dumps(row))
    answer = {"id": "simple_python_0", "ground_truth": [WANTED]}
    (folder / "possible_answer" / "BFCL_v4_simple_python.json").write_text(json.dumps(answer))
    options = {"categories": "simple_python,irrelevance"}
    simple, irrelevant = (d.make() for d in BFCL.plan(inputs_of("bfcl", options, data=tmp_path)).drafts)
    schema = simple.tools[0]["function"]
    assert schema["name"] == "math_area"
    assert schema["parameters"]["type"] == "object"
    assert schema["parameters"]["properties"]["height"] == {"type": "number"}
    call = Answer('<tool_calls>[{"name": "math_area", "arguments": {"base": 10, "height": 5}}]</tool_calls>')
    assert BFCL.score(simple, call) == {"correct": 1}
    assert BFCL.score(irrelevant, call) == {"correct": 0}
    assert BFCL.score(irrelevant, Answer("No function here does that.")) == {"correct": 1}
    assert BFCL.score(simple, Answer("The area is 50.")) == {"correct": 0}
    with pytest.raises(ValueError, match=r"has no BFCL_v\*_parallel\.json"):
        BFCL.plan(inputs_of("bfcl", data=tmp_path, options={"categories": "parallel"}))
