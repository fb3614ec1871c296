"""`LLM` against the plain model: whatever the batch, the answers are those of one sequence fed whole."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import plait
from plait.serve import LLM, SamplingParams, find_model
from plait.serve.plan import StepPlan
from plait.text import GenerationRequest, Generator, ScoreRequest, Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
NEAR = 2e-4  # between logits of a sequence fed whole and in pieces, fp32


@torch.inference_mode()
def logits_of(llm: LLM, ids: Sequence[int]) -> Tensor:
    """[len(ids), vocab_size], of the plain model."""
    return llm.model(torch.tensor([ids])).logits[0]


def assert_greedy(llm: LLM, prompt: Sequence[int], new: Sequence[int]) -> None:
    """Each new token is the likeliest where it stands (or as good as)."""
    logits = logits_of(llm, [*prompt, *new])[len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(new)[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() <= NEAR


@pytest.mark.parametrize("name", ["hf-jamba-tiny", "hf-jamba-dense-tiny"])
@pytest.mark.parametrize("limits", [{}, {"max_batched_tokens": 5, "max_running": 1}, {"max_batched_tokens": 16}])
def test_the_golden_checkpoints_answer_as_recorded(name: str, limits: dict[str, int]) -> None:
    golden = load_file(GOLDEN / name / "golden.safetensors")
    length = golden["input_ids"].shape[1]
    padded, expected = golden["generated"][:, :length], golden["generated"][:, length:].tolist()
    prompts = [row[real > 0].tolist() for row, real in zip(padded, golden["attention_mask"], strict=True)]
    params = SamplingParams(temperature=0, max_tokens=len(expected[0]), ignore_eos=True)
    done = LLM(GOLDEN / name, cache_tokens=4096, **limits).generate(prompts, params)
    assert [list(c.token_ids) for c in done] == expected


ARCHITECTURES: list[dict[str, Any]] = [
    {},
    {"n_experts": 1, "top_k": 1, "tie_embeddings": True, "attn_period": 1, "attn_offset": 0, "n_layers": 2},
    {"attn_period": 9, "attn_offset": 8, "n_layers": 3, "top_k": 4},
    {"mamba_kind": "mamba2", "d_ssm_head": 8, "n_ssm_groups": 2, "attn_offset": 0, "n_kv_heads": 2},
]


@pytest.fixture(scope="module", params=range(len(ARCHITECTURES)))
def any_llm(request: pytest.FixtureRequest, make_folder: Any) -> LLM:
    return LLM(make_folder(seed=request.param, **ARCHITECTURES[request.param]))


prompt_ids = st.lists(st.integers(0, 49), min_size=1, max_size=40)


@settings(max_examples=15)
@given(
    prompts=st.lists(prompt_ids, min_size=1, max_size=6),
    lengths=st.lists(st.integers(1, 20), min_size=6, max_size=6),
    max_batched_tokens=st.sampled_from([1, 2, 5, 17, 2048]),
    max_running=st.sampled_from([1, 2, 16]),
)
def test_greedy_answers_are_those_of_the_plain_model(
    any_llm: LLM, prompts: list[list[int]], lengths: list[int], max_batched_tokens: int, max_running: int
) -> None:
    limits = any_llm.engine.limits
    limits.max_batched_tokens, limits.max_running = max_batched_tokens, max_running
    fed: list[int] = []
    requests = [
        GenerationRequest(token_ids=ids, sampling=SamplingParams(temperature=0, max_tokens=n, ignore_eos=True))
        for ids, n in zip(prompts, lengths, strict=False)
    ]
    with pytest.MonkeyPatch.context() as patch:
        launch = any_llm.engine.executor.launch
        patch.setattr(
            any_llm.engine.executor,
            "launch",
            lambda plan: (fed.append(sum(row.n_tokens for row in plan.rows)), launch(plan)),
        )
        done = any_llm.generate(requests)
    assert max(fed) <= max(max_batched_tokens, max_running)
    for ids, n, completion in zip(prompts, lengths, done, strict=False):
        assert (completion.finish_reason, completion.completion_tokens, len(completion.token_ids)) == ("length", n, n)
        assert (completion.prompt_tokens, completion.text) == (len(ids), "")
        assert_greedy(any_llm, ids, completion.token_ids)


def test_one_token_prompts_into_used_slots(bare: LLM) -> None:
    # A new prompt of one token looks like a decode step; its slot was another's.
    prompts = [[i] for i in range(3, 12)]
    alone = [bare.generate([p], GREEDY)[0].token_ids for p in prompts]
    assert [c.token_ids for c in bare.generate(prompts, GREEDY)] == alone


def test_an_answer_ends_with_an_end_token(make_folder: Any) -> None:
    free = LLM(make_folder()).generate([[5, 6, 7]], GREEDY)[0].token_ids
    end = free[4]
    at = free.index(end)
    llm = LLM(make_folder(eos_ids=(end,)))
    (done,) = llm.generate([[5, 6, 7]], SamplingParams(temperature=0))
    assert (done.token_ids, done.finish_reason) == (free[: at + 1], "stop")
    (done,) = llm.generate([[5, 6, 7]], GREEDY)
    assert (done.token_ids, done.finish_reason) == (free, "length")
    (done,) = llm.generate([[5, 6, 7]], SamplingParams(temperature=0, ignore_eos=True, stop_token_ids=[free[2]]))
    assert (done.token_ids, done.finish_reason) == (free[: free.index(free[2]) + 1], "stop")
    (done,) = llm.generate([[5, 6, 7]], SamplingParams(temperature=0, min_tokens=at + 1, max_tokens=at + 1))
    assert end not in done.token_ids
    assert done.finish_reason == "length"


def test_prompt_and_answer_stay_within_max_context(make_folder: Any) -> None:
    llm = LLM(make_folder(), max_context=10)
    done = llm.generate([[1] * n for n in (1, 5, 9)], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    assert [(c.completion_tokens, c.finish_reason) for c in done] == [(9, "length"), (5, "length"), (1, "length")]
    with pytest.raises(ValueError, match="the prompt has 10 tokens; with room for an answer at most 9 fit"):
        llm.generate([[1] * 10])
    scoring = SamplingParams(max_tokens=0, prompt_logprobs=0)
    assert llm.generate([[1] * 10], scoring)[0].prompt_tokens == 10
    with pytest.raises(ValueError, match="the prompt has 11 tokens; at most 10 fit in max_context=10"):
        llm.generate([[1] * 11], scoring)
    assert LLM(make_folder()).max_context == 512


@pytest.mark.parametrize("batched", [3, 64])
def test_logprobs_are_those_of_the_plain_model(batched: int, make_folder: Any) -> None:
    llm = LLM(make_folder(), max_batched_tokens=batched)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    params = SamplingParams(
        temperature=0.5, top_k=7, max_tokens=6, logprobs=3, prompt_logprobs=2, seed=0, ignore_eos=True
    )
    (done,) = llm.generate([prompt], params)
    ids = [*prompt, *done.token_ids]
    expected = logits_of(llm, ids).log_softmax(-1)
    assert done.logprobs is not None
    assert done.prompt_logprobs is not None
    assert done.prompt_logprobs[0] is None
    entries = [*done.prompt_logprobs[1:], *done.logprobs]
    for at, entry in enumerate(entries, start=1):
        assert entry is not None
        row = expected[at - 1]
        assert entry.token_id == ids[at]
        assert entry.logprob == pytest.approx(float(row[ids[at]]), abs=1e-5)
        top = row.topk(2 if at < len(prompt) else 3)
        assert [p for _, p in entry.top] == pytest.approx(top.values.tolist(), abs=1e-5)
        assert [float(row[i]) for i, _ in entry.top] == pytest.approx(top.values.tolist(), abs=1e-5)
    assert (len(done.prompt_logprobs), len(done.logprobs)) == (len(prompt), 6)


def test_logprobs_only_if_asked(bare: LLM) -> None:
    (done,) = bare.generate([[1, 2]], GREEDY)
    assert (done.logprobs, done.prompt_logprobs) == (None, None)
    (done,) = bare.generate([[1]], SamplingParams(max_tokens=0, prompt_logprobs=1))
    assert (done.token_ids, done.prompt_logprobs, done.finish_reason) == ((), (None,), "length")


pieces = st.lists(st.integers(0, 49), min_size=1, max_size=12)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.lists(st.integers(0, 49), max_size=12), pieces), min_size=1, max_size=4))
def test_loglikelihood_is_that_of_the_plain_model(bare: LLM, requests: list[tuple[list[int], list[int]]]) -> None:
    scores = bare.loglikelihood([ScoreRequest(context, continuation) for context, continuation in requests])
    for (context, continuation), score in zip(requests, scores, strict=True):
        ids = [*(context or [bare.config.bos_id]), *continuation]
        rows = logits_of(bare, ids).log_softmax(-1)[-len(continuation) - 1 : -1]
        logprobs = rows.gather(1, torch.tensor(continuation)[:, None])[:, 0]
        assert score.logprob == pytest.approx(float(logprobs.double().sum()), abs=1e-5 * len(continuation))
        assert score.n_tokens == len(continuation)
        margin = float((rows.max(-1).values - logprobs).max())
        assert score.is_greedy == (margin == 0) or margin < NEAR


def test_a_greedy_continuation_is_greedy(bare: LLM) -> None:
    (done,) = bare.generate([[7, 8]], GREEDY)
    other = [*done.token_ids[:3], (done.token_ids[3] + 1) % 50]
    best, worse = bare.loglikelihood([ScoreRequest([7, 8], list(done.token_ids)), ScoreRequest([7, 8], other)])
    assert (best.is_greedy, worse.is_greedy) == (True, False)


def test_text_is_scored_from_the_start_of_a_document(llm: LLM, tokenizer: Tokenizer) -> None:
    text = ScoreRequest("She was", " very glad")
    ids = ScoreRequest([1, *tokenizer.encode("She was")], tokenizer.encode(" very glad"))
    empty = [
        ScoreRequest("", "She"),
        ScoreRequest([1], tokenizer.encode("She")),
        ScoreRequest([], tokenizer.encode("She")),
    ]
    scores = llm.loglikelihood([text, ids, *empty])
    assert scores[0].logprob == pytest.approx(scores[1].logprob, abs=1e-5)
    assert [s.logprob for s in scores[2:]] == pytest.approx([scores[2].logprob] * 3, abs=1e-5)


def test_llm_is_a_generator(llm: LLM) -> None:
    generator: Generator = llm
    assert generator.generate([]) == []
    assert generator.loglikelihood([]) == []


def test_prompts_of_every_kind(llm: LLM, tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("Emma was")]
    expected = llm.generate([ids], GREEDY)[0]
    arrays = torch.tensor(ids), torch.tensor([ids]), [torch.tensor(ids)], np.array(ids), [np.array(ids)]
    for prompts in ("Emma was", ["Emma was"], ids, tuple(ids), [ids], [tuple(ids)], *arrays):
        assert llm.generate(prompts, GREEDY) == [expected]
    request = GenerationRequest(prompt="Emma was", sampling=GREEDY)
    assert llm.generate(request) == llm.generate([request], SamplingParams(max_tokens=1)) == [expected]
    assert llm.generate("", GREEDY)[0].prompt_tokens == 1
    assert len(llm.generate("Emma was")[0].token_ids) <= 128
    mixed = llm.generate(["Emma was", ids, request, [5]], GREEDY)
    assert mixed[:3] == [expected] * 3


def test_a_prompt_that_spells_a_control_token_is_text(llm: LLM, tokenizer: Tokenizer) -> None:
    (done,) = llm.generate("<|endoftext|>", GREEDY)
    assert done.prompt_tokens == 1 + len(tokenizer.encode("<|endoftext|>")) > 2


@settings(max_examples=15)
@given(st.text(max_size=20), st.integers(0, 2**31), st.integers(1, 40))
def test_streamed_text_is_the_generated_text(llm: LLM, prompt: str, seed: int, max_tokens: int) -> None:
    params = SamplingParams(temperature=1.5, seed=seed, max_tokens=max_tokens)
    (done,) = llm.generate(prompt, params)
    streamed = list(llm.stream(prompt, params))
    assert "".join(streamed) == done.text
    assert "" not in streamed
    assert llm.tokenizer is not None
    assert done.text == llm.tokenizer.decode(done.token_ids)


@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_stop_strings_cut_the_text_wherever_tokens_end(llm: LLM, data: st.DataObject, seed: int) -> None:
    params = {"temperature": 1.5, "seed": seed, "max_tokens": 24, "ignore_eos": True}
    (free,) = llm.generate([[5]], SamplingParams(**params))
    if len(free.text) < 4:
        return
    start = data.draw(st.integers(0, len(free.text) - 1))
    stop = free.text[start : start + data.draw(st.integers(1, 12))]
    stopping = SamplingParams(**params, stop=[stop, "never there"])
    (done,) = llm.generate([[5]], stopping)
    assert done.finish_reason == "stop"
    assert done.text == free.text[: free.text.index(stop)]
    assert done.token_ids == free.token_ids[: len(done.token_ids)]
    assert llm.tokenizer is not None
    assert stop in llm.tokenizer.decode(done.token_ids)
    assert "".join(llm.stream([5], stopping)) == done.text


def test_a_stop_string_that_does_not_come_holds_nothing_back(llm: LLM) -> None:
    params = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    (free,) = llm.generate("Emma", SamplingParams(**params))
    (done,) = llm.generate("Emma", SamplingParams(**params, stop=free.text[-1:] + "never"))
    assert (done.text, done.finish_reason) == (free.text, "length")


def test_nothing_stops_an_answer_before_min_tokens(llm: LLM) -> None:
    params = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    (free,) = llm.generate("Emma", SamplingParams(**params))
    (done,) = llm.generate("Emma", SamplingParams(**params, stop=[free.text[0]], min_tokens=20))
    assert done.text == free.text
    ids = [i for i in range(400) if i not in (7, 8)]  # all but two would end it at once
    (done,) = llm.generate("Emma", SamplingParams(max_tokens=9, min_tokens=5, stop_token_ids=ids, seed=1))
    assert set(done.token_ids[:5]) <= {7, 8}


def test_an_end_token_gives_no_text(llm: LLM, tokenizer: Tokenizer) -> None:
    word = tokenizer.encode("e")[0]
    biased = {"logit_bias": {word: 100}, "max_tokens": 3}
    assert llm.generate("Emma", SamplingParams(**biased))[0].text == tokenizer.decode([word] * 3)
    (done,) = llm.generate("Emma", SamplingParams(**biased, stop_token_ids=[word]))
    assert (done.text, done.token_ids, done.finish_reason) == ("", (word,), "stop")


MESSAGES = [{"role": "user", "content": "Who is <|eom|> Emma?"}]


def test_messages_go_through_the_chat_template(llm: LLM, tokenizer: Tokenizer) -> None:
    assert llm.chat_template is not None
    ids = llm.chat_template.encode(tokenizer, MESSAGES)
    plain = llm.chat_template.encode(tokenizer, [{"role": "user", "content": "Who is Emma?"}])
    eom = tokenizer.control_ids["<|eom|>"]
    assert ids.count(eom) == plain.count(eom) > 0  # the template's own, not the user's
    (done,) = llm.generate(GenerationRequest(messages=MESSAGES, sampling=GREEDY))
    (expected,) = llm.generate([ids], GREEDY)
    assert (done.prompt_tokens, done.token_ids) == (len(ids), expected.token_ids)
    assert "".join(llm.stream(GenerationRequest(messages=MESSAGES, sampling=GREEDY))) == done.text


def test_answers_to_messages_keep_control_tokens_but_the_end(llm: LLM, tokenizer: Tokenizer) -> None:
    tool, eom = tokenizer.control_ids["<|tool|>"], tokenizer.control_ids["<|eom|>"]
    calling = SamplingParams(max_tokens=2, logit_bias={tool: 100})
    assert llm.generate(GenerationRequest(messages=MESSAGES, sampling=calling))[0].text == "<|tool|>" * 2
    assert llm.generate("Emma", calling)[0].text == ""
    ending = SamplingParams(max_tokens=2, logit_bias={eom: 100})
    (done,) = llm.generate(GenerationRequest(messages=MESSAGES, sampling=ending))
    assert (done.text, done.token_ids, done.finish_reason) == ("", (eom,), "stop")


def test_ids_beyond_the_tokenizer_are_no_text(make_folder: Any) -> None:
    llm = LLM(make_folder(with_tokenizer=True, vocab_size=410))
    (done,) = llm.generate("Emma", SamplingParams(max_tokens=3, logit_bias={405: 100}))
    assert (done.text, done.token_ids) == ("", (405, 405, 405))


def test_n_answers_stand_side_by_side(llm: LLM) -> None:
    params = {"temperature": 1.0, "seed": 3, "max_tokens": 10, "ignore_eos": True}
    done = llm.generate(["Emma", "Harriet"], SamplingParams(**params, n=3))
    assert len({c.token_ids for c in done}) == 6
    assert len({c.prompt_tokens for c in done[:3]}) == 1
    for i, prompt in enumerate(("Emma", "Harriet")):
        assert llm.generate(prompt, SamplingParams(**params)) == [done[3 * i]]
        assert llm.generate(prompt, SamplingParams(**params, n=2)) == done[3 * i : 3 * i + 2]


def test_a_seed_gives_the_same_tokens_whatever_else_runs(llm: LLM) -> None:
    params = SamplingParams(seed=11, max_tokens=15, ignore_eos=True)
    (alone,) = llm.generate("Emma", params)
    others = [GenerationRequest(prompt=p, sampling=SamplingParams(max_tokens=9)) for p in ("x", "Mr. Knightley", "")]
    crowd = llm.generate([*others, GenerationRequest(prompt="Emma", sampling=params), *others])
    assert crowd[3] == alone
    assert llm.generate("Emma", SamplingParams(seed=12, max_tokens=15, ignore_eos=True))[0] != alone
    unseeded = [llm.generate("Emma", SamplingParams(max_tokens=15))[0].token_ids for _ in range(3)]
    assert len(set(unseeded)) == 3


def assert_idle(llm: LLM) -> None:
    """Nothing is left of any request but what the prefix cache keeps."""
    llm.engine.check()
    stats = llm.engine.stats()
    assert (stats.running, stats.waiting, stats.slots_used) == (0, 0, 0)
    assert llm.engine.is_idle


def test_a_stream_that_is_left_ends_its_request(llm: LLM) -> None:
    stream = llm.stream("Emma", GREEDY)
    first = next(stream)
    assert llm.engine.stats().running == 1
    assert not torch.is_inference_mode_enabled()
    del stream
    gc.collect()
    assert_idle(llm)
    assert "".join(llm.stream("Emma", GREEDY)).startswith(first)
    llm.stream("Emma", GREEDY)  # never begun
    assert_idle(llm)


def test_streams_and_calls_side_by_side(llm: LLM) -> None:
    alone = ["".join(llm.stream(prompt, GREEDY)) for prompt in ("Emma", "Harriet")]
    one, two = llm.stream("Emma", GREEDY), llm.stream("Harriet", GREEDY)
    texts = [next(one), next(two)]
    (whole,) = llm.generate("Emma", GREEDY)
    texts[1] += "".join(two)
    texts[0] += "".join(one)
    assert [*texts, whole.text] == [*alone, alone[0]]
    assert_idle(llm)


def test_an_error_ends_what_is_under_way_and_the_next_call_works(bare: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bare.generate([[1, 2, 3]], GREEDY)
    launch, calls = bare.engine.executor.launch, iter(range(100))

    def failing(plan: StepPlan) -> None:
        launch(plan)
        if next(calls) == 3:
            raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(bare.engine.executor, "launch", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            bare.generate([[1, 2, 3], [4]], GREEDY)
    assert_idle(bare)
    assert not torch.is_inference_mode_enabled()
    assert bare.generate([[1, 2, 3]], GREEDY) == expected


def test_a_prompt_seen_before_starts_at_its_last_page(make_folder: Any) -> None:
    llm = LLM(make_folder())
    prompt = list(range(40)) * 3
    (first,) = llm.generate([prompt], GREEDY)
    before = llm.engine.stats()
    assert llm.generate([prompt], GREEDY) == [first]
    after = llm.engine.stats()
    assert after.prefix_usable_total - before.prefix_usable_total == (len(prompt) - 1) // 16 * 16
    (whole,) = llm.generate([[*prompt, *first.token_ids, 7]], GREEDY)  # the next turn starts where the answer ended
    assert llm.engine.stats().prefix_usable_total - after.prefix_usable_total == len(prompt) + len(first.token_ids) - 1
    assert_greedy(llm, [*prompt, *first.token_ids, 7], whole.token_ids)
    off = LLM(make_folder(), prefix_cache=False)
    assert off.generate([prompt, prompt], GREEDY) == [first, first]
    assert (off.engine.stats().prefix_usable_total, off.engine.stats().pages_used) == (0, 0)


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([[]], {}, "the prompt is empty: give at least one token"),
        ([[1], []], {}, "the prompt is empty"),
        ([[1, 50]], {}, "token id 50 is not between 0 and vocab_size-1=49"),
        ([[-1]], {}, "token id -1 is not between"),
        ([[1, 2.0]], {}, r"token ids must be integers, got 2\.0"),
        ([["2"]], {}, "token ids must be integers, got '2'"),
        (list(MESSAGES), {}, r"a GenerationRequest, not dict \(messages go into GenerationRequest"),
        (["text"], {}, "no tokenizer.json, so prompts must be lists of token ids"),
        ([GenerationRequest(messages=MESSAGES)], {}, "no tokenizer"),
        ([[1] * 600], {}, "the prompt has 600 tokens; with room for an answer at most 511 fit"),
        ([[1]], {"logit_bias": {50: 1}}, "logit_bias: token id 50 is not below vocab_size=50"),
        ([[1]], {"stop_token_ids": [50]}, "stop_token_ids: token id 50 is not below vocab_size=50"),
        ([[1]], {"stop": ["x"]}, "stop strings need a tokenizer, .*use stop_token_ids"),
    ],
)
def test_bad_prompts_are_refused(prompts: Any, params: dict[str, Any], message: str, bare: LLM) -> None:
    with pytest.raises(ValueError, match=message):
        bare.generate(prompts, SamplingParams(**params))
    with pytest.raises(ValueError, match=message):  # before anything is read from it
        bare.stream(prompts[-1], SamplingParams(**params))


def test_an_answer_tells_what_the_cache_knew_of_its_prompt(make_folder: Any) -> None:
    llm = LLM(make_folder())
    prompt = list(range(40)) * 3
    seen = [llm.generate([prompt], GREEDY)[0] for _ in range(2)]
    assert [(one.cached_tokens, one.lost_tokens) for one in seen] == [(0, 0), (112, 0)]
    fork = [*prompt[:70], 3, 3, 3]  # its pages are there up to 64, and no state
    (other,) = llm.generate([fork], GREEDY)
    assert (other.cached_tokens, other.lost_tokens) == (0, 64)


@pytest.mark.parametrize("prompts", [None, 7, {"role": "user"}, [[1], None]])
def test_what_is_no_prompt_is_refused(prompts: Any, bare: LLM) -> None:
    with pytest.raises(ValueError, match="a prompt is text, a list of token ids, or a GenerationRequest, not"):
        bare.generate(prompts)


def test_several_answers_can_not_be_streamed(bare: LLM) -> None:
    with pytest.raises(ValueError, match="n=2: only one answer can be streamed"):
        bare.stream([1], SamplingParams(n=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batched_tokens": 0}, "max_batched_tokens=0 must be at least 1"),
        ({"max_running": 0}, "max_running=0 must be at least 1"),
        ({"max_context": 0}, "max_context=0 must be at least 1"),
        ({"quantize": "int3"}, "'int3'"),
        ({"device": "cuda:99"}, "torch sees .* CUDA devices"),
        ({"device": "warp"}, "device='warp' must be cpu"),
        ({"device": "mps"}, "device='mps' must be cpu, cuda, or cuda:N"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, make_folder: Any) -> None:
    with pytest.raises(ValueError, match=message):
        LLM(make_folder(), **options)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"is no model: it must be a folder with a config\.json, or 'demo'"):
            find_model(path)


def test_int8_and_bf16_models_answer_too(make_folder: Any, tmp_path: Path) -> None:
    folder = make_folder()
    int8 = LLM(folder, quantize="experts_int8")
    (done,) = int8.generate([[5, 6]], GREEDY)
    assert_greedy(int8, [5, 6], done.token_ids)
    plait.save_model(int8.model, tmp_path / "int8")
    assert LLM(tmp_path / "int8").generate([[5, 6]], GREEDY) == [done]
    half = LLM(folder, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    (done,) = half.generate([[5, 6]], GREEDY)
    logits = logits_of(half, [5, 6, *done.token_ids])[1:-1].float()
    assert (logits.max(-1).values - logits.gather(1, torch.tensor(done.token_ids)[:, None])[:, 0]).max() < 0.3
