"""Tool use: assignments first, then a request that asks for just these calls, kept if a model answers with them.

Paper section 5.3: several valid assignments per function; subsets of them, of one function and across functions; a user
request for each subset; a function-calling model's response, kept only where its calls are the assignment.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from plait.synth.assignments import sample_assignments
from plait.synth.mock_tools import Tool, execute, values_to_repeat
from plait.synth.pipeline import Ask, Dropped
from plait.synth.record import Message, Record, random_for, request_seed
from plait.synth.schemas import Function, wrong_arguments, wrong_function
from plait.text import GenerationRequest, SamplingParams, parse_tool_calls

CASES = ("one_call", "parallel_one_function", "parallel_functions", "no_call", "missing_parameter", "multi_turn")
_ASSIGNMENTS = 6  # per function
_MAX_CALLS = 4
_PASSES_WITHOUT_A_PROMPT = 1000


class ToolUse:
    """Functions that fail validation are left out, with the reason in `rejected_functions`."""

    name = "tool_use"

    def __init__(
        self,
        functions: Sequence[Function],
        *,
        cases: Sequence[str] = CASES,
        tools: Mapping[str, Tool] | None = None,
        max_distractors: int = 3,
    ) -> None:
        """`tools` are executed in multi-turn records; others get a stand-in. `max_distractors` functions are offered
        beside those needed."""
        if not cases or not set(cases) <= set(CASES):
            raise ValueError(f"cases={cases} must be among {', '.join(CASES)}")
        self.cases = tuple(cases)
        self.tools = dict(tools or {})
        self.max_distractors = max_distractors
        self.functions: dict[str, Function] = {}
        self.rejected_functions: Counter[str] = Counter()
        for function in functions:
            wrong = wrong_function(function)
            if wrong is None and function["name"] in self.functions:
                wrong = "function name: given twice"
            if wrong is None and not sample_assignments(function, random_for("any", function["name"]), 1):
                wrong = "function parameters: no valid assignment found"
            if wrong is None:
                self.functions[function["name"]] = function
            else:
                self.rejected_functions[wrong.partition(":")[0]] += 1
        if len(self.functions) < 2:
            raise ValueError(
                f"{len(self.functions)} of {len(functions)} functions are valid, two are needed; rejected:"
                f" {dict(self.rejected_functions)}"
            )

    def settings(self) -> dict[str, Any]:
        return {
            "functions": sorted(self.functions),
            "rejected_functions": dict(self.rejected_functions),
            "cases": self.cases,
            "max_distractors": self.max_distractors,
        }

    def prompts(self, n: int, seed: int) -> Iterator[Record]:
        made = barren = 0
        while made < n:
            random = random_for("tool_use", seed, made, barren)
            case = self.cases[made % len(self.cases)]
            calls = self._draw_calls(case, random)
            if calls is None:
                barren += 1
                if barren == _PASSES_WITHOUT_A_PROMPT:
                    raise ValueError(f"the functions allow no {case} request: give more of them, with parameters")
                continue
            barren = 0
            yield self._prompt(f"tool_use-{seed}-{made}", case, calls, random, seed)
            made += 1

    def _draw_calls(self, case: str, random: Random) -> list[dict[str, Any]] | None:
        """The calls that the request must lead to (for no_call and missing_parameter: that it must not yet)."""
        n_calls = random.randint(2, _MAX_CALLS)
        names = random.sample(sorted(self.functions), min(n_calls, len(self.functions)))
        if case == "parallel_functions":
            drawn = [(name, sample_assignments(self.functions[name], random, _ASSIGNMENTS)) for name in names]
            calls = [(name, random.choice(assignments)) for name, assignments in drawn]
        else:
            assignments = sample_assignments(self.functions[names[0]], random, _ASSIGNMENTS)
            wanted = n_calls if case == "parallel_one_function" else 1
            if len(assignments) < wanted:
                return None
            calls = [(names[0], arguments) for arguments in random.sample(assignments, wanted)]
        if case == "missing_parameter" and not self.functions[names[0]]["parameters"].get("required"):
            return None
        return [{"name": name, "arguments": arguments} for name, arguments in calls]

    def _prompt(self, identity: str, case: str, calls: list[dict[str, Any]], random: Random, seed: int) -> Record:
        needed = list(dict.fromkeys(call["name"] for call in calls))
        others = [name for name in sorted(self.functions) if name not in needed]
        n_others = min(len(others), random.randint(1 if case == "no_call" else 0, max(1, self.max_distractors)))
        offered = random.sample(others, n_others) + ([] if case == "no_call" else needed)
        random.shuffle(offered)
        facts: dict[str, Any] = {"case": case, "calls": calls}
        if case == "missing_parameter":
            facts["missing"] = random.choice(self.functions[needed[0]]["parameters"]["required"])
        tools = tuple({"type": "function", "function": self.functions[name]} for name in offered)
        return Record(identity, self.name, tools=tools, facts=facts, source={"functions": needed, "seed": seed})

    def respond(self, record: Record, ask: Ask) -> Sequence[Record]:
        request = ask(self._user_request(record))[0].strip().strip('"')
        messages: list[Message] = [{"role": "user", "content": request}]
        messages.append(self._turn(record, messages, ask))
        if record.facts["case"] == "multi_turn" and self._wrong_calls(record, messages[1]) is None:
            messages += self._results(messages[1])
            messages.append(self._turn(record, messages, ask))
        return [record.with_messages(*messages)]

    def _user_request(self, record: Record) -> GenerationRequest:
        """Asks for the words of a user who wants the calls and doesn't know that there are functions."""
        calls = []
        for call in record.facts["calls"]:
            left_out = record.facts.get("missing")
            arguments = {key: value for key, value in call["arguments"].items() if key != left_out}
            task = self.functions[call["name"]]["description"]
            calls.append(f"- {task}: {json.dumps(arguments, ensure_ascii=False)}")
        left_out_text = ""
        if "missing" in record.facts:
            left_out_text = f" Don't give or hint at the {record.facts['missing']}."
        prompt = (
            "Write what a user says to an assistant to have all of this done, in one natural message. Mention every"
            " value exactly as written. Don't mention functions, parameters or JSON, and add nothing else to be done."
            f"{left_out_text} Answer with the message only.\n\n" + "\n".join(calls)
        )
        return _request(prompt, temperature=0.8, seed=request_seed(record.id, "request"))

    def _turn(self, record: Record, messages: Sequence[Message], ask: Ask) -> Message:
        sampling = SamplingParams(temperature=0.0, max_tokens=1024)
        request = GenerationRequest(messages=list(messages), tools=list(record.tools), sampling=sampling)
        parsed = parse_tool_calls(ask(request)[0])
        message: Message = {"role": "assistant", "content": (parsed.content or "").strip()}
        if parsed.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for i, call in enumerate(parsed.tool_calls)
            ]
        return message

    def _results(self, message: Message) -> list[Message]:
        results = []
        for call in message["tool_calls"]:
            function = self.functions[call["function"]["name"]]
            value = execute(function, json.loads(call["function"]["arguments"]), self.tools)
            content = json.dumps(value, ensure_ascii=False)
            results.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        return results

    def check(self, record: Record, ask: Ask) -> Record:
        """No model is asked: whether the calls are the assignment is arithmetic."""
        request, answer = record.messages[0]["content"], record.messages[1]
        for name in [tool["function"]["name"] for tool in record.tools] + record.source["functions"]:
            if "_" in name and name.lower() in request.lower():
                raise Dropped(f"request names a function: {name}")
        case = record.facts["case"]
        if case in ("no_call", "missing_parameter"):
            self._check_no_calls(record, answer)
        elif (wrong := self._wrong_calls(record, answer)) is not None:
            raise Dropped(wrong)
        if case == "multi_turn":
            self._check_results(record)
        return record.with_scores(calls_equal=1.0)

    def _check_no_calls(self, record: Record, answer: Message) -> None:
        if answer.get("tool_calls"):
            raise Dropped(f"calls where none belongs: {answer['tool_calls'][0]['function']['name']}")
        missing, request = record.facts.get("missing"), record.messages[0]["content"]
        arguments = record.facts["calls"][0]["arguments"]
        if missing is not None and _says(arguments[missing], request):
            raise Dropped(f"request gives the missing parameter: {missing}")
        for text in values_to_repeat({key: value for key, value in arguments.items() if key != missing}):
            if not _says(text, request):  # where calls follow, they prove that the request asks for them
                raise Dropped(f"request leaves out a value: {text}")
        if missing is not None and not _asks_for(missing, answer["content"]):
            raise Dropped(f"doesn't ask for the missing parameter: {missing}")

    def _wrong_calls(self, record: Record, answer: Message) -> str | None:
        """Why the calls of `answer` are not the assignment, in any order; or None."""
        made = []
        for call in answer.get("tool_calls", ()):
            name, arguments = call["function"]["name"], _loads(call["function"]["arguments"])
            offered = next((t["function"] for t in record.tools if t["function"]["name"] == name), None)
            if offered is None:
                return f"calls what isn't offered: {name}"
            if (wrong := wrong_arguments(arguments, offered)) is not None:
                return f"invalid arguments: {wrong}"
            made.append(_canonical(arguments, offered, name))
        wanted = [_canonical(c["arguments"], self.functions[c["name"]], c["name"]) for c in record.facts["calls"]]
        if sorted(made) != sorted(wanted):
            return f"calls are not the assignment: {sorted(made)} for {sorted(wanted)}"
        return None

    def _check_results(self, record: Record) -> None:
        results = [message for message in record.messages if message["role"] == "tool"]
        if [m["content"] for m in results] != [m["content"] for m in self._results(record.messages[1])]:
            raise Dropped("tool results aren't what the tools give")
        if record.messages[-1].get("tool_calls"):
            raise Dropped("calls where none belongs: behind the results")
        for result in results:
            value = json.loads(result["content"])
            if isinstance(value, dict) and "error" in value:
                raise Dropped(f"tool failed: {value['error']}")
            for text in values_to_repeat(value):
                if not _says(text, record.answer):
                    raise Dropped(f"answer leaves out a result: {text}")

    def edit(self, records: Iterable[Record]) -> Iterator[Record]:
        """Arguments in one spelling, so that the same call always trains the same tokens."""
        for record in records:
            yield replace(record, messages=tuple(_tidy(message) for message in record.messages))


def _asks_for(parameter: str, said: str) -> bool:
    """A question with a word of the parameter's name."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", parameter).lower())
    return "?" in said and any(word in said.lower() for word in words)


def _tidy(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _dumps(_loads(call["function"]["arguments"]))}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _canonical(arguments: dict[str, Any], function: Function, name: str) -> str:
    """One text per meaning: keys sorted, 5.0 as 5, optional arguments left out where they are the default."""
    properties, required = function["parameters"].get("properties", {}), function["parameters"].get("required", [])
    kept = {
        key: value
        for key, value in arguments.items()
        if key in required or "default" not in properties[key] or properties[key]["default"] != value
    }
    return f"{name} {json.dumps(_plain_numbers(kept), sort_keys=True, ensure_ascii=False)}"


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _says(value: Any, text: str) -> bool:
    """`value` stands in `text` as words or a number of its own, with or without commas between the thousands."""
    shown = re.escape(str(_plain_numbers(value)).casefold())
    pattern = rf"(?<!\w)(?<!\d\.){shown}(?!\w)(?!\.\d)"
    without_commas = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return any(re.search(pattern, written.casefold()) for written in (text, without_commas))


def _loads(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return None


def _dumps(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _request(prompt: str, *, temperature: float, seed: int) -> GenerationRequest:
    sampling = SamplingParams(temperature=temperature, max_tokens=512, seed=seed)
    return GenerationRequest(messages=[{"role": "user", "content": prompt}], sampling=sampling)
