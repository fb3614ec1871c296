"""What else can be asked of `LLM`: grammars, priorities, tiers, int8 keys and values."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plait.serve import LLM, Grammar, SamplingParams

MakeFolder = Callable[..., Path]
SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"],
    "additionalProperties": False,
}  # fmt: skip


def sampled(seed: int, max_tokens: int = 200) -> SamplingParams:
    return SamplingParams(temperature=1.0, seed=seed, max_tokens=max_tokens)


@pytest.mark.parametrize("n_drafts", [0, 3])
def test_answers_match_their_grammar(make_folder: MakeFolder, n_drafts: int) -> None:
    llm = LLM(make_folder(with_tokenizer=True), n_drafts=n_drafts)
    for seed in range(3):
        prompts = ["a number:", "another one, please:", "a number:"]
        for answer in llm.generate(prompts, sampled(seed), grammar=Grammar("json_schema", json.dumps(SCHEMA))):
            assert answer.finish_reason == "stop"
            assert 0 <= json.loads(answer.text)["n"] <= 99
        (phone,) = llm.generate("call", sampled(seed), grammar=Grammar("regex", "[0-9]{3}-[0-9]{4}"))
        assert re.fullmatch("[0-9]{3}-[0-9]{4}", phone.text)
        streamed = "".join(llm.stream("so", sampled(seed), grammar=Grammar("choice", '["yes", "no"]')))
        assert streamed in ("yes", "no")
        llm.engine.check()  # type: ignore[union-attr]


def test_a_wrong_grammar_is_refused_before_anything_runs(llm: LLM) -> None:
    for grammar in (Grammar("json_schema", "{nope"), Grammar("regex", "(")):
        with pytest.raises(ValueError, match=r"json_schema is not JSON|regex can't be followed"):
            llm.generate("x", grammar=grammar)
    assert llm.engine.is_idle


@pytest.mark.parametrize(("priority", "preempts"), [(-5, True), (5, False)])
def test_a_call_goes_before_an_open_stream_if_its_priority_is_lower(
    make_folder: MakeFolder, priority: int, preempts: bool
) -> None:
    llm = LLM(make_folder(with_tokenizer=True), max_running=1)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    alone = "".join(llm.stream("once upon a time", params))
    stream = llm.stream("once upon a time", params)
    first = next(stream)
    written = llm.engine.stats().generated_tokens_total
    llm.generate("there was", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), priority=priority)
    assert llm.engine.stats().preemptions_total == preempts
    assert (llm.engine.stats().generated_tokens_total - written == 4) == preempts
    assert first + "".join(stream) == alone


def test_what_a_small_cache_has_no_room_for_comes_back_from_host_and_disk(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder()
    options = {"max_context": 96, "cache_tokens": 96, "max_running": 1}
    tiered = LLM(folder, **options, host_gib=2e-5, disk=tmp_path / "tier", disk_gib=0.01)  # type: ignore[arg-type]
    prompts = [[n, *range(40), *range(40)] for n in range(8)]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    first, second = (tiered.generate(prompts, params) for _ in range(2))
    assert second == first == LLM(folder).generate(prompts, params)
    int8 = LLM(folder, **options, host_gib=2e-5, disk=tmp_path / "int8", disk_gib=0.01, host_state_dtype="int8")  # type: ignore[arg-type]
    assert [one.cached_tokens for one in [int8.generate(prompts, params) for _ in range(2)][1]] == [80] * 8
    assert [one.cached_tokens for one in first] == [0] * 8
    assert [one.cached_tokens for one in second] == [80] * 8
    assert list((tmp_path / "tier" / "engine_0").glob("page_*"))
    assert [one.cached_tokens for one in LLM(folder, **options).generate(prompts * 2, params)][8:] != [80] * 8  # type: ignore[arg-type]


def test_contexts_that_end_around_a_page(make_folder: MakeFolder) -> None:
    """Prompts of every length, answers that reach the end: what fits is written whole, one token more is refused."""
    folder, texts = make_folder(), [[(7 * i) % 50 for i in range(n)] for n in range(1, 19)]
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    free = LLM(folder).generate(texts, params)
    for max_context in (1, 2, 15, 16, 17):
        llm = LLM(folder, max_context=max_context, max_running=2)
        fitting = texts[: max_context - 1]
        for answer, whole, text in zip(llm.generate(fitting, params), free, fitting, strict=False):
            assert answer.token_ids == whole.token_ids[: max_context - len(text)]
        for text in texts[max_context - 1 : max_context + 1]:
            with pytest.raises(ValueError, match=f"in max_context={max_context}"):
                llm.generate([text], params)
        llm.engine.check()  # type: ignore[union-attr]


def test_int8_keys_and_values(make_folder: MakeFolder) -> None:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    small = LLM(make_folder(), kv_dtype="int8")
    (answer,) = small.generate([list(range(30))], params)
    assert len(answer.token_ids) == 6
    with pytest.raises(ValueError, match="kv_dtype='int4' must be one of"):
        LLM(make_folder(), kv_dtype="int4")
    with pytest.raises(ValueError, match=r"dtype='int8' must be one of float32, bfloat16, float16$"):
        LLM(make_folder(), dtype=torch.int8)
