"""Text and tokens: tokenizer, chat template, tool calls, sampling parameters, and the Generator protocol. No torch.

The names below load their files at first use: those that need no tokenizer or template engine cost next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.text.chat import ChatTemplate, assistant_spans
    from plait.text.generator import Completion, GenerationRequest, Generator, Score, ScoreRequest, TokenLogprob
    from plait.text.reasoning import ReasoningDelta, ReasoningStream, split_reasoning
    from plait.text.sampling_params import SamplingParams
    from plait.text.stop_strings import StopChecker
    from plait.text.template_sandbox import ChatTemplateError
    from plait.text.tokenizer import Detokenizer, Tokenizer
    from plait.text.tool_calls import (
        CitationsEvent,
        ContentDelta,
        ParsedMessage,
        SectionKind,
        ToolCall,
        ToolCallEvent,
        ToolCallStream,
        join_events,
        parse_tool_calls,
    )
    from plait.text.train_tokenizer import train_tokenizer

__all__ = [
    "ChatTemplate",
    "ChatTemplateError",
    "CitationsEvent",
    "Completion",
    "ContentDelta",
    "Detokenizer",
    "GenerationRequest",
    "Generator",
    "ParsedMessage",
    "ReasoningDelta",
    "ReasoningStream",
    "SamplingParams",
    "Score",
    "ScoreRequest",
    "SectionKind",
    "StopChecker",
    "TokenLogprob",
    "Tokenizer",
    "ToolCall",
    "ToolCallEvent",
    "ToolCallStream",
    "assistant_spans",
    "join_events",
    "parse_tool_calls",
    "split_reasoning",
    "train_tokenizer",
]

_HOMES = {
    "chat": ("ChatTemplate", "assistant_spans"),
    "generator": ("Completion", "GenerationRequest", "Generator", "Score", "ScoreRequest", "TokenLogprob"),
    "reasoning": ("ReasoningDelta", "ReasoningStream", "split_reasoning"),
    "sampling_params": ("SamplingParams",),
    "stop_strings": ("StopChecker",),
    "template_sandbox": ("ChatTemplateError",),
    "tokenizer": ("Detokenizer", "Tokenizer"),
    "tool_calls": ("CitationsEvent", "ContentDelta", "ParsedMessage", "SectionKind", "ToolCall", "ToolCallEvent",
                   "ToolCallStream", "join_events", "parse_tool_calls"),
    "train_tokenizer": ("train_tokenizer",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(
            f"module 'plait.text' has no attribute {name!r}; its public names are {', '.join(__all__)}"
        )
    value = getattr(import_module(f"plait.text.{_HOME_OF[name]}"), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
