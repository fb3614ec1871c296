"""Structured output: what a guide allows, alone and in batches whose draws it bounds."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.config import ModelConfig
from plait.data import default_corpus
from plait.model import LanguageModel, init_weights
from plait.serve.grammar import Grammars
from plait.serve.plan import Row, Start, StepPlan
from plait.serve.runner import Runner
from plait.serve.service import Grammar
from plait.text import SamplingParams, Tokenizer, train_tokenizer

SCHEMA = Grammar(
    "json_schema",
    json.dumps({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "n"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }),
)  # fmt: skip
CHOICE = Grammar("choice", json.dumps(["ja", "nein", 'né"in\n']))
VOCAB = 417  # beyond the tokenizer's


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer([document.text for document in default_corpus()[1][:8]], 400)


@pytest.fixture(scope="module")
def grammars(words: Tokenizer) -> Grammars:
    return Grammars(words, VOCAB, words.eos_ids)


@pytest.fixture(scope="module")
def model(words: Tokenizer) -> LanguageModel:
    config = ModelConfig(
        vocab_size=VOCAB, d_model=16, d_ff=24, n_layers=2, n_heads=2, n_kv_heads=1, attn_period=2, attn_offset=1,
        n_experts=2, d_state=4, init_std=0.3, max_context=512, dtype="float32", eos_ids=words.eos_ids,
    )  # fmt: skip
    return init_weights(LanguageModel(config), seed=3).eval()


def ids_in(mask: np.ndarray) -> set[int]:
    return set(np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))[0].tolist())


def test_a_guide_allows_what_can_begin_an_answer_and_then_its_end(grammars: Grammars, words: Tokenizer) -> None:
    guide = grammars.guide(CHOICE)
    starts = {words.token_bytes(i) for i in ids_in(guide.masks()[0])}
    assert starts
    assert all(any(choice.startswith(s) for choice in (b"ja", b"nein", 'né"in\n'.encode())) for s in starts)
    guide.advance(words.encode('né"in\n'))
    (mask,) = guide.masks()
    assert ids_in(mask) == set(words.eos_ids)
    assert guide.must_end(mask)
    assert guide.error is None


def test_masks_behind_drafts_are_those_of_advancing(grammars: Grammars, words: Tokenizer) -> None:
    """And trying drafts leaves the guide where it was."""
    answer = [*words.encode('{"name":"ab","n":12}'), words.eos_ids[0]]
    guide, step_by_step = grammars.guide(SCHEMA), grammars.guide(SCHEMA)
    masks = guide.masks(answer)
    assert ids_in(guide.masks()[0]) == ids_in(masks[0])
    for mask, token in zip(masks, answer, strict=False):
        assert ids_in(mask) == ids_in(step_by_step.masks()[0])
        assert token in ids_in(mask)
        step_by_step.advance([token])
    wrong = [*answer[:3], words.encode("]")[0], *answer[3:]]
    masks = guide.masks(wrong)
    assert wrong[3] not in ids_in(masks[3])
    assert (masks[4:] == -1).all()


def test_blanks_in_json_end(grammars: Grammars, words: Tokenizer) -> None:
    for kind, text in (("json_object", "{}"), ("json_schema", '{"type": "object"}')):
        for n_blanks, fits in ((20, True), (40, False)):
            guide = grammars.guide(Grammar(kind, text))  # type: ignore[arg-type]
            guide.advance(words.encode("{" + " " * n_blanks + "}"))
            assert (guide.error is None) == fits


def test_control_tokens_and_ids_without_text_are_never_allowed(grammars: Grammars, words: Tokenizer) -> None:
    (mask,) = grammars.guide(Grammar("regex", "(.|\n)*")).masks()
    allowed = ids_in(mask)
    assert len(allowed) > 300
    assert not allowed & (set(words.control_ids.values()) - set(words.eos_ids))
    assert max(allowed) < 400


def test_a_token_that_does_not_fit_ends_the_guide_with_a_reason(grammars: Grammars, words: Tokenizer) -> None:
    guide = grammars.guide(CHOICE)
    token = words.encode("x")[0]
    guide.advance([token])
    assert guide.error == f"token {token} does not fit the grammar"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "[ab", "regex can't be followed: .*unclosed character class"),
        ("json_schema", "{", "json_schema is not JSON"),
        ("json_schema", "3", "must be a JSON dict or bool, not '3'"),
        ("json_schema", '{"type": 3}', "type must be a string or array"),
        ("json_schema", '{"$ref": "#/nowhere"}', "nowhere"),
        ("json_schema", '{"a":' * 5000 + "1" + "}" * 5000, "json_schema"),
        ("choice", "[]", "JSON list of strings that are not empty"),
        ("choice", '["a", ""]', "JSON list of strings that are not empty"),
        ("choice", '"a"', "must be a JSON list"),
        ("grammar", "start: foo", "unknown name"),
        ("yaml", "a", "kind='yaml' must be json_schema"),
    ],
)
def test_a_bad_grammar_is_a_value_error(grammars: Grammars, kind: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        grammars.guide(Grammar(kind, text))  # type: ignore[arg-type]


def test_what_is_missing_is_named(words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="need a tokenizer"):
        Grammars(None, VOCAB, [2]).guide(CHOICE)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match=r"pip install 'plait\[serve\]'"):
        Grammars(words, VOCAB, [2]).guide(CHOICE)


def make_runner(model: LanguageModel, words: Tokenizer, **options: object) -> Runner:
    return Runner(model, n_slots=4, n_pages=64, max_context=256, tokenizer=words, **options)  # type: ignore[arg-type]


def decode_rows(starts: list[Start], contexts: dict[int, int]) -> list[Row]:
    return [
        Row(s.sequence, "decode", 1, contexts[s.sequence], s.sequence, pages_of(s.sequence), None, True)
        for s in starts
    ]  # fmt: skip


def pages_of(sequence: int) -> list[int]:
    return list(range(sequence * 16, sequence * 16 + 16))


@settings(max_examples=12)
@given(seed=st.integers(0, 1000), overlap=st.booleans(), static=st.sampled_from([None, False, True]))
def test_answers_in_a_batch_match_their_grammars(
    model: LanguageModel, words: Tokenizer, seed: int, overlap: bool, static: bool | None
) -> None:
    """Sampled at random, with steps launched before the last one's tokens are known, beside a row without a grammar."""
    runner = make_runner(model, words, static=static)
    grammars = [SCHEMA, CHOICE, None, Grammar("regex", "[a-f]{3,20}")]
    ends = frozenset(words.eos_ids)
    starts = [
        Start(i, (5, 6), SamplingParams(seed=seed, min_tokens=2, max_tokens=200), ends, i, grammar)
        for i, grammar in enumerate(grammars)
    ]
    rows = [Row(s.sequence, "fresh", 2, 0, s.sequence, pages_of(s.sequence), s.prompt, True) for s in starts]
    runner.launch(StepPlan(0, rows, started=starts))
    contexts = dict.fromkeys(range(4), 2)
    drawn: dict[int, list[int]] = {i: [] for i in range(4)}
    running, in_flight = starts, 1
    for number in range(1, 200):
        running = [s for s in running if not ends & set(drawn[s.sequence])]
        if not [s for s in running if s.grammar]:
            break
        if not overlap:
            collect(runner, drawn)
            in_flight -= 1
            running = [s for s in running if not ends & set(drawn[s.sequence])]
        if running:
            runner.launch(StepPlan(number, decode_rows(running, contexts)))
            in_flight += 1
            for s in running:
                contexts[s.sequence] += 1
        if in_flight == 2:
            collect(runner, drawn)
            in_flight -= 1
    text = {i: words.decode(drawn[i][: first_end(drawn[i], ends)]) for i in (0, 1, 3)}
    assert set(json.loads(text[0])) == {"name", "n"}
    assert text[1] in json.loads(CHOICE.text)
    assert re.fullmatch("[a-f]{3,20}", text[3])


def first_end(tokens: list[int], ends: frozenset[int]) -> int:
    return next((i for i, token in enumerate(tokens) if token in ends), len(tokens))


def collect(runner: Runner, drawn: dict[int, list[int]]) -> None:
    result = runner.collect()
    assert result.failed == {}
    for row in result.rows:
        drawn[row.sequence] += row.token_ids


def test_drafts_are_verified_under_the_grammar(model: LanguageModel, words: Tokenizer) -> None:
    runner = make_runner(model, words)
    params = SamplingParams(temperature=0, max_tokens=50)
    start = Start(0, (5, 6), params, frozenset(words.eos_ids), 0, Grammar("regex", "abcdef"))
    runner.launch(StepPlan(0, [Row(0, "fresh", 2, 0, 0, pages_of(0), (5, 6), True)], started=[start]))
    (first,) = runner.collect().rows
    (token,) = first.token_ids
    rest = words.encode("abcdef"[len(words.token_bytes(token)) :])
    wrong = words.encode("x")[0]
    drafts = [*rest[:2], wrong]
    row = Row(0, "resume", 4, 2, 0, pages_of(0), [token, *drafts], True, 3)
    runner.launch(StepPlan(1, [row]))
    (result,) = runner.collect().rows
    text = b"".join(words.token_bytes(t) for t in (token, *result.token_ids))
    assert b"abcdef".startswith(text)
    assert wrong not in result.token_ids


def test_a_grammar_that_cannot_go_on_fails_its_sequence_alone(model: LanguageModel, words: Tokenizer) -> None:
    runner = make_runner(model, words)
    bad = Start(0, (5, 6), SamplingParams(), frozenset(), 0, Grammar("regex", "[a"))
    good = Start(1, (5, 6), SamplingParams(), frozenset(), 0, CHOICE)
    rows = [Row(s.sequence, "fresh", 2, 0, s.sequence, pages_of(s.sequence), s.prompt, True) for s in (bad, good)]
    runner.launch(StepPlan(0, rows, started=[bad, good]))
    result = runner.collect()
    assert list(result.failed) == [0]
    assert "regex can't be followed" in result.failed[0]
    assert result.rows[0].token_ids == ()
    assert len(result.rows[1].token_ids) == 1
    with pytest.raises(ValueError, match="regex can't be followed"):
        runner.check_grammar(bad.grammar)  # type: ignore[arg-type]
    runner.check_grammar(CHOICE)


def test_a_grammar_leaves_the_other_rows_as_they_are(model: LanguageModel, words: Tokenizer) -> None:
    def first_token(*grammars: Grammar | None) -> int:
        runner = make_runner(model, words)
        starts = [Start(i, (5, 6), SamplingParams(seed=4), frozenset(), 0, g) for i, g in enumerate(grammars)]
        rows = [Row(s.sequence, "fresh", 2, 0, s.sequence, pages_of(s.sequence), s.prompt, True) for s in starts]
        runner.launch(StepPlan(0, rows, started=starts))
        return runner.collect().rows[0].token_ids[0]

    assert first_token(None) == first_token(None, CHOICE)
    assert torch.is_inference_mode_enabled() is False
