"""Serving (paper sections 3 and 4): `LLM`, a model with its tokenizer and chat template, answering prompts in
batches; underneath, an engine that plans in plain Python (docs/engine.md) and an executor that runs the plans.

The names below load what they need at first use, so that planning can be imported without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.serve.llm import LLM, find_model
    from plait.serve.service import Grammar
    from plait.text import SamplingParams

__all__ = ["LLM", "Grammar", "SamplingParams", "find_model"]

_HOMES = {
    "LLM": "plait.serve.llm",
    "Grammar": "plait.serve.service",
    "SamplingParams": "plait.text",
    "find_model": "plait.serve.llm",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'plait.serve' has no attribute {name!r}; its names are {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value
