"""A scripted assistant solves the requests; each planted fault must be caught."""

import json
import re
from collections.abc import Callable

import pytest

from plait.synth.mock_tools import BUILT_IN_FUNCTIONS
from plait.synth.tool_use import CASES, ToolUse
from plait.text import GenerationRequest, parse_tool_calls

ORDER = {
    "name": "order_taxi",
    "description": "Order a taxi",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "seats": {"type": "integer", "minimum": 1, "maximum": 7, "default": 4},
            "pickup_time": {"type": "string"},
        },
        "required": ["city", "pickup_time"],
    },
}
PLAY = {
    "name": "play_song",
    "description": "Play a song",
    "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
}
FUNCTIONS = [ORDER, PLAY, *BUILT_IN_FUNCTIONS[1:]]


def called(calls: list[dict]) -> str:
    return f" <tool_calls>[{', '.join(map(json.dumps, calls))}]</tool_calls>"


def honest(request: GenerationRequest, k: int) -> str:
    """As a user writes the tasks one after the other; as an assistant finds offered functions by their description."""
    messages = request.messages
    prompt = messages[-1]["content"]
    if request.tools is None:
        return "Please do this. " + " ".join(re.findall(r"^- .*$", prompt, re.MULTILINE))
    if messages[-1]["role"] == "tool":
        return f"It is done: {' and '.join(m['content'] for m in messages if m['role'] == 'tool')}"
    functions = [tool["function"] for tool in request.tools]
    calls = []
    for task, arguments in re.findall(r"- (.*?): (\{.*?\})", prompt):
        function = next((f for f in functions if f["description"] == task), None)
        if function is None:
            return "I have no tool for that."
        given = json.loads(arguments)
        missing = [name for name in function["parameters"]["required"] if name not in given]
        if missing:
            return f"Which {missing[0]} do you mean?"
        calls.append({"name": function["name"], "arguments": given})
    return called(calls)


@pytest.mark.parametrize("case", CASES)
def test_each_case_gives_whole_conversations(case: str, run) -> None:
    records, outcome = run(ToolUse(FUNCTIONS, cases=[case]), honest, n=8)
    assert outcome.n_records == 8, outcome.stages
    for record in records:
        offered = {tool["function"]["name"] for tool in record.tools}
        wanted = [(call["name"], call["arguments"]) for call in record.facts["calls"]]
        calls = record.messages[1].get("tool_calls", [])
        made = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
        if case in ("no_call", "missing_parameter"):
            assert not made
            assert (wanted[0][0] in offered) == (case == "missing_parameter")
            continue
        assert made == wanted
        assert {name for name, _ in wanted} <= offered
        assert (len(made) > 1) == case.startswith("parallel")
        assert len({name for name, _ in made}) == (len(made) if case == "parallel_functions" else 1)
        assert len({json.dumps(call) for call in made}) == len(made), "the assignments differ"
        assert [m["role"] for m in record.messages[2:]] == (["tool", "assistant"] if case == "multi_turn" else [])


def test_all_cases_take_turns_and_repeat(run) -> None:
    records, _ = run(ToolUse(FUNCTIONS), honest, n=12)
    assert [record.facts["case"] for record in records] == [*CASES, *CASES]
    again, _ = run(ToolUse(FUNCTIONS), honest, n=12)
    assert again == records


def with_calls(change: Callable[[list[dict]], list[dict]]) -> Callable[[GenerationRequest, int], str]:
    def answer(request: GenerationRequest, k: int) -> str:
        text = honest(request, k)
        if request.tools is None:
            return text
        parsed = parse_tool_calls(text).tool_calls
        return called(change([{"name": c.name, "arguments": json.loads(c.arguments)} for c in parsed]))

    return answer


def edited(call: dict, **changes: object) -> dict:
    arguments = {key: value for key, value in {**call["arguments"], **changes}.items() if value is not ...}
    return {**call, "arguments": arguments}


PLANTED_CALLS = {
    "one call too few": (lambda calls: calls[1:], "calls are not the assignment"),
    "one call twice": (lambda calls: [*calls, calls[0]], "calls are not the assignment"),
    "another value": (lambda calls: [edited(calls[0], city="Atlantis"), *calls[1:]], "calls are not the assignment"),
    "optional value added": (lambda calls: [edited(c, seats=7) for c in calls], "calls are not the assignment"),
    "required left out": (lambda calls: [edited(calls[0], city=...), *calls[1:]], "invalid arguments"),
    "unknown parameter": (lambda calls: [edited(calls[0], tip=5), *calls[1:]], "invalid arguments"),
    "wrong type": (lambda calls: [edited(calls[0], city=5), *calls[1:]], "invalid arguments"),
    "unknown function": (lambda calls: [{**calls[0], "name": "order_cab"}, *calls[1:]], "calls what isn't offered"),
}


@pytest.mark.parametrize("fault", PLANTED_CALLS)
def test_each_planted_call_is_caught(fault: str, run, drops) -> None:
    change, reason = PLANTED_CALLS[fault]
    no_default = {**ORDER["parameters"]["properties"], "seats": {"type": "integer", "minimum": 1, "maximum": 6}}
    order = {**ORDER, "parameters": {**ORDER["parameters"], "properties": no_default}}
    if fault == "optional value added":
        order["parameters"]["properties"]["seats"]["maximum"] = 7

    class OneFunction(ToolUse):
        def _draw_calls(self, case, random):
            calls = None
            while (
                calls is None
                or calls[0]["name"] != "order_taxi"
                or any(c["arguments"].get("seats") == 7 for c in calls)
            ):
                calls = super()._draw_calls(case, random)
            return calls

    skill = OneFunction([order, PLAY], cases=["parallel_one_function"])
    _, outcome = run(skill, with_calls(change), n=5)
    assert (outcome.n_records, drops(outcome)) == (0, {reason: 5})


def test_order_of_calls_numbers_and_defaults_make_no_difference(run) -> None:
    def same(calls: list[dict]) -> list[dict]:
        turned = [edited(call, seats=call["arguments"].get("seats", 4)) for call in reversed(calls)]
        return [edited(call, seats=float(call["arguments"]["seats"])) for call in turned]

    class Taxis(ToolUse):
        def _draw_calls(self, case, random):
            calls = None
            while calls is None or calls[0]["name"] != "order_taxi":
                calls = super()._draw_calls(case, random)
            return calls

    _, outcome = run(Taxis([ORDER, PLAY], cases=["parallel_one_function"]), with_calls(same), n=5)
    assert outcome.n_records == 5


def dishonest(fault: str) -> Callable[[GenerationRequest, int], str]:
    def answer(request: GenerationRequest, k: int) -> str:
        text, is_user, last = honest(request, k), request.tools is None, request.messages[-1]
        if fault == "says something else" and is_user:
            return "My dear Emma, how d'ye do?"
        if fault == "says something else" and not is_user:
            return "I have no tool for that."
        if fault == "calls anyway" and not is_user:
            return called([{"name": request.tools[0]["function"]["name"], "arguments": {}}])
        if fault == "doesn't ask" and not is_user:
            return "Done, enjoy."
        if fault == "asks for something else" and not is_user:
            return "Shall I also water the plants?"
        if fault == "gives the parameter" and is_user:
            return "Get me all: " + request.messages[-1]["content"] + " Lisbon Nairobi Osaka Toronto Lima Kraków Hanoi"
        if fault == "names the function" and is_user:
            return text + " Use order_taxi, play_song, convert_length, days_between or count_words."
        if fault == "leaves out the result" and last["role"] == "tool":
            return "All done."
        if fault == "calls again" and last["role"] == "tool":
            return called([{"name": "play_song", "arguments": {"title": "x"}}])
        if fault == "malformed" and not is_user:
            return text.replace("]</tool_calls>", "</tool_calls>")
        return text

    return answer


@pytest.mark.parametrize(
    ("case", "fault", "reason"),
    [
        ("no_call", "calls anyway", "calls where none belongs"),
        ("no_call", "says something else", "request leaves out a value"),
        ("missing_parameter", "calls anyway", "calls where none belongs"),
        ("missing_parameter", "doesn't ask", "doesn't ask for the missing parameter"),
        ("missing_parameter", "asks for something else", "doesn't ask for the missing parameter"),
        ("one_call", "names the function", "request names a function"),
        ("multi_turn", "leaves out the result", "answer leaves out a result"),
        ("multi_turn", "calls again", "calls where none belongs"),
        ("one_call", "malformed", "format marker in the text"),
    ],
)
def test_each_planted_fault_is_caught(case: str, fault: str, reason: str, run, drops) -> None:
    _, outcome = run(ToolUse(FUNCTIONS, cases=[case]), dishonest(fault), n=6)
    assert (outcome.n_records, drops(outcome)) == (0, {reason: 6})


def test_a_request_that_gives_the_missing_parameter_is_caught(run, drops) -> None:
    def answer(request: GenerationRequest, k: int) -> str:
        everything = " ".join(city["city"] for city in [record.facts["calls"][0]["arguments"] for record in prompts])
        return "A taxi please. " + everything if request.tools is None else "Which city?"

    class MissingCity(ToolUse):
        def prompts(self, n, seed):
            return iter(prompts)

    skill = MissingCity([ORDER, PLAY], cases=["missing_parameter"])
    drawn = ToolUse([ORDER, PLAY], cases=["missing_parameter"]).prompts(40, 0)
    prompts = [record for record in drawn if record.facts["missing"] == "city"][:5]
    _, outcome = run(skill, answer, n=5)
    assert (outcome.n_records, drops(outcome)) == (0, {"request gives the missing parameter": 5})


def test_results_that_the_tools_did_not_give_are_caught(run, drops) -> None:
    class Forged(ToolUse):
        def respond(self, record, ask):
            (found,) = super().respond(record, ask)
            forged = [{**m, "content": '{"reference": "Z1"}'} if m["role"] == "tool" else m for m in found.messages]
            return [found.with_messages(*forged[:-1], {"role": "assistant", "content": "It is Z1."})]

    _, outcome = run(Forged(FUNCTIONS, cases=["multi_turn"]), honest, n=4)
    assert (outcome.n_records, drops(outcome)) == (0, {"tool results aren't what the tools give": 4})


def test_a_tool_that_fails_spoils_the_record(run, drops) -> None:
    def closed(**given: object) -> None:
        raise ValueError("out of service")

    skill = ToolUse([ORDER, PLAY], cases=["multi_turn"], tools={"order_taxi": closed, "play_song": closed})
    _, outcome = run(skill, honest, n=4)
    assert (outcome.n_records, drops(outcome)) == (0, {"tool failed": 4})


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be among one_call"):
        ToolUse(FUNCTIONS, cases=["juggling"])
    ping, pong = ({**PLAY, "name": name, "parameters": {"type": "object", "properties": {}}} for name in ("pi", "po"))
    with pytest.raises(ValueError, match="allow no parallel_one_function request"):
        next(ToolUse([ping, pong], cases=["parallel_one_function"]).prompts(1, 0))


def test_invalid_functions_are_left_out_and_counted() -> None:
    broken = [{**PLAY, "name": "x y"}, {**PLAY, "name": "vague", "description": ""}, PLAY]
    skill = ToolUse([*FUNCTIONS, *broken])
    assert set(skill.functions) == {function["name"] for function in FUNCTIONS}
    assert skill.rejected_functions == {"function name": 2, "function description": 1}
    with pytest.raises(ValueError, match="1 of 2 functions are valid"):
        ToolUse([PLAY, broken[0]])
