"""The model that lm-evaluation-harness sees, against a stand-in of its base class (the harness is an extra)."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

from plait.eval.harness import _generation, _group, _scores, harness_model
from plait.eval.harness_tasks import PAPER_TASKS, TABLE_2, TABLE_6
from plait.eval.runner import Price
from plait.eval.task import Inputs
from plait.text import Score, ScoreRequest


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lm_eval.api.model.TemplateLM` as far as the adapter uses it."""
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    model = ModuleType("lm_eval.api.model")
    model.TemplateLM = type("TemplateLM", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", model)


def test_without_the_extra_it_says_so(
    scripted: type, inputs_of: Callable[..., Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ValueError, match=r"pip install plait\[eval\]"):
        harness_model(scripted(str), inputs_of("ruler"))


@pytest.mark.usefixtures("harness")
def test_prompts_begin_with_bos_once(scripted: type, inputs_of: Callable[..., Inputs]) -> None:
    inputs = inputs_of("ruler")
    lm = harness_model(scripted(str), inputs)
    tokenizer = inputs.tokenizer
    assert tokenizer is not None
    plain = tokenizer.encode("Emma")
    assert lm.tok_encode("Emma") == [tokenizer.bos_id, *plain]
    assert lm.tok_encode("Emma", False) == plain
    assert lm.tok_encode("<|startoftext|>Emma") == [tokenizer.bos_id, *plain]
    assert lm.prefix_token_id == tokenizer.bos_id
    chat = lm.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert lm.tok_encode(chat)[:3] == [tokenizer.bos_id, tokenizer.id_of("<|bom|>"), tokenizer.id_of("<|system|>")]


@pytest.mark.usefixtures("harness")
def test_scores_and_answers_in_order(scripted: type, inputs_of: Callable[..., Inputs]) -> None:
    told: list[int] = []
    model = scripted(lambda ids: f"to {len(ids)}", score=lambda r: Score(-float(len(r.context)), False, 1))
    lm = harness_model(model, inputs_of("ruler"), on_progress=told.append)
    asked = [(("", ""), [1] * n, [2]) for n in range(1, 151)]
    assert lm._loglikelihood_tokens(asked) == [(-float(n), False) for n in range(1, 151)]
    assert told == [64, 64, 22]
    requests = [SimpleNamespace(args=("Emma", {"until": ["\n"], "do_sample": False, "max_gen_toks": 5}))] * 3
    assert len(lm.generate_until(requests)) == 3
    assert model.asked[0].sampling.max_tokens == 5
    assert model.asked[0].sampling.stop == ("\n",)
    assert model.asked[0].sampling.is_greedy


@pytest.mark.usefixtures("harness")
def test_rolling_scores_count_every_token_once(scripted: type, inputs_of: Callable[..., Inputs]) -> None:
    inputs = inputs_of("ruler")
    assert inputs.tokenizer is not None
    text = "Emma Woodhouse, handsome, clever, and rich"
    n_tokens = len(inputs.tokenizer.encode(text))
    seen: list[ScoreRequest] = []

    def score(request: ScoreRequest) -> Score:
        seen.append(request)
        return Score(-float(len(request.continuation)), False, len(request.continuation))

    for size in (None, 5):
        seen.clear()
        lm = harness_model(scripted(str, score=score), inputs, max_context=size)
        assert lm.loglikelihood_rolling([SimpleNamespace(args=(text,))]) == [-float(n_tokens)]
        assert [i for request in seen for i in request.continuation] == inputs.tokenizer.encode(text)
        assert all(len(request.context) == 1 for request in seen)
        assert lm.loglikelihood_rolling([SimpleNamespace(args=("",))]) == [0]


def test_generation_arguments() -> None:
    sampled = _generation([1], {"until": "END", "do_sample": True, "temperature": 0.7, "top_p": 0.9}).sampling
    assert (sampled.temperature, sampled.top_p, sampled.stop, sampled.max_tokens) == (0.7, 0.9, ("END",), 256)
    assert _generation([1], {"do_sample": False, "temperature": 0.7}).sampling.temperature == 0
    with pytest.raises(ValueError, match="asks for num_beams"):
        _generation([1], {"num_beams": 4})


def test_the_papers_shots() -> None:
    assert {t.name: t.shots for t in TABLE_2} == {
        "mmlu": 5, "mmlu_pro": 5, "gpqa_main_zeroshot": 0, "arc_challenge_chat": 0, "bbh_cot_fewshot": 3, "gsm8k": 5,
        "ifeval": 0, "truthfulqa_mc2": 0,
    }  # fmt: skip
    assert len(TABLE_6) == 7
    assert len(PAPER_TASKS) == 15


def test_results_become_groups_with_the_pinned_metric_first() -> None:
    found = {
        "alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.25, "acc_norm_stderr,none": "N/A",
        "exact_match,strict-match": 0.75, "exact_match_stderr,strict-match": 0.0,
    }  # fmt: skip
    group = _group(found, 20, PAPER_TASKS["gsm8k"])
    assert list(group["metrics"]) == ["exact_match", "acc", "acc_norm"]
    assert group["metrics"]["acc"] == {"value": 50, "low": 30.4, "high": 69.6, "n": 20, "unit": "%"}
    assert list(_group(found, 20, None)["metrics"]) == ["acc", "acc_norm", "exact_match strict-match"]


def test_only_shares_are_in_percent() -> None:
    found = {"word_perplexity,none": 25.0, "bits_per_byte,none": 0.75, "prompt_level_strict_acc,none": 0.5}
    metrics = _group(found, 20, None)["metrics"]
    assert {name: (metric["value"], metric["unit"]) for name, metric in metrics.items()} == {
        "word_perplexity": (25, ""), "bits_per_byte": (0.75, ""), "prompt_level_strict_acc": (50, "%")
    }  # fmt: skip


def test_seven_languages_give_the_average_of_table_6() -> None:
    groups = {t.name: _group({"acc,none": n / 10}, 5, t) for n, t in enumerate(TABLE_6)}
    used = {"prompt": 2_000_000, "completion": 500_000}
    scores = _scores(groups, {}, "m", used, Price(1, 4))
    assert scores["metrics"]["m_mmlu_average"]["value"] == 30
    assert (scores["tokens"], scores["cost_usd"]) == (used, 4.0)
    groups.popitem()
    assert _scores(groups, {}, "m", used)["metrics"] == {}
