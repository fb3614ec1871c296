"""From a chat body to what the engine is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.serve.http.answer_grammar import answer_grammar
from plait.serve.http.chat_body import (
    AssistantMessage,
    ChatBody,
    Content,
    Document,
    Knobs,
    Message,
    ResponseFormat,
    Sampled,
    Tool,
    ToolMessage,
)
from plait.serve.http.errors import ApiError
from plait.serve.http.form import AnswerForm
from plait.serve.service import Grammar, Service
from plait.text import GenerationRequest, SamplingParams, SectionKind


@dataclass(frozen=True)
class Asked:
    """One prompt for the engine, and how to read what comes."""

    request: GenerationRequest
    grammar: Grammar | None = None
    priority: int = 0
    sections: tuple[SectionKind, ...] = ()  # looked for in the answer


def chat_asked(body: ChatBody, service: Service, form: AnswerForm, *, max_tokens: int) -> Asked:
    """`max_tokens` is what an answer gets that asks for no limit. Raises ApiError 400."""
    limit = _one_of(body.max_tokens, body.max_completion_tokens)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options")
    tools = body.tools or []
    if tools and form.calls is None:
        raise ApiError(400, "this model's chat template has no tools", param="tools")
    bias = {}
    if tools and body.tool_choice == "none":
        if not form.call_is_control:
            tools = []  # nothing could keep the model from calling what it is shown
        else:  # the prompt stays the same, so what the prefix cache knows of it still fits
            assert form.calls is not None
            bias = {service.tokenizer.control_ids[form.calls]: -100.0}
    knobs = chat_knobs(body.knobs, body.response_format)
    cites = knobs is not None and knobs.get("citation_mode", "off") != "off"
    if cites and not form.cites:
        raise ApiError(400, "this model's chat template has no citation mode", param="knobs.citation_mode")
    request = GenerationRequest(
        messages=chat_messages(body.messages),
        tools=chat_tools(tools),
        documents=chat_documents(body.documents),
        knobs=knobs,
        sampling=sampling(
            body,
            max_tokens=max_tokens if limit is None else limit,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            bias=bias,
        ),
    )
    grammar = answer_grammar(
        form,
        response_format=body.response_format,
        tools=[tool.function for tool in body.tools or []],
        choice=body.tool_choice,
        parallel=body.parallel_tool_calls is not False,
    )
    sections: list[SectionKind] = []
    if tools and body.tool_choice != "none":
        sections.append(SectionKind.CALLS)
    if cites:
        sections.append(SectionKind.CITATIONS)
    return Asked(request, grammar, body.priority or 0, tuple(sections))


def sampling(
    body: Sampled,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    bias: Mapping[int, float] = {},
) -> SamplingParams:
    """Raises ApiError 400 for what SamplingParams refuses. A negative seed stands for a positive one."""
    fields = (
        "temperature", "top_p", "n", "stop", "presence_penalty", "frequency_penalty", "top_k", "min_p",
        "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos",
    )  # fmt: skip
    given = {name: value for name in fields if (value := getattr(body, name)) is not None}
    biases = {int(token_id): bias for token_id, bias in (body.logit_bias or {}).items()} | dict(bias)
    try:
        return SamplingParams(
            **given,
            max_tokens=max_tokens,
            seed=None if body.seed is None else body.seed % 2**63,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            logit_bias=biases,
        )
    except ValueError as error:
        raise ApiError(400, str(error)) from error


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As the template wants them: text content, arguments that are JSON, tool results in the order of the calls."""
    made: list[dict[str, Any]] = []
    results: dict[str, int] = {}  # call id -> where its result belongs among those of its turn
    turn: list[tuple[int, dict[str, Any]]] = []
    for at, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in results:
                raise ApiError(
                    400,
                    f"messages.{at}.tool_call_id {message.tool_call_id!r} is of no call in the assistant message"
                    " before, or was answered already",
                    param=f"messages.{at}.tool_call_id",
                )
            turn.append((results.pop(message.tool_call_id), {"role": "tool", "content": _text(message.content)}))
            continue
        made += [result for _, result in sorted(turn, key=lambda pair: pair[0])]
        turn = []
        made.append(_message(message, at))
        calls = message.tool_calls or [] if isinstance(message, AssistantMessage) else []
        results = {call.id: n for n, call in enumerate(calls)}
    return made + [result for _, result in sorted(turn, key=lambda pair: pair[0])]


def _message(message: Any, at: int) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    made: dict[str, Any] = {"role": role, "content": None if message.content is None else _text(message.content)}
    if message.name is not None:
        made["name"] = message.name
    if isinstance(message, AssistantMessage):
        if message.content is None and not message.tool_calls:
            raise ApiError(400, f"messages.{at} has neither content nor tool_calls", param=f"messages.{at}")
        if message.tool_calls:
            where = f"messages.{at}.tool_calls"
            made["tool_calls"] = [
                {"function": {"name": c.function.name, "arguments": _arguments(c.function.arguments, f"{where}.{n}")}}
                for n, c in enumerate(message.tool_calls)
            ]
        if message.reasoning_content is not None:
            made["reasoning_content"] = message.reasoning_content
        if message.citations is not None:
            made["citations"] = [{"document_id": c.document_id} for c in message.citations]
    return made


def _arguments(text: str, where: str) -> str:
    """The text as it is: what the model wrote stays what the model reads."""
    try:
        is_object = isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        where += ".function.arguments"
        raise ApiError(400, f"{where} must be a JSON object (was the call cut off by max_tokens?)", param=where)
    return text or "{}"


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def chat_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    return [
        {"type": "function", "function": tool.function.model_dump(exclude_none=True, exclude={"strict"})}
        for tool in tools or []
    ] or None


def chat_documents(documents: Sequence[Document] | None) -> list[dict[str, Any]] | None:
    return [document.model_dump(exclude_none=True) for document in documents or []] or None


def chat_knobs(knobs: Knobs | None, response_format: ResponseFormat | None = None) -> dict[str, Any] | None:
    """A JSON response format turns the template's JSON mode on as well."""
    set_ones = knobs.model_dump(exclude_none=True, exclude={"is_set"}) if knobs else {}
    if response_format is not None and response_format.type != "text":
        set_ones["response_format"] = "json_object"
    return {"is_set": True, **set_ones} if set_ones else None


def _one_of(max_tokens: int | None, max_completion_tokens: int | None) -> int | None:
    if max_tokens is not None and max_completion_tokens not in (None, max_tokens):
        raise ApiError(
            400, "max_tokens and max_completion_tokens differ: give the latter only", param="max_completion_tokens"
        )
    return max_tokens if max_completion_tokens is None else max_completion_tokens
