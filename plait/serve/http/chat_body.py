"""The body of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from plait.serve.http.body import MAX_LOGPROBS, Body, Integer, OnlyFalse

Text = Annotated[str, Field(min_length=1)]
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Bias = dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
Seed = Annotated[Integer, Field(ge=-(2**63), le=2**63 - 1)]
Stop = Text | Annotated[list[Text], Field(max_length=16)]


class TextPart(Body):
    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: Content
    name: Text | None = None


class UserMessage(Body):
    role: Literal["user"]
    content: Content
    name: Text | None = None


class FunctionCall(Body):
    name: ToolName
    arguments: str = Field(description="A JSON object, or empty for none.")


class CalledTool(Body):
    id: Text
    type: Literal["function"]
    function: FunctionCall
    index: Integer | None = Field(None, description="As streamed answers have it; the order of the list counts.")


class Citation(Body):
    document_id: Integer | str


class AssistantMessage(Body):
    """What the model said before, as this server returned it."""

    not_supported: ClassVar = frozenset({"audio", "function_call", "refusal"})
    role: Literal["assistant"]
    content: Content | None = None
    name: Text | None = None
    tool_calls: list[CalledTool] | None = None
    reasoning_content: str | None = Field(None, description="Given to templates that show earlier reasoning.")
    citations: list[Citation] | None = Field(None, description="Documents the answer named (Jamba citation mode).")
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: Text


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Body):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema; none: no arguments.")
    strict: bool | None = Field(None, description="Hold arguments to the schema while they are written.")


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: ToolName


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_\-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="The schema is always kept to, strict or not.")


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: OnlyFalse | None = None


class Document(BaseModel):
    """A document for the Jamba template: text, an optional title, and any other short fields worth showing."""

    model_config = ConfigDict(
        extra="allow", strict=True, json_schema_extra={"additionalProperties": {"type": "string"}}
    )
    __pydantic_extra__: dict[str, str] = Field(init=False)
    text: str
    title: str | None = None


class Knobs(Body):
    """The Jamba template's output modes."""

    is_set: bool | None = Field(None, description="Of no effect: what is given counts.")
    citation_mode: Literal["fast", "off"] | None = None
    response_format: Literal["json_object"] | None = None


class Sampled(Body):
    """Sampling fields shared by chat and plain completions; those OpenAI hasn't are marked as ours."""

    model: Text
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[Integer, Field(ge=1, le=128)] | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Bias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Written to the log; nothing else is done with it.")
    top_k: Annotated[Integer, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="Ours: keep so many tokens.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Ours: share of the likeliest token.")
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(None, description="Ours.")
    min_tokens: Annotated[Integer, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="Ours.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = Field(None, description="Ours.")
    ignore_eos: bool | None = Field(None, description="Ours: end tokens don't end the answer.")
    priority: Annotated[Integer, Field(ge=-1000, le=1000)] | None = Field(None, description="Ours: higher goes first.")


class ChatBody(Sampled):
    not_supported: ClassVar = frozenset(
        {
            "audio", "function_call", "functions", "moderation", "prediction", "prompt_cache_retention",
            "reasoning_effort", "verbosity", "web_search_options", "prompt_cache_options",
        }
    )  # fmt: skip
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[Integer, Field(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[Integer, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    documents: Annotated[list[Document], Field(max_length=4096)] | None = Field(None, description="Ours.")
    knobs: Knobs | None = Field(None, description="Ours: the Jamba template's output modes.")
    metadata: dict[str, str] | None = Field(None, description="Accepted and not kept.")
    store: OnlyFalse | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    prompt_cache_key: str | None = Field(None, description="Not needed: prefixes are found by their tokens.")
    safety_identifier: str | None = Field(None, description="Accepted and not kept.")
