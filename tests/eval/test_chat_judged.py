"""Arena-Hard and WildBench: answers, then judgments in both orders, win rates with and without length."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.eval.chat_judged import ARENA_HARD, ARENA_HARD_JUDGE, KIND_WEIGHTS, WILD_BENCH, WILD_BENCH_JUDGE
from plait.eval.runner import run_task
from plait.eval.statistics import weighted_mean_of_kinds
from plait.eval.task import Inputs
from plait.eval.verdict import Verdict, length_controlled_win_rate, read_label, read_pairwise, read_score, win_rate
from plait.paper import table_3


@pytest.mark.parametrize(
    ("text", "a", "b"),
    [
        ("… so [[A>>B]]", (1.0, 3), (0.0, 3)),
        ("[[A>B]]", (1.0, 1), (0.0, 1)),
        ("[[A=B]] and again [[A=B]]", (0.5, 1), (0.5, 1)),
        ("[[B>A]]", (0.0, 1), (1.0, 1)),
        ("[[ B>>A ]]", (0.0, 3), (1.0, 3)),
    ],
)
def test_pairwise_labels(text: str, a: tuple, b: tuple) -> None:
    assert read_pairwise(text, judged_is_a=True) == Verdict(*a)
    assert read_pairwise(text, judged_is_a=False) == Verdict(*b)


@pytest.mark.parametrize("text", ["", "A>B", "[[A>B]] … [[B>A]]", "[[A>A]]", "[[A<B]]", "[A>B]"])
def test_no_verdict(text: str) -> None:
    assert read_pairwise(text, judged_is_a=True) is None


def test_other_labels_and_scores() -> None:
    assert [read_score(t) for t in ('{"score": "7"}', '"score": 10', '"score": "11"', "7", '"score": "x"')] == [
        7,
        10,
        None,
        None,
        None,
    ]
    assert [read_label(t, ("KEPT", "BROKEN")) for t in ("[[KEPT]]", "KEPT", "[[KEPT]] [[BROKEN]]")] == [
        "KEPT",
        None,
        None,
    ]


def test_a_strong_win_counts_as_three() -> None:
    assert win_rate([Verdict(1, 3), Verdict(0, 1)]) == 0.75
    assert win_rate([Verdict(1, 1), Verdict(0.5, 1), Verdict(0, 1)]) == 0.5


def test_length_control_takes_out_a_bias_for_length() -> None:
    """A judge who likes length, and answers of equal worth, the judged ones longer by 100 words on average."""
    rng = random.Random(0)
    differences = [rng.gauss(100, 100) for _ in range(4000)]
    biased = [Verdict(float(rng.random() < 1 / (1 + 2.718281828 ** (-d / 100))), 1) for d in differences]
    assert win_rate(biased) > 0.68
    assert length_controlled_win_rate(biased, differences) == pytest.approx(0.5, abs=0.03)
    fair = [Verdict(float(rng.random() < 0.7), 1) for _ in differences]
    assert length_controlled_win_rate(fair, differences) == pytest.approx(0.7, abs=0.04)
    assert 0.9 < length_controlled_win_rate([Verdict(1, 1)] * 50, [1.0, -1.0] * 25) < 1


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "arena_hard").mkdir()
    (tmp_path / "wild_bench").mkdir()
    rows = [{"question_id": f"q{n}", "turns": [{"content": f"request {n}"}]} for n in range(4)]
    (tmp_path / "arena_hard" / "question.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answers = [{"question_id": f"q{n}", "choices": [{"turns": [{"content": "theirs"}]}]} for n in range(4)]
    (tmp_path / "baseline.jsonl").write_text("\n".join(map(json.dumps, answers)))
    row = {"session_id": "s", "conversation_input": [{"role": "user", "content": "hi"}], "checklist": ["Is it kind?"]}
    (tmp_path / "wild_bench" / "test.jsonl").write_text(json.dumps(row))
    return tmp_path


def test_arena_hard_both_orders(data: Path, scripted: type, inputs_of: Callable[..., Inputs]) -> None:
    run_task(
        ARENA_HARD,
        scripted(lambda _: "ours and longer"),
        data / "a",
        inputs_of("arena_hard", data=data, limit=None),
        model="me",
    )
    options = {"answers": str(data / "a"), "baseline": str(data / "baseline.jsonl")}

    def judge(text: str) -> str:
        """Likes ours, but whoever is shown first more; and once gives no verdict."""
        if "request 3" in text:
            return "both are fine"
        return "[[A>>B]]" if "<answer A>\\nours" in text else "[[A=B]]"

    inputs = inputs_of("arena_hard_judge", options, limit=None)
    scores = run_task(ARENA_HARD_JUDGE, scripted(judge), data / "j", inputs, model="judge")
    assert scores["n"] == 8
    assert scores["metrics"]["judged"]["value"] == 75
    assert scores["metrics"]["win"]["value"] == 75
    summary = scores["summary"]
    assert summary["judged"] == "me"
    assert summary["win_rate"]["value"] == pytest.approx(100 * (3 * 3 + 3 * 0.5) / 12)
    assert summary["first_place_bonus"] == 50
    rows = {row["benchmark"]: row for row in table_3.as_json([data / "j"])["rows"]}
    assert rows["Arena-Hard"]["ours"]["me"]["value"] == summary["win_rate"]["value"]


def test_arena_hard_needs_answers_and_a_baseline(data: Path, scripted: type, inputs_of: Callable[..., Inputs]) -> None:
    with pytest.raises(ValueError, match="--set answers=DIR"):
        ARENA_HARD_JUDGE.plan(inputs_of("arena_hard_judge"))
    run_task(ARENA_HARD, scripted(str), data / "a", inputs_of("arena_hard", data=data), model="me")
    with pytest.raises(ValueError, match="--set baseline=PATH"):
        ARENA_HARD_JUDGE.plan(inputs_of("arena_hard_judge", {"answers": str(data / "a")}))
    with pytest.raises(ValueError, match="judges answers of wild_bench"):
        WILD_BENCH_JUDGE.plan(inputs_of("wild_bench_judge", {"answers": str(data / "a")}))


def test_wild_bench_grades(data: Path, scripted: type, inputs_of: Callable[..., Inputs]) -> None:
    run_task(WILD_BENCH, scripted(lambda _: "hello"), data / "w", inputs_of("wild_bench", data=data), model="me")
    judge = scripted(
        lambda text: '{"strengths": "", "score": "7"}' if "- Is it kind?" in text and "hello" in text else "?"
    )
    inputs = inputs_of("wild_bench_judge", {"answers": str(data / "w")})
    scores = run_task(WILD_BENCH_JUDGE, judge, data / "j", inputs, model="judge")
    assert scores["metrics"]["score"]["value"] == 40
    assert scores["metrics"]["grade"]["value"] == 7
    assert scores["summary"]["judged"] == "me"
    assert scores["summary"]["by_kind"]["value"] == 40
    rows = {row["benchmark"]: row for row in table_3.as_json([data / "j"])["rows"]}
    assert rows["WildBench"]["ours"]["me"]["value"] == 40


def test_the_score_over_kinds_is_the_leaderboards() -> None:
    """The published means of one model's kinds of request, and the score published for it; the judgments' form too."""
    published = {"creative": 42.44155844, "planning": 35.01501501, "math": 20.48, "information": 41.53465346,
                 "coding": 22.08530805}  # fmt: skip
    kinds = [[name == kind for kind in KIND_WEIGHTS] for name in published]
    found = weighted_mean_of_kinds(list(published.values()), kinds, list(KIND_WEIGHTS.values()))
    assert found.value == pytest.approx(30.3636154, abs=1e-4)
    assert found.low <= found.value <= found.high
    assert read_score('{\n    "strengths": "s",\n    "weaknesses": "w",\n    "score": "7"\n}') == 7


def test_a_request_may_be_of_several_kinds() -> None:
    found = weighted_mean_of_kinds([10.0, 20.0, 60.0], [[True, False], [True, True], [False, True]], [1, 3])
    assert found.value == pytest.approx((1 * 15 + 3 * 40) / 4)
    alone = weighted_mean_of_kinds([10.0, 20.0], [[True, False], [True, False]], [1, 3])
    assert alone.value == 15
    many = weighted_mean_of_kinds([0.0, 100.0] * 200, [[True]] * 400, [2.0])
    assert many.high - many.value == pytest.approx(1.96 * 50 / 20, rel=0.15)
