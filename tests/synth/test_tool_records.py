"""Recorded conversations: good ones come through in the common form, every planted fault is caught."""

import json
from pathlib import Path

import pytest

from plait.synth.sft import _for_template
from plait.synth.tool_records import ToolRecords, call_of
from plait.text import ChatTemplate, parse_tool_calls

RATE = {
    "name": "get_exchange_rate",
    "description": "Get the exchange rate between two currencies",
    "parameters": {
        "type": "object",
        "properties": {"base": {"type": "string"}, "target": {"type": "string"}, "amount": {"type": "number"}},
        "required": ["base", "target"],
    },
}
SYSTEM = f"SYSTEM: You are a helpful assistant with access to these functions -\n{json.dumps(RATE, indent=4)}\n"
CALL = """<functioncall> {"name": "get_exchange_rate", "arguments": '{"base": "USD", "target": "EUR"}'} <|endoftext|>"""
RESULT = '{"rate": 0.8537}'
GOOD = (
    "USER: What is a dollar in euros?\n\n\nASSISTANT: {call}\n\n\nFUNCTION RESPONSE: {result}\n\n\n"
    "ASSISTANT: {answer} <|endoftext|>\n\n\nUSER: Book me a flight.\n\n\n"
    "ASSISTANT: That is beyond what I can do with these functions. <|endoftext|>\n\n\n"
)


def row(*, call: str = CALL, result: str = RESULT, answer: str = "One dollar is 0.854 euros.", **more: str) -> dict:
    return {"system": SYSTEM, "chat": GOOD.format(call=call, result=result, answer=answer), **more}


def skill(tmp_path: Path, *rows: dict) -> ToolRecords:
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ToolRecords(tmp_path / "records.jsonl")


def test_a_good_record_in_the_common_form(run, tmp_path: Path) -> None:
    records, outcome = run(skill(tmp_path, row()), n=5)
    assert outcome.n_records == 1
    messages = records[0].messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    call = messages[1]["tool_calls"][0]
    assert call["function"] == {"name": "get_exchange_rate", "arguments": '{"base": "USD", "target": "EUR"}'}
    assert messages[2] == {"role": "tool", "content": RESULT, "tool_call_id": call["id"]}
    assert messages[3]["content"] == "One dollar is 0.854 euros."
    assert records[0].tools[0]["function"] == RATE
    assert records[0].source == {"kind": "recorded", "file": "records.jsonl", "record": 0}


def test_the_template_writes_the_call_so_that_it_is_read_back(run, tmp_path: Path) -> None:
    records, _ = run(skill(tmp_path, row()), n=1)
    turns = [_for_template(message) for message in records[0].messages[:2]]
    text = ChatTemplate().render(turns, tools=list(records[0].tools), add_generation_prompt=False)
    parsed = parse_tool_calls(text.rsplit("<|assistant|>", 1)[1].partition("<|eom|>")[0])
    assert json.loads(parsed.tool_calls[0].arguments) == {"base": "USD", "target": "EUR"}


PLANTED = {
    "unknown function": ({"call": CALL.replace("get_exchange_rate", "get_rate")}, "calls what isn't offered"),
    "required left out": ({"call": CALL.replace(', "target": "EUR"', "")}, "invalid arguments"),
    "wrong type": ({"call": CALL.replace('"EUR"', "7")}, "invalid arguments"),
    "unknown parameter": ({"call": CALL.replace('"target"', '"to"')}, "invalid arguments"),
    "broken arguments": ({"call": CALL.replace('"EUR"}', '"EUR"')}, "arguments aren't JSON"),
    "arguments that are a list": ({"call": CALL.replace('{"base": "USD", "target": "EUR"}', "[1]")}, "arguments aren"),
    "no call at all": ({"call": "<functioncall> get_exchange_rate(USD)"}, "call isn't written as one"),
    "result of words": ({"result": "about 0.85"}, "result isn't JSON"),
    "another number": ({"answer": "One dollar is 0.93 euros."}, "answer leaves out the result"),
    "no number": ({"answer": "Dollars are worth less than euros."}, "answer leaves out the result"),
    "refusal": ({"answer": "I'm sorry, I can't tell, but 0.8537."}, "refuses though it has the result"),
    "empty answer": ({"answer": ""}, "empty answer"),
    "format marker": ({"answer": "0.8537 <|im_end|>"}, "format marker in the text"),
    "function without description": ({"system": SYSTEM.replace(RATE["description"], "")}, "function description"),
    "function of no type": ({"system": SYSTEM.replace('"number"', '"money"')}, "function schema"),
    "function twice": ({"system": SYSTEM + json.dumps(RATE)}, "function name"),
    "two users in a row": ({"chat": "USER: Hi\n\nUSER: Hi?\n\nASSISTANT: Ho"}, "not a conversation"),
    "words before the first turn": ({"chat": "Hello USER: hi\n\nASSISTANT: ho"}, "not a conversation"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_each_planted_fault_is_caught(fault: str, run, drops, tmp_path: Path) -> None:
    change, reason = PLANTED[fault]
    _, outcome = run(skill(tmp_path, row(), row(**change), row()), n=3)
    assert outcome.n_records == 2
    found = drops(outcome)
    assert sum(found.values()) == 1
    assert next(iter(found)).startswith(reason)


def test_apostrophes_and_escapes_in_quoted_arguments() -> None:
    call = call_of("""{"name": "f", "arguments": '{"text": "it\\'s \\\\"so\\\\""}'}""")
    assert json.loads(call["arguments"]) == {"text": 'it\'s "so"'}
    assert call_of('{"name": "f", "arguments": {"a": [1]}}') == {"name": "f", "arguments": '{"a": [1]}'}


@pytest.mark.parametrize(
    ("content", "says"), [(b"oops", "is not JSON"), (b"\xff", "is not JSON"), (b"3", "record 0 must")]
)
def test_a_file_that_is_no_list_of_records_is_named(content: bytes, says: str, run, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.json.*{says}"):
        run(ToolRecords(tmp_path / "x.json"))


def test_files_of_something_else_are_refused(run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"record 0 must have the texts `system` and `chat`"):
        run(skill(tmp_path, {"messages": []}), n=1)
