"""The bodies of /v1/completions, /v1/embeddings, /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plait.serve.http.body import MAX_LOGPROBS, Body, Integer
from plait.serve.http.chat_body import Document, Knobs, Message, Sampled, Text, TokenId, Tool

TokenIds = Annotated[list[TokenId], Field(min_length=1)]
MAX_PROMPTS = 256
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
ManyTokenIds = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]


class CompletionBody(Sampled):
    not_supported: ClassVar = frozenset({"suffix"})
    prompt: str | TokenIds | Texts | ManyTokenIds = Field(
        description="Text (it begins a document, behind the begin token), token ids (taken as they are), or lists."
    )
    max_tokens: Annotated[Integer, Field(ge=0, le=2**31 - 1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[Integer, Field(ge=1, le=1)] | None = None


class EmbeddingBody(Body):
    not_supported: ClassVar = frozenset({"dimensions"})
    model: Text
    input: Text | TokenIds | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)] | ManyTokenIds
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class TokenizeBody(Body):
    """Exactly one of prompt and messages."""

    model: Text | None = None
    prompt: str | None = None
    add_special_tokens: bool = Field(True, description="Put the begin token in front of a prompt.")
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    documents: list[Document] | None = None
    knobs: Knobs | None = None
    return_token_strs: bool = False


class DetokenizeBody(Body):
    model: Text | None = None
    tokens: list[TokenId]
