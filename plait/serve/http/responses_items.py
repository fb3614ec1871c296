"""An answer's events written as items of a response, and the typed events that tell of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plait.text import ContentDelta, ReasoningDelta, ToolCallEvent

Told = Iterator[tuple[str, dict[str, Any]]]  # type of an event, and its fields


class ItemWriter:
    """`items` are the output so far. What follows text of another kind closes its item and opens a new one."""

    def __init__(self, request_id: str) -> None:
        self.items: list[dict[str, Any]] = []
        self._request_id = request_id
        self._open: dict[str, Any] | None = None
        self._logprobs: list[dict[str, Any]] = []  # not yet told

    def note(self, logprobs: list[dict[str, Any]]) -> None:
        """Log-probabilities of the tokens behind what is written next."""
        self._logprobs += logprobs

    def write(self, event: ContentDelta | ReasoningDelta | ToolCallEvent) -> Told:
        if isinstance(event, ToolCallEvent):
            yield from self.close("completed")
            yield from self._call(event)
            return
        kind = "message" if isinstance(event, ContentDelta) else "reasoning"
        if self._open is None or self._open["type"] != kind:
            yield from self.close("completed")
            yield from self._begin(kind)
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += event.text
        where = {**self._place(), "content_index": 0, "delta": event.text}
        if kind == "message":
            told, self._logprobs = self._logprobs, []
            part["logprobs"] += told
            yield "response.output_text.delta", {**where, "logprobs": told}
        else:
            yield "response.reasoning_text.delta", where

    def close(self, status: str) -> Told:
        """Ends the item under way, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return
        place = {"item_id": item["id"], "output_index": len(self.items) - 1, "content_index": 0}
        part = item["content"][0]
        if item["type"] == "message":
            part["logprobs"] += self._logprobs
            self._logprobs = []
            yield "response.output_text.done", {**place, "text": part["text"], "logprobs": part["logprobs"]}
        else:
            yield "response.reasoning_text.done", {**place, "text": part["text"]}
        yield "response.content_part.done", {**place, "part": part}
        item["status"] = status
        yield "response.output_item.done", {"output_index": len(self.items) - 1, "item": item}

    def _begin(self, kind: str) -> Told:
        number = len(self.items)
        if kind == "message":
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item: dict[str, Any] = {"id": f"msg_{self._request_id}_{number}", "type": "message", "role": "assistant"}
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"id": f"rs_{self._request_id}_{number}", "type": "reasoning", "summary": []}
        item |= {"status": "in_progress", "content": []}
        self.items.append(item)
        self._open = item
        yield "response.output_item.added", {"output_index": number, "item": {**item}}
        yield "response.content_part.added", {**self._place(), "content_index": 0, "part": {**part}}
        item["content"] = [part]

    def _call(self, event: ToolCallEvent) -> Told:
        number = len(self.items)
        item = {
            "id": f"fc_{self._request_id}_{number}",
            "type": "function_call",
            "call_id": f"call_{self._request_id}_{event.index}",
            "name": event.call.name,
            "arguments": "",
            "status": "in_progress",
        }
        self.items.append(item)
        place = {"item_id": item["id"], "output_index": number}
        yield "response.output_item.added", {"output_index": number, "item": {**item}}
        yield "response.function_call_arguments.delta", {**place, "delta": event.call.arguments}
        item |= {"arguments": event.call.arguments, "status": "completed"}
        done = {**place, "name": event.call.name, "arguments": event.call.arguments}
        yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"output_index": number, "item": {**item}}

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.items) - 1}
