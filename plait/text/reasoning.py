"""The part of an answer where the model thinks, `<think>…</think>`, apart from the answer; whole or as it streams."""

from __future__ import annotations

from dataclasses import dataclass

from plait.text.tool_calls import ContentDelta

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class ReasoningDelta:
    """More of what the model thinks."""

    text: str


def split_reasoning(text: str, *, is_open: bool = False) -> tuple[str | None, str]:
    """(reasoning, answer) of a whole text; reasoning is None if there is none, and the tags belong to neither.

    Reasoning stands first, behind white space at most, which goes with it, and ends at the first closing tag or with
    the text. `is_open`: the prompt ended with the opening tag already (a tag that comes nonetheless is taken).
    """
    stream = ReasoningStream(is_open=is_open)
    events = [*stream.push(text), *stream.finish()]
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    answer = "".join(event.text for event in events if isinstance(event, ContentDelta))
    return (reasoning if stream.found else None), answer


class ReasoningStream:
    """`split_reasoning` for text that arrives in pieces; give the text of its ContentDeltas to a ToolCallStream."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.found = is_open
        self._part = "start"  # reasoning, answer
        self._pending = ""

    @property
    def is_open(self) -> bool:
        """What comes next is reasoning, as far as is known."""
        return self._part == "reasoning" or (self._part == "start" and self.found)

    def push(self, piece: str) -> list[ReasoningDelta | ContentDelta]:
        text, self._pending = self._pending + piece, ""
        events: list[ReasoningDelta | ContentDelta] = []
        if self._part == "start":
            text = self._start(text)
        if self._part == "reasoning":
            text = self._reason(text, events)
        if text:
            events.append(ContentDelta(text))
        return events

    def finish(self) -> list[ReasoningDelta | ContentDelta]:
        """The end of the answer: what was held back."""
        text, self._pending = self._pending, ""
        if not text:
            return []
        return [ReasoningDelta(text) if self.found and self._part != "answer" else ContentDelta(text)]

    def _start(self, text: str) -> str:
        bare = text.lstrip()
        if bare.startswith(_OPEN):
            self.found, self._part = True, "reasoning"
            return bare[len(_OPEN) :]
        if _OPEN.startswith(bare):
            self._pending = text
            return ""
        self._part = "reasoning" if self.found else "answer"
        return text

    def _reason(self, text: str, events: list[ReasoningDelta | ContentDelta]) -> str:
        before, closing, after = text.partition(_CLOSE)
        if closing:
            self._part = "answer"
        else:
            held = next(
                n for n in range(min(len(_CLOSE), len(text)), -1, -1) if _CLOSE.startswith(text[len(text) - n :])
            )
            before, self._pending = text[: len(text) - held], text[len(text) - held :]
        if before:
            events.append(ReasoningDelta(before))
        return after
