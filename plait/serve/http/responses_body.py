"""The body of /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from plait.serve.http.body import MAX_LOGPROBS, Body, Integer, OnlyFalse
from plait.serve.http.chat_body import Document, JsonObjectFormat, Knobs, Seed, Text, TextFormat, ToolName


class InputText(Body):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


InputContent = str | Annotated[list[InputText], Field(min_length=1)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputMessage(Body):
    not_supported: ClassVar = frozenset({"phase"})
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: InputContent
    id: str | None = None
    status: ItemStatus | None = None


class InputCall(Body):
    not_supported: ClassVar = frozenset({"caller", "namespace"})
    type: Literal["function_call"]
    call_id: Text
    name: ToolName
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class InputCallOutput(Body):
    not_supported: ClassVar = frozenset({"caller", "created_by"})
    type: Literal["function_call_output"]
    call_id: Text
    output: InputContent
    id: str | None = None
    status: ItemStatus | None = None


class ReasoningText(Body):
    type: Literal["reasoning_text"]
    text: str


class InputReasoning(Body):
    """Earlier reasoning, as this server returned it."""

    not_supported: ClassVar = frozenset({"encrypted_content"})
    type: Literal["reasoning"]
    id: str | None = None
    summary: Annotated[list[Any], Field(max_length=0)] | None = None
    content: list[ReasoningText] | None = None
    status: ItemStatus | None = None


InputItem = InputMessage | InputCall | InputCallOutput | InputReasoning


class FlatFunction(Body):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatNamedTool(Body):
    type: Literal["function"]
    name: ToolName


class FlatSchemaFormat(Body):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_\-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    not_supported: ClassVar = frozenset({"verbosity"})
    format: Annotated[TextFormat | JsonObjectFormat | FlatSchemaFormat, Field(discriminator="type")] | None = None


class ResponsesStreamOptions(Body):
    include_obfuscation: OnlyFalse | None = None


class ResponsesBody(Body):
    not_supported: ClassVar = frozenset(
        {
            "background", "context_management", "conversation", "max_tool_calls", "moderation", "previous_response_id",
            "prompt", "prompt_cache_options", "prompt_cache_retention", "reasoning",
        }
    )  # fmt: skip
    model: Text
    input: Text | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[Integer, Field(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: Annotated[list[FlatFunction], Field(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatNamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    store: OnlyFalse | None = Field(None, description="Nothing is stored; true is refused.")
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    seed: Seed | None = Field(None, description="Ours.")
    documents: Annotated[list[Document], Field(max_length=4096)] | None = Field(None, description="Ours.")
    knobs: Knobs | None = Field(None, description="Ours: the Jamba template's output modes.")
