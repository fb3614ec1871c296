"""From tokens to text: however outputs are cut, the text is the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.serve.answer import AnswerText, Gathered
from plait.serve.request import Output, Request
from plait.serve.service import EngineError, PrefixUse
from plait.text import Completion, SamplingParams, Tokenizer, TokenLogprob


def out(token_ids: list[int], reason: Any = None, scores: tuple[TokenLogprob, ...] = (), **more: Any) -> Output:
    return Output(
        0, 0, tuple(token_ids), reason, tuple(TokenLogprob(t, -1.0) for t in token_ids), scores, PrefixUse(), **more
    )


def written(tokenizer: Tokenizer | None, cuts: list[list[int]], reason: str, **fields: Any) -> tuple[Completion, bool]:
    """The answer of outputs with these tokens, and whether a stop string ended it."""
    text = AnswerText(Request((1, 2), SamplingParams(**fields)), tokenizer)
    whole = Gathered()
    for nth, cut in enumerate(cuts):
        piece = text.push(out(cut, reason if nth == len(cuts) - 1 else None))
        if piece is not None:
            whole.add(piece)
            if piece.finish_reason is not None:
                return whole.completion(), piece.finish_reason == "stop" != reason
    raise AssertionError("no end")


@given(data=st.data(), ids=st.lists(st.integers(0, 399), min_size=1, max_size=20))
def test_the_text_does_not_depend_on_how_tokens_come(tokenizer: Tokenizer, data: st.DataObject, ids: list[int]) -> None:
    ends = sorted({*data.draw(st.lists(st.integers(1, len(ids)), max_size=5)), len(ids)})
    cuts = [ids[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    plain = tokenizer.decode(ids)
    assert written(tokenizer, cuts, "length", max_tokens=99)[0].text == plain
    if len(plain) < 2:
        return
    at = data.draw(st.integers(0, len(plain) - 1))
    stop = plain[at : at + 3]
    fields = {"max_tokens": 99, "stop": [stop], "min_tokens": data.draw(st.integers(0, 3)), "logprobs": 0}
    one = written(tokenizer, [[t] for t in ids], "length", **fields)
    assert written(tokenizer, cuts, "length", **fields) == one
    assert one[0].logprobs is not None
    assert len(one[0].logprobs) == one[0].completion_tokens == len(one[0].token_ids)
    if fields["min_tokens"] == 0:
        assert one[0].text == plain[: plain.index(stop)]
        assert one[0].finish_reason == "stop"


def test_the_end_token_is_no_text_but_the_last_of_a_full_answer_is(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("She was")
    assert written(tokenizer, [ids], "length")[0].text == "She was"
    assert written(tokenizer, [[i] for i in ids], "stop")[0].text == tokenizer.decode(ids[:-1])
    assert written(None, [ids], "stop")[0].text == ""


def test_prompt_logprobs_come_with_the_first_piece() -> None:
    text = AnswerText(Request((1, 2, 3), SamplingParams(prompt_logprobs=0)), None)
    two, three = TokenLogprob(2, -1.0), TokenLogprob(3, -2.0)
    assert text.push(out([], scores=(two,))) is None
    piece = text.push(out([7], scores=(three,)))
    assert piece is not None
    assert (piece.prompt_logprobs, piece.prompt_tokens, piece.logprobs) == ((None, two, three), 3, None)
    again = text.push(out([8], "length"))
    assert again is not None
    assert again.prompt_logprobs is None


def test_a_prompt_that_is_only_scored_has_one_piece() -> None:
    text = AnswerText(Request((1,), SamplingParams(max_tokens=0, prompt_logprobs=0)), None)
    piece = text.push(out([], "length"))
    assert piece is not None
    assert (piece.text, piece.token_ids, piece.prompt_logprobs, piece.finish_reason) == ("", (), (None,), "length")


def test_a_failure_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="the grammar broke"):
        AnswerText(Request((1,)), None).push(out([], "abort", error="the grammar broke"))
