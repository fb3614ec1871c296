"""An answer's text as it streams, taken apart into reasoning, content, tool calls and citations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from plait.serve.http.form import AnswerForm
from plait.text import (
    CitationsEvent,
    ContentDelta,
    ReasoningDelta,
    ReasoningStream,
    SectionKind,
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

    `sections` are looked for; all other text is content, tags or not. `n_reasoning_tokens` counts those whose text was
    reasoning, the tags themselves left out.
    """

    def __init__(self, form: AnswerForm, *, sections: Collection[SectionKind] = ()) -> None:
        self._drops_space = form.leading_space
        self._reasoning = ReasoningStream(is_open=form.reasoning_is_open) if form.reasons else None
        self._sections = ToolCallStream(sections) if sections else None
        self.n_reasoning_tokens = 0
        self._n_unseen_tokens = 0  # of which no text came yet: half a character, or what may be a tag

    def push(self, piece: str, n_tokens: int = 0) -> list[Event]:
        if self._drops_space and piece:
            piece, self._drops_space = piece.removeprefix(" "), False
        if self._reasoning is None:
            return self._read(piece)
        was_open = self._reasoning.is_open
        read = self._reasoning.push(piece)
        self._count(read, n_tokens, goes_on=was_open and self._reasoning.is_open)
        return self._after_reasoning(read)

    def finish(self) -> list[Event]:
        """The end of the answer: what was held back."""
        events: list[Event] = []
        if self._reasoning is not None:
            read = self._reasoning.finish()
            self._count(read, 0, goes_on=False)
            events += self._after_reasoning(read)
        return events + (list(self._sections.finish()) if self._sections else [])

    def _count(self, read: Sequence[ReasoningDelta | ContentDelta], n_tokens: int, *, goes_on: bool) -> None:
        self._n_unseen_tokens += n_tokens
        if any(isinstance(event, ReasoningDelta) for event in read):
            self.n_reasoning_tokens += self._n_unseen_tokens
            self._n_unseen_tokens = 0
        elif not goes_on:
            self._n_unseen_tokens = 0  # a tag, or the answer

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
