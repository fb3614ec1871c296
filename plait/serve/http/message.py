"""An answer's text as it streams, taken apart into reasoning, content, tool calls and citations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plait.serve.http.form import AnswerForm
from plait.text import (
    CitationsEvent,
    ContentDelta,
    ReasoningDelta,
    ReasoningStream,
    ToolCall,
    ToolCallEvent,
    ToolCallStream,
)

Event = ReasoningDelta | ContentDelta | ToolCallEvent | CitationsEvent


@dataclass(frozen=True)
class Message:
    content: str | None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    citations: tuple[int | str, ...] | None = None


class MessageStream:
    """However the text is cut into pieces, the events joined are the same message.

    Sections (tool calls, citations) are looked for only if the request offers tools or asks for citations.
    """

    def __init__(self, form: AnswerForm, *, reads_sections: bool) -> None:
        self._drops_space = form.leading_space
        self._reasoning = ReasoningStream(is_open=form.reasoning_is_open) if form.reasons else None
        self._sections = ToolCallStream() if reads_sections else None

    def push(self, piece: str) -> list[Event]:
        if self._drops_space and piece:
            piece, self._drops_space = piece.removeprefix(" "), False
        if self._reasoning is None:
            return self._read(piece)
        return self._after_reasoning(self._reasoning.push(piece))

    def finish(self) -> list[Event]:
        """The end of the answer: what was held back."""
        events = self._after_reasoning(self._reasoning.finish()) if self._reasoning else []
        return events + (list(self._sections.finish()) if self._sections else [])

    def _after_reasoning(self, read: Iterable[ReasoningDelta | ContentDelta]) -> list[Event]:
        events: list[Event] = []
        for event in read:
            events += [event] if isinstance(event, ReasoningDelta) else self._read(event.text)
        return events

    def _read(self, text: str) -> list[Event]:
        if self._sections is not None:
            return list(self._sections.push(text))
        return [ContentDelta(text)] if text else []


def join(events: Iterable[Event]) -> Message:
    """The message that a stream's events make up."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    citations: tuple[int | str, ...] | None = None
    for event in events:
        match event:
            case ContentDelta(text):
                content.append(text)
            case ReasoningDelta(text):
                reasoning.append(text)
            case ToolCallEvent(call=call):
                calls.append(call)
            case CitationsEvent(document_ids):
                citations = (citations or ()) + document_ids
    return Message("".join(content) or None, "".join(reasoning) or None, tuple(calls), citations)
