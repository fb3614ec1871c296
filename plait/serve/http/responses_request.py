"""From a body of /v1/responses to the chat body that asks the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plait.serve.http.chat_body import ChatBody
from plait.serve.http.responses_body import (
    FlatNamedTool,
    FlatSchemaFormat,
    InputCall,
    InputCallOutput,
    InputContent,
    InputItem,
    InputMessage,
    InputReasoning,
    ResponsesBody,
)


def as_chat(body: ResponsesBody) -> ChatBody:
    wants_logprobs = bool(body.include) or body.top_logprobs is not None
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": _messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "logprobs": wants_logprobs or None,
        "top_logprobs": body.top_logprobs,
        "parallel_tool_calls": body.parallel_tool_calls,
        "documents": body.documents and [document.model_dump() for document in body.documents],
        "knobs": body.knobs and body.knobs.model_dump(),
        "stream": body.stream,
        "tools": body.tools and [_tool(tool) for tool in body.tools],
        "tool_choice": _choice(body.tool_choice),
        "response_format": _format(body),
    }
    return ChatBody.model_validate(fields)


def _tool(tool: Any) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"})}


def _choice(choice: Any) -> Any:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, FlatNamedTool) else choice


def _format(body: ResponsesBody) -> dict[str, Any] | None:
    wanted = body.text.format if body.text else None
    if wanted is None:
        return None
    if isinstance(wanted, FlatSchemaFormat):
        return {"type": "json_schema", "json_schema": wanted.model_dump(exclude={"type"}, by_alias=True)}
    return {"type": wanted.type}


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    made = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*made, {"role": "user", "content": body.input}]
    return made + _turns(body.input)


def _turns(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    """An assistant's reasoning, text and calls are items of their own there, and one message here."""
    made: list[dict[str, Any]] = []

    def assistant() -> dict[str, Any]:
        if not made or made[-1]["role"] != "assistant":
            made.append({"role": "assistant", "content": None})
        return made[-1]

    for item in items:
        match item:
            case InputReasoning():
                text = "".join(part.text for part in item.content or [])
                made.append({"role": "assistant", "content": None, "reasoning_content": text})
            case InputMessage(role="assistant"):
                turn = assistant()
                turn["content"] = (turn["content"] or "") + _text(item.content)
            case InputMessage():
                made.append({"role": item.role, "content": _text(item.content)})
            case InputCall():
                function = {"name": item.name, "arguments": item.arguments}
                calls = assistant().setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": function})
            case InputCallOutput():
                made.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    return made


def _text(content: InputContent) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
