"""What a model's answer holds beside text: tool calls and citations, read whole or as it streams (paper section 5.3).

The Jamba form is `<tool_calls>[{"name": …, "arguments": {…}}, …]</tool_calls>`, that of the 3B models one
`<tool_call>{…}</tool_call>` per call; citations are `<citations>[0, 2]</citations>`. Decode with `control_tokens=True`,
or the tags are lost before they get here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from plait.text.json_scanner import JsonScanner


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str  # a JSON object, in the model's own characters


@dataclass(frozen=True)
class ContentDelta:
    """More text for the user."""

    text: str


@dataclass(frozen=True)
class ToolCallEvent:
    """A whole call; `index` counts the calls of the message from 0."""

    index: int
    call: ToolCall


@dataclass(frozen=True)
class CitationsEvent:
    """Ids of the documents that support the answer; none: nothing supports it."""

    document_ids: tuple[int | str, ...]


Event = ContentDelta | ToolCallEvent | CitationsEvent


class SectionKind(StrEnum):
    """What a tagged section of an answer holds."""

    CALLS = "calls"
    CITATIONS = "citations"


@dataclass(frozen=True)
class ParsedMessage:
    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    citations: tuple[int | str, ...] | None = None


def parse_tool_calls(text: str) -> ParsedMessage:
    """Splits a whole answer.

    A section counts only if all of it is right: JSON, every call with a name and arguments that are an object or a
    string that holds one. Any other stays content, tags included. The closing tag may be missing at the very end. White
    space next to a section and nothing else is dropped, so content is None when there is no other text.
    """
    stream = ToolCallStream()
    return join_events([*stream.push(text), *stream.finish()])


def join_events(events: Iterable[Event]) -> ParsedMessage:
    """The message that a stream's events make up."""
    events = list(events)
    cited = [i for event in events if isinstance(event, CitationsEvent) for i in event.document_ids]
    has_cited = any(isinstance(event, CitationsEvent) for event in events)
    return ParsedMessage(
        content="".join(event.text for event in events if isinstance(event, ContentDelta)) or None,
        tool_calls=tuple(event.call for event in events if isinstance(event, ToolCallEvent)),
        citations=tuple(cited) if has_cited else None,
    )


class ToolCallStream:
    """`parse_tool_calls` for text that arrives in pieces: however it is cut, the joined events are the same message.

    Content goes out at once, but for what may be the beginning of a tag. A call goes out when its section is complete
    and right, because a call that turned out malformed could not be taken back. Sections of a kind that is not among
    `sections` are content like any other text.
    """

    def __init__(self, sections: Collection[SectionKind] = tuple(SectionKind)) -> None:
        self._tags = [tag for tag, (kind, _) in _READERS.items() if kind in sections]
        self._opening = re.compile("|".join(self._tags))
        self._pending = ""  # may be the beginning of a tag
        self._section: _Section | None = None
        self._held_space: list[str] = []  # white space at the beginning or behind a section
        self._holds_space = True
        self._n_calls = 0
        self._found_any = False

    def push(self, piece: str) -> list[Event]:
        events: list[Event] = []
        rest = piece
        while rest:
            rest = self._read_section(rest, events) if self._section else self._read_content(rest, events)
        return events

    def finish(self) -> list[Event]:
        """The end of the answer: what was held back."""
        events: list[Event] = []
        if self._section is not None:
            section, self._section = self._section, None
            self._close_section(section, events, is_whole=section.may_end())
        self._emit(self._pending, events)
        self._pending = ""
        if self._held_space and not self._found_any:
            events.append(ContentDelta("".join(self._held_space)))
        self._held_space = []
        return events

    def _read_content(self, text: str, events: list[Event]) -> str:
        text = self._pending + text
        tag = self._opening.search(text)
        if tag is None:
            held = _tail_that_may_open(text, self._tags)
            self._pending = text[len(text) - held :]
            self._emit(text[: len(text) - held], events)
            return ""
        self._pending = ""
        self._emit(text[: tag.start()], events)
        self._section = _Section(tag.group())
        return text[tag.end() :]

    def _read_section(self, text: str, events: list[Event]) -> str:
        assert self._section is not None
        section = self._section
        rest = section.feed(text)
        if section.state != "open":
            self._section = None
            self._close_section(section, events, is_whole=section.state == "done")
        return rest

    def _close_section(self, section: _Section, events: list[Event], *, is_whole: bool) -> None:
        read = _READERS[section.tag][1](section.body) if is_whole else None
        if read is None:
            self._emit(section.text, events)
            return
        self._held_space, self._holds_space, self._found_any = [], True, True
        for item in read:
            if isinstance(item, ToolCall):
                events.append(ToolCallEvent(self._n_calls, item))
                self._n_calls += 1
            else:
                events.append(item)

    def _emit(self, text: str, events: list[Event]) -> None:
        if not text:
            return
        if self._holds_space and text.isspace():
            self._held_space.append(text)
        else:
            events.append(ContentDelta("".join(self._held_space) + text))
            self._held_space, self._holds_space = [], False


class _Section:
    """A tag, a JSON value, white space, the closing tag."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.state = "open"  # done, or broken: then `text` is what it took, and what follows was never looked at
        self._closing = f"</{tag[1:]}"
        self._scanner = JsonScanner()
        self._body: list[str] = []  # the JSON value with white space around it
        self._closed = ""  # as much of the closing tag as came

    @property
    def body(self) -> str:
        return "".join(self._body)

    @property
    def text(self) -> str:
        return self.tag + self.body + self._closed

    def may_end(self) -> bool:
        """Whether it is complete but for the closing tag."""
        return self._scanner.state == "done" and not self._closed

    def feed(self, text: str) -> str:
        """Takes what belongs to it; returns the rest, which is empty while open."""
        if self._scanner.state == "open":
            end = self._scanner.feed(text)
            self._body.append(text[:end])
            text = text[end:]
        if self._scanner.state == "broken":
            self.state = "broken"
        elif self._scanner.state == "done":
            return self._close(text)
        return text

    def _close(self, text: str) -> str:
        if not self._closed:
            n_space = len(text) - len(text.lstrip())
            self._body.append(text[:n_space])
            text = text[n_space:]
        text = self._closed + text
        if text.startswith(self._closing):
            self.state, self._closed = "done", self._closing
            return text[len(self._closing) :]
        if self._closing.startswith(text):
            self._closed = text
            return ""
        self.state, self._closed = "broken", ""
        return text


def _read_calls(body: str) -> Sequence[ToolCall] | None:
    """The calls of a JSON list, or None if it is empty or any of them is wrong."""
    calls = [_read_call(raw) for raw in _elements(body.strip())]
    return [call for call in calls if call] if calls and all(calls) else None


def _read_one_call(body: str) -> Sequence[ToolCall] | None:
    call = _read_call(body.strip())
    return [call] if call else None


def _read_call(raw: str) -> ToolCall | None:
    members = dict(_members(raw))
    name = _string(members.get("name", ""))
    arguments = members.get("arguments", "")
    if arguments.startswith('"'):
        arguments = _string(arguments)
    return ToolCall(name, arguments) if name and _is_object(arguments) else None


def _is_object(text: str) -> bool:
    scanner = JsonScanner()
    end = scanner.feed(text)
    return scanner.state == "done" and text.lstrip().startswith("{") and not text[end:].strip()


def _read_citations(body: str) -> Sequence[CitationsEvent] | None:
    ids = [int(raw) if _WHOLE_NUMBER.fullmatch(raw) else _string(raw) for raw in _elements(body.strip())]
    is_list_of_ids = body.lstrip().startswith("[") and "" not in ids
    return [CitationsEvent(tuple(ids))] if is_list_of_ids else None


_READERS: dict[str, tuple[SectionKind, Callable[[str], Sequence[ToolCall | CitationsEvent] | None]]] = {
    "<tool_calls>": (SectionKind.CALLS, _read_calls),
    "<tool_call>": (SectionKind.CALLS, _read_one_call),
    "<citations>": (SectionKind.CITATIONS, _read_citations),
}
# Numbers stay text: their values aren't needed, and int() refuses very long ones.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
_BETWEEN = re.compile(r"[ \t\n\r,:]*")
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


def _elements(raw: str) -> Iterator[str]:
    """The elements of a JSON array, each as it is written; none if it is an object."""
    at = _skip(raw, 1)
    while raw.startswith("[") and raw[at] != "]":
        _, end = _DECODER.raw_decode(raw, at)
        yield raw[at:end]
        at = _skip(raw, end)


def _members(raw: str) -> Iterator[tuple[str, str]]:
    """The keys of a JSON object, and their values as they are written; none if it is something else."""
    at = _skip(raw, 1)
    while raw.startswith("{") and raw[at] != "}":
        key, at = _DECODER.raw_decode(raw, at)
        at = _skip(raw, at)
        _, end = _DECODER.raw_decode(raw, at)
        yield key, raw[at:end]
        at = _skip(raw, end)


def _skip(raw: str, at: int) -> int:
    between = _BETWEEN.match(raw, at)
    assert between is not None
    return between.end()


def _string(raw: str) -> str:
    """The text of a JSON string; empty if it is something else or has a lone surrogate, which no answer can carry."""
    text = json.loads(raw) if raw.startswith('"') else ""
    return "" if any("\ud800" <= char <= "\udfff" for char in text) else text


def _tail_that_may_open(text: str, tags: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a tag."""
    start = text.rfind("<", max(0, len(text) - max(map(len, tags))))
    return len(text) - start if start >= 0 and any(tag.startswith(text[start:]) for tag in tags) else 0
