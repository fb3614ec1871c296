"""What a model's chat template tells about its answers: how tools are called, where reasoning is, what comes first."""

from __future__ import annotations

from dataclasses import dataclass

from plait.text import ChatTemplate, ChatTemplateError, Tokenizer

_QUESTION = {"role": "user", "content": "x"}


@dataclass(frozen=True)
class AnswerForm:
    """`leading_space`: answers begin with a space that the template writes itself when it shows them again."""

    calls: str | None = None  # "<tool_calls>": one list of calls; "<tool_call>": each call by itself; None: no tools
    call_is_control: bool = False  # the tag is a control token, so a grammar names it and logit_bias can ban it
    cites: bool = False
    reasons: bool = False
    reasoning_is_open: bool = False  # the prompt ends with <think>
    think_is_control: bool = False  # </think> is a control token
    leading_space: bool = False

    @classmethod
    def of(cls, template: ChatTemplate, tokenizer: Tokenizer) -> AnswerForm:
        calls = next((tag for tag in ("<tool_calls>", "<tool_call>") if tag in template.source), None)
        try:
            question = template.render([_QUESTION])
            answered = template.render([_QUESTION, {"role": "assistant", "content": "y"}], add_generation_prompt=False)
        except ChatTemplateError:  # a template that wants other messages: nothing is known of its spaces
            question = answered = ""
        return cls(
            calls=calls,
            call_is_control=calls is not None and calls in tokenizer.control_ids,
            cites="<citations>" in template.source,
            reasons="<think>" in template.source,
            reasoning_is_open=question.rstrip().endswith("<think>"),
            think_is_control="</think>" in tokenizer.control_ids,
            leading_space=answered.removeprefix(question).startswith(" y"),
        )
