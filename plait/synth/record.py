"""What every pipeline makes: a conversation with what its checks know and where it came from, and its JSONL files.

A chat file has one object a line: `messages` in the common form (role, content, tool_calls), `skill`, and as JSON text
`tools`, `documents`, `knobs` and `provenance`. Text, because function schemas and facts differ from record to record
and columnar readers want one type per column. Files of several skills load in such readers one by one or joined to one.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One conversation on its way through a pipeline. All values are JSON-like.

    `facts` are what the checks compare with (an answer, an assignment, a query); `source` says what it was made from;
    `generators` names the models that wrote any of it; `scores` is filled by the filter.
    """

    id: str
    skill: str
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    documents: tuple[dict[str, Any], ...] = ()
    knobs: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    generators: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The text of the last message."""
        return str(self.messages[-1].get("content") or "")

    def with_facts(self, **facts: Any) -> Record:
        return replace(self, facts={**self.facts, **facts})

    def with_scores(self, **scores: float) -> Record:
        return replace(self, scores={**self.scores, **scores})

    def with_messages(self, *messages: Message) -> Record:
        return replace(self, messages=messages)

    def chat(self) -> dict[str, Any]:
        """The line of a chat file."""
        provenance = {
            "id": self.id,
            "source": self.source,
            "generators": self.generators,
            "scores": self.scores,
            "facts": self.facts,
        }
        return {
            "skill": self.skill,
            "messages": list(self.messages),
            "tools": _json(self.tools),
            "documents": _json(self.documents),
            "knobs": _json(self.knobs),
            "provenance": _json(provenance),
        }


def from_chat(line: Any) -> Record:
    """The record of a chat file's line; `messages` alone is enough. Raises ValueError if they are no conversation."""
    messages = line.get("messages") if isinstance(line, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise ValueError("a chat record needs `messages`, a list of objects with a role")
    provenance = _object(line, "provenance")
    return Record(
        id=str(provenance.get("id") or sha256(_json(messages).encode()).hexdigest()[:16]),
        skill=str(line.get("skill") or "chat"),
        messages=tuple(map(_message, messages)),
        tools=tuple(_objects(line, "tools")),
        documents=tuple(_objects(line, "documents")),
        knobs=_object(line, "knobs"),
        facts=_object(provenance, "facts"),
        source=_object(provenance, "source"),
        generators=tuple(map(str, provenance.get("generators") or ())),
        scores=_object(provenance, "scores"),
    )


def _message(given: Message) -> Message:
    """Without empty members, and with tool calls in OpenAI's form: some files have their arguments as objects."""
    message = {key: value for key, value in given.items() if value is not None}
    if not isinstance(message.get("content", ""), str):
        raise ValueError(f"the content of a chat record's message must be text, not {message['content']!r:.60}")
    if "tool_calls" in message:
        message["tool_calls"] = list(map(_tool_call, _objects(message, "tool_calls")))
    return message


def _tool_call(given: dict[str, Any]) -> dict[str, Any]:
    function = given.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"a tool call of a chat record needs a `function` with a name: {given!r:.60}")
    arguments = _object(function, "arguments")
    if isinstance(function.get("arguments"), str) and function["arguments"]:
        return given
    return {**given, "function": {**function, "arguments": _json(arguments)}}


def _object(line: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = _parsed(line.get(key), key)
    if not isinstance(value or {}, dict):
        raise ValueError(f"`{key}` of a chat record must be an object, not {value!r:.60}")
    return value or {}


def _objects(line: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = _parsed(line.get(key), key) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"`{key}` of a chat record must be a list of objects, not {value!r:.60}")
    return value


def _parsed(value: Any, key: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) and value else value
    except json.JSONDecodeError as error:
        raise ValueError(f"`{key}` of a chat record is not JSON: {error}") from None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def random_for(*parts: object) -> Random:
    """Randomness fixed by `parts`, the same in every process (Python may change what `sample` makes of it)."""
    return Random(sha256(repr(parts).encode()).digest())


def request_seed(*parts: object) -> int:
    """A seed for `SamplingParams`, fixed by `parts`."""
    return random_for(*parts).getrandbits(62)


def write_records(records: Iterable[Record], path: Path) -> int:
    """All fields of each record, one a line. The file appears whole or not at all; returns how many."""
    return write_jsonl((vars(record) for record in records), path)


def read_records(path: Path) -> Iterator[Record]:
    """What `write_records` wrote, one in memory at a time."""
    for line in read_jsonl(path):
        for key in ("messages", "tools", "documents", "generators"):
            line[key] = tuple(line[key])
        yield Record(**line)


def write_jsonl(lines: Iterable[Any], path: Path) -> int:
    """One JSON value a line, in a file that appears whole or not at all; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    n_lines = 0
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
                n_lines += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return n_lines


def read_jsonl(path: Path) -> Iterator[Any]:
    """One value per line; blank lines are skipped. Raises ValueError naming the line that is not JSON."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise ValueError(f"{path} line {number} is not JSON in UTF-8: {error}") from None


def read_json(path: Path) -> Any:
    """The one value in a file. Raises ValueError naming the file that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}") from None


def write_text(text: str, path: Path) -> None:
    """`text` in a file that appears whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
