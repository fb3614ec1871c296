"""Recorded conversations with function calls, in the style of Glaive's data set, validated, in the common form.

Paper section 5.3 begins its tool-use data with such records, kept where heuristics and the functions' own schemas find
nothing wrong. A record is {"system": functions as JSON text, "chat": turns marked USER, ASSISTANT, FUNCTION RESPONSE}.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from plait.synth.conversation import without_artifacts
from plait.synth.function_sources import functions_of_glaive
from plait.synth.mock_tools import values_to_repeat
from plait.synth.pipeline import Ask, Dropped
from plait.synth.record import Message, Record, read_json, read_jsonl
from plait.synth.schemas import wrong_arguments, wrong_function

_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_CALL = re.compile(r"<functioncall>\s*(.*)\Z", re.DOTALL)
_QUOTED_ARGUMENTS = re.compile(r'\A\{\s*"name":\s*"(?P<name>[^"]+)",\s*"arguments":\s*(?P<text>.*)\}\s*\Z', re.DOTALL)
_END = "<|endoftext|>"
_REFUSES_THOUGH_IT_CALLS = re.compile(r"\b(?:I'm sorry|I am sorry|unable to|can(?:'|no)t assist)\b", re.IGNORECASE)


class ToolRecords:
    """Needs no model. `records` are asked for in the file's order; those that are wrong are counted in the funnel."""

    name = "tool_records"

    def __init__(self, path: Path) -> None:
        """`path`: a JSONL file, or a JSON list, of records with `system` and `chat`."""
        self.path = path

    def settings(self) -> dict[str, Any]:
        return {"records": self.path.name, "sha256": sha256(self.path.read_bytes()).hexdigest()}

    def prompts(self, n: int, seed: int) -> Iterator[Record]:
        for index, row in zip(range(n), self._rows(), strict=False):
            if (
                not isinstance(row, dict)
                or not isinstance(row.get("chat"), str)
                or not isinstance(row.get("system"), str)
            ):
                raise ValueError(f"{self.path}: record {index} must have the texts `system` and `chat`")
            source = {"kind": "recorded", "file": self.path.name, "record": index}
            yield Record(f"tool_records-{index}", self.name, facts={"row": row}, source=source)

    def _rows(self) -> Iterable[Any]:
        if self.path.suffix != ".json":
            return read_jsonl(self.path)
        rows = read_json(self.path)
        return rows if isinstance(rows, list) else [rows]

    def respond(self, record: Record, ask: Ask) -> Sequence[Record]:
        row = record.facts["row"]
        functions = list(functions_of_glaive(row))
        tools = tuple({"type": "function", "function": function} for function in functions)
        return [replace(record, messages=messages_of(row["chat"]), tools=tools, facts={})]

    def check(self, record: Record, ask: Ask) -> Record:
        """Schemas first, then every call against them, then that answers repeat what the results say."""
        functions = {tool["function"]["name"]: tool["function"] for tool in record.tools}
        if len(functions) != len(record.tools):
            raise Dropped("function name: given twice")
        for function in functions.values():
            if (wrong := wrong_function(function)) is not None:
                raise Dropped(wrong)
        calls = [call["function"] for message in record.messages for call in message.get("tool_calls", ())]
        for call in calls:
            if call["name"] not in functions:
                raise Dropped(f"calls what isn't offered: {call['name']}")
            wrong = wrong_arguments(json.loads(call["arguments"]), functions[call["name"]])
            if wrong is not None:
                raise Dropped(f"invalid arguments: {wrong}")
        _check_results(record)
        return record.with_scores(calls_valid=1.0)

    def edit(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            yield record.with_messages(*(_without_openers(message) for message in record.messages))


def messages_of(chat: str) -> tuple[Message, ...]:
    """The turns of a record's `chat` in the common form. Raises Dropped where it isn't written as it should be."""
    pieces = _TURN.split(chat)
    if pieces[0].strip():
        raise Dropped(f"not a conversation: begins with {pieces[0].strip()[:40]!r}")
    messages: list[Message] = []
    for speaker, text in zip(pieces[1::2], pieces[2::2], strict=True):
        content = text.replace(_END, "").strip()
        message: Message = {"role": _ROLES[speaker], "content": content}
        if message["role"] == "tool":
            message["tool_call_id"] = f"call_{len(messages) - 1}"
        found = _CALL.search(content) if message["role"] == "assistant" else None
        if found is not None:
            arguments = call_of(found[1])
            message["content"] = content[: found.start()].strip()
            message["tool_calls"] = [{"id": f"call_{len(messages)}", "type": "function", "function": arguments}]
        messages.append(message)
    return tuple(messages)


def call_of(text: str) -> dict[str, str]:
    """`{"name": "f", "arguments": '{"a": 1}'}`, the arguments quoted as Python does, or an object."""
    found = _QUOTED_ARGUMENTS.match(text.strip())
    if found is None:
        raise Dropped(f"call isn't written as one: {text[:80]!r}")
    given = found["text"].strip()
    try:
        if given.startswith("'"):
            given = ast.literal_eval(f"'''{given[1:-1]}'''")
        arguments = json.loads(given)
    except (ValueError, SyntaxError):
        raise Dropped(f"arguments aren't JSON: {given[:80]!r}") from None
    if not isinstance(arguments, dict):
        raise Dropped(f"arguments aren't JSON: {given[:80]!r} is no object")
    return {"name": found["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}


def _check_results(record: Record) -> None:
    """A result is JSON and no error, and of its numbers at least one stands in the answer behind it."""
    for message, answer in zip(record.messages, record.messages[1:], strict=False):
        if message["role"] != "tool":
            continue
        try:
            result = json.loads(message["content"])
        except json.JSONDecodeError:
            raise Dropped(f"result isn't JSON: {message['content'][:80]!r}") from None
        said = str(answer.get("content") or "")
        if _REFUSES_THOUGH_IT_CALLS.search(said):
            raise Dropped(f"refuses though it has the result: {said[:80]!r}")
        numbers = [text for text in values_to_repeat(result) if _is_number(text)]
        if numbers and answer["role"] == "assistant" and not any(_has_number(said, number) for number in numbers):
            raise Dropped(f"answer leaves out the result: none of {', '.join(numbers[:5])}")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(?:\.\d+)?", text) is not None


def _has_number(said: str, number: str) -> bool:
    """As it is, or rounded: an answer may say 12.35 for 12.3456."""
    written = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", said))]
    return any(abs(value - float(number)) <= 0.005 * max(1.0, abs(float(number))) for value in written)


def _without_openers(message: Mapping[str, Any]) -> Message:
    if message["role"] != "assistant" or message.get("tool_calls"):
        return dict(message)
    return {**message, "content": without_artifacts(message["content"])}
