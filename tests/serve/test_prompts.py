"""What the engine is given for a prompt. What is refused is in test_llm.py, through the front door."""

import pytest

from plait.config import ModelConfig
from plait.serve.prompts import Prompts
from plait.serve.service import Grammar
from plait.text import ChatTemplate, GenerationRequest, SamplingParams, Tokenizer

MESSAGES = [{"role": "user", "content": "Who is Emma?"}, {"role": "assistant", "content": "A person."}] * 2


@pytest.fixture
def prompts(tokenizer: Tokenizer) -> Prompts:
    config = ModelConfig(vocab_size=400, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, max_context=200)
    return Prompts(config, tokenizer, ChatTemplate())


def test_turns_end_behind_the_templates_own_tokens(prompts: Prompts, tokenizer: Tokenizer) -> None:
    request = prompts.request(GenerationRequest(messages=[*MESSAGES, {"role": "user", "content": "<|eom|>"}]))
    ends = [i + 1 for i, t in enumerate(request.prompt) if t == tokenizer.control_ids["<|eom|>"]]
    assert list(request.turns) == ends
    assert len(ends) >= 5
    assert prompts.request(GenerationRequest(token_ids=request.prompt)).turns == ()


def test_an_answer_is_cut_where_the_context_ends(prompts: Prompts) -> None:
    asked = GenerationRequest(token_ids=[5] * 190, sampling=SamplingParams(max_tokens=50, min_tokens=20))
    params = prompts.request(asked).params
    assert (params.max_tokens, params.min_tokens) == (10, 10)
    asked = GenerationRequest(token_ids=[5] * 20, sampling=SamplingParams(max_tokens=50))
    assert prompts.request(asked).params is asked.sampling


def test_what_ends_an_answer(prompts: Prompts) -> None:
    own = prompts.end_ids
    assert own
    assert prompts.request(GenerationRequest(prompt="x")).end_ids == own
    stopping = SamplingParams(stop_token_ids=[7], ignore_eos=True)
    assert prompts.request(GenerationRequest(prompt="x", sampling=stopping)).end_ids == {7}
    both = SamplingParams(stop_token_ids=[7])
    assert prompts.request(GenerationRequest(prompt="x", sampling=both)).end_ids == own | {7}


def test_what_is_passed_on(prompts: Prompts) -> None:
    grammar = Grammar("regex", "a+")
    request = prompts.request(
        GenerationRequest(prompt="x"), priority=-3, grammar=grammar, salt="tenant", is_private=True
    )
    assert (request.priority, request.grammar, request.salt, request.is_private) == (-3, grammar, "tenant", True)
    assert request.prompt[0] == prompts.config.bos_id
