"""What the endpoints return, as models: for the OpenAPI description and for tests; answers are built as plain dicts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plait.serve.service import EngineStats


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetail(Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    error: ErrorDetail


class PromptDetails(Reply):
    cached_tokens: int


class CompletionDetails(Reply):
    reasoning_tokens: int


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | None = Field(None, description="Of models that think first.")


class CalledFunction(Reply):
    name: str
    arguments: str = Field(description="JSON, in the model's own characters.")


class Call(Reply):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Cited(Reply):
    document_id: int | str


class ChatMessage(Reply):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = Field(None, description="Ours: what stood between <think> and </think>.")
    tool_calls: list[Call] = Field(default_factory=list)
    citations: list[Cited] = Field(default_factory=list, description="Ours: the documents that support the answer.")


class TokenChance(Reply):
    token: str
    logprob: float
    bytes: list[int]


class DrawnToken(TokenChance):
    top_logprobs: list[TokenChance]


class ChatLogprobs(Reply):
    content: list[DrawnToken]
    refusal: None


class ChatChoice(Reply):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatReply(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: Literal["default"] = "default"


class CompletionTokens(Reply):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionTokens | None
    finish_reason: Literal["stop", "length"] | None


class CompletionReply(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ResponsesReply(BaseModel):
    """OpenAI's response object; `citations` are ours."""

    model_config = ConfigDict(extra="allow", strict=True)
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]
    citations: list[Cited] = Field(default_factory=list)


class ModelReply(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(description="Ours: tokens of prompt and answer together.")


class ModelsReply(Reply):
    object: Literal["list"]
    data: list[ModelReply]


class Embedding(Reply):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(Reply):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class TokenizeReply(Reply):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] = Field(default_factory=list)


class DetokenizeReply(Reply):
    prompt: str


class StatusReply(Reply):
    status: str


class Queue(Reply):
    running: int
    waiting: int
    max_running: int


class StatsReply(Reply):
    model: str
    requests: Queue = Field(description="Of the server, in front of the engine.")
    engine: EngineStats = Field(description="Counters end in _total. batch and tree are in tokens.")


class FileReply(Reply):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class DeletedReply(Reply):
    id: str
    object: Literal["file"]
    deleted: bool


class Page(Reply):
    object: Literal["list"]
    first_id: str
    last_id: str
    has_more: bool


class FilesReply(Page):
    data: list[FileReply]


class BatchCounts(Reply):
    total: int
    completed: int
    failed: int


class BatchError(Reply):
    code: str
    message: str
    line: int | None
    param: None


class BatchErrors(Reply):
    object: Literal["list"]
    data: list[BatchError]


class BatchReply(Reply):
    id: str
    object: Literal["batch"]
    endpoint: str
    input_file_id: str
    completion_window: Literal["24h"]
    status: Literal["validating", "failed", "in_progress", "finalizing", "completed", "cancelling", "cancelled"]
    created_at: int
    request_counts: BatchCounts
    metadata: dict[str, str] | None = None
    errors: BatchErrors | None = None
    output_file_id: str | None = Field(None, description="Answers with status 200.")
    error_file_id: str | None = Field(None, description="Answers with an error status.")
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None


class BatchesReply(Page):
    data: list[BatchReply]
