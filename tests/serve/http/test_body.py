"""Whatever the body is, it is read or refused with a reason; nothing else comes out."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.serve.http.body import Body, read_body
from plait.serve.http.chat_body import ChatBody
from plait.serve.http.completion_body import CompletionBody, EmbeddingBody, TokenizeBody
from plait.serve.http.errors import ApiError
from plait.serve.http.responses_body import ResponsesBody

KINDS = (ChatBody, CompletionBody, EmbeddingBody, TokenizeBody, ResponsesBody)
NAMES = sorted({name for kind in KINDS for name in kind.model_fields} | {"audio", "reasoning", "x", ""})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "name", "function"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5) | JSON)
def test_anything_is_read_or_refused(kind: type[Body], value: Any) -> None:
    try:
        read_body(kind, json.dumps(value).encode())
    except ApiError as error:
        refused = error
    else:
        return
    assert refused.status == 400
    assert refused.message


@given(st.sampled_from(KINDS), st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(kind: type[Body], raw: bytes) -> None:
    with pytest.raises(ApiError):
        read_body(kind, raw)  # no body is that short


CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_field"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages.0.y", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
         "messages.0.content.0.text", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"store": 0}, "store", "invalid_value"),
        ({"logit_bias": {"-1": 3}}, "logit_bias.-1", "invalid_value"),
        ({"prediction": {}}, "prediction", "unsupported_parameter"),
    ],
)  # fmt: skip
def test_the_first_wrong_field_is_named(changes: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_body(ChatBody, json.dumps(CHAT | changes).encode())
    assert (caught.value.param, caught.value.code) == (param, code)


def test_null_passes_everywhere() -> None:
    for kind in (ChatBody, ResponsesBody):
        optional = [name for name, field in kind.model_fields.items() if not field.is_required()]
        needed = {"model": "m", "messages": CHAT["messages"]} if kind is ChatBody else {"model": "m", "input": "x"}
        read_body(kind, json.dumps(needed | dict.fromkeys([*optional, *kind.not_supported])).encode())


def test_the_layer_needs_no_torch() -> None:
    code = "import plait.serve.http, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
