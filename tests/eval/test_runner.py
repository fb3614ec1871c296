"""The runner: nothing asked twice, nothing half-written, other settings refused, same seed same bytes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from plait.eval.diff import compare, render, word_diff
from plait.eval.records import MAX_PROMPT_CHARS, read_run, shown_prompt
from plait.eval.report import write_report
from plait.eval.runner import Price, run_task, sum_up
from plait.eval.task import Answer, Inputs, Metric, Option, Plan, Sample, Task, ready
from plait.text import Score


def _plan(inputs: Inputs) -> Plan:
    samples = [
        Sample(f"{group}/{n}", f"{group} {n}?", group=group, references=(str(n),), temperature=float(n == 3))
        for group in ("a", "b")
        for n in range(5)
    ]
    return Plan(ready(samples, inputs), {"data": "1"})


def _score(sample: Sample, answer: Answer) -> dict[str, float]:
    return {"right": float(answer.text == sample.references[0]), "chars": float(len(answer.text))}


TASK = Task(
    "toy", "echoes", _plan, _score, (Metric("right"), Metric("chars", "characters")), {"color": Option("red", "any")}
)


def echo(prompt: str) -> str:
    return prompt.rstrip("?").split()[-1]


def test_scores_are_means_with_intervals_and_counts(tmp_path: Path, scripted: type) -> None:
    model = scripted(lambda prompt: "" if prompt == "a 0?" else echo(prompt) if prompt[0] == "a" else "no")
    scores = run_task(TASK, model, tmp_path / "run", Inputs(), model="m", price=Price(1.0, 10.0))
    assert scores["n"] == 10
    assert scores["empty"] == 1
    assert scores["metrics"]["right"]["value"] == 40
    assert 0 < scores["metrics"]["right"]["low"] < 40 < scores["metrics"]["right"]["high"] < 100
    assert scores["metrics"]["chars"] == {"value": 1.4, "low": 1.0, "high": 1.8, "n": 10, "unit": "characters"}
    assert scores["groups"]["a"]["metrics"]["right"]["value"] == 80
    assert scores["groups"]["b"]["metrics"]["right"] == {"value": 0, "low": 0, "high": 0, "n": 5, "unit": "%"}
    assert scores["tokens"] == {"prompt": 100, "completion": 9}
    assert scores["cost_usd"] == round((100 * 1 + 9 * 10) / 1e6, 6)
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == scores


def test_every_sample_is_on_record(tmp_path: Path, scripted: type) -> None:
    run_task(TASK, scripted(echo), tmp_path, Inputs(limit=3), model="m")
    records = read_run(tmp_path).records
    assert [record["id"] for record in records] == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]
    assert records[1]["prompt"] == "a 1?"
    assert records[1]["output"] == "1"
    assert records[1]["scores"] == {"right": 1.0, "chars": 1.0}
    assert (records[1]["prompt_tokens"], records[1]["completion_tokens"]) == (10, 1)


def test_a_run_that_stopped_goes_on_without_asking_again(tmp_path: Path, scripted: type) -> None:
    calls = []

    def failing(prompt: str) -> str:
        calls.append(prompt)
        if len(calls) == 6:
            raise RuntimeError("the machine went away")
        return echo(prompt)

    with pytest.raises(RuntimeError):
        run_task(TASK, scripted(failing), tmp_path / "run", Inputs(), model="m", batch_size=2)
    samples = tmp_path / "run" / "samples.jsonl"
    assert samples.read_text().count("\n") == 4
    assert not (tmp_path / "run" / "scores.json").exists()
    samples.write_bytes(samples.read_bytes() + b'{"id": "a/4", "cut off')
    model = scripted(echo)
    seen: list[tuple[int, int]] = []
    resumed = run_task(
        TASK, model, tmp_path / "run", Inputs(), model="m", batch_size=4, on_progress=lambda *p: seen.append(p)
    )
    assert len(model.asked) == resumed["answered_now"] == 6
    assert seen == [(8, 10), (10, 10)]
    whole = run_task(TASK, scripted(echo), tmp_path / "whole", Inputs(), model="m")
    assert (tmp_path / "whole" / "samples.jsonl").read_bytes() == samples.read_bytes()
    assert whole["metrics"] == resumed["metrics"]
    assert run_task(TASK, scripted(echo), tmp_path / "run", Inputs(), model="m")["answered_now"] == 0


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 1}, "seed"), ({"limit": 3}, "limit"), ({"options": {"color": "blue"}}, "options")],
)
def test_other_settings_are_refused(tmp_path: Path, scripted: type, change: dict, name: str) -> None:
    run_task(TASK, scripted(echo), tmp_path, Inputs(), model="m")
    with pytest.raises(ValueError, match=f"begun with {name}="):
        run_task(TASK, scripted(echo), tmp_path, Inputs(**change), model="m")


def test_a_folder_of_something_else_is_refused(tmp_path: Path, scripted: type) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds files but no settings\.json"):
        run_task(TASK, scripted(echo), tmp_path, Inputs(), model="m")
    with pytest.raises(ValueError, match="finish the run first"):
        read_run(tmp_path)


def test_an_unknown_option_is_named(tmp_path: Path, scripted: type) -> None:
    with pytest.raises(ValueError, match="has no option 'colour'; it has color"):
        run_task(TASK, scripted(echo), tmp_path, Inputs(options={"colour": "x"}), model="m")


def test_sampled_answers_have_a_seed_of_their_own(tmp_path: Path, scripted: type) -> None:
    seeds = []
    for run, seed in enumerate((0, 0, 1)):
        model = scripted(echo)
        run_task(TASK, model, tmp_path / str(run), Inputs(seed=seed), model="m")
        seeds.append([request.sampling.seed for request in model.asked])
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[0][0] is None  # greedy
    assert seeds[0][3] != seeds[0][8]


def test_continuations_are_scored_and_not_generated(tmp_path: Path, scripted: type) -> None:
    samples = [Sample(str(n), (1, 2), continuation=(3, n)) for n in range(4)]
    task = Task(
        "likely",
        "",
        lambda inputs: Plan(ready(samples, inputs)),
        lambda sample, answer: {"greedy": float(answer.score.is_greedy), "nats": -answer.score.logprob},
        (Metric("greedy"), Metric("nats", "nats")),
    )
    model = scripted(echo, score=lambda request: Score(-0.5 * request.continuation[1], request.continuation[1] > 1, 2))
    scores = run_task(task, model, tmp_path, Inputs(), model="m")
    assert (scores["metrics"]["greedy"]["value"], scores["metrics"]["nats"]["value"]) == (50, 0.75)
    assert scores["empty"] == 0
    assert not model.asked
    assert read_run(tmp_path).records[3]["logprob"] == -1.5


def test_group_means_are_not_weighted_by_size() -> None:
    records = [
        {
            "id": str(n),
            "group": g,
            "scores": {"right": s, "chars": 0},
            "output": "x",
            "prompt_tokens": 0,
            "completion_tokens": 0,
        }
        for n, (g, s) in enumerate([("a", 1.0), ("b", 0.0), ("b", 0.0), ("b", 0.0)])
    ]
    by_sample = sum_up(TASK, records)["metrics"]["right"]["value"]
    by_group = sum_up(Task("t", "", _plan, _score, TASK.metrics, mean_over="groups"), records)["metrics"]["right"][
        "value"
    ]
    assert (by_sample, by_group) == (25, 50)


def test_a_very_long_prompt_is_kept_as_its_ends() -> None:
    text = "a" * MAX_PROMPT_CHARS
    assert shown_prompt(text) == text
    kept = shown_prompt("b" + text + "c")
    assert (kept[0], kept[-1]) == ("b", "c")
    assert "2 characters left out" in kept


def test_the_report_needs_nothing_else_and_shows_what_was_wrong(tmp_path: Path, scripted: type) -> None:
    run_task(
        TASK, scripted(lambda prompt: "<b>&" if prompt == "a 2?" else echo(prompt)), tmp_path, Inputs(), model="m<"
    )
    write_report(read_run(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    assert "m&lt;" in page
    assert "<svg" in page
    assert "src=" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.index("a/2: right 0") < page.index("a/0: right 1")


def test_two_runs_side_by_side(tmp_path: Path, scripted: type) -> None:
    run_task(TASK, scripted(lambda p: "no" if p == "a 1?" else echo(p)), tmp_path / "x", Inputs(), model="x")
    run_task(TASK, scripted(lambda p: "never" if p[0] == "b" else echo(p)), tmp_path / "y", Inputs(), model="y")
    diff = compare(read_run(tmp_path / "x"), read_run(tmp_path / "y"))
    found = diff.as_json()
    assert found["n_shared"] == 10
    assert found["better"] == ["a/1"]
    assert sorted(found["worse"]) == [f"b/{n}" for n in range(5)]
    right = diff.metrics["right"]
    assert right.value == pytest.approx(-40)
    assert right.low < -40 < right.high
    assert diff.metrics["chars"].value == pytest.approx((5 * 4 - 1) / 10)
    page = render(diff)
    assert "<del>0</del>" in page
    assert "<ins>never</ins>" in page
    by_group_only = [replace(run, scores={**run.scores, "metrics": {}}) for run in (diff.before, diff.after)]
    assert compare(*by_group_only).as_json()["better"] == ["a/1"]  # as the harness' runs are
    without = [replace(run, records=[{**record, "scores": {}} for record in run.records]) for run in by_group_only]
    with pytest.raises(ValueError, match="no scores of single samples"):
        compare(*without)
    other = Task("other", "", _plan, _score, TASK.metrics)
    run_task(other, scripted(echo), tmp_path / "z", Inputs(), model="z")
    with pytest.raises(ValueError, match="ran other"):
        compare(read_run(tmp_path / "x"), read_run(tmp_path / "z"))


def test_word_diff_marks_only_what_changed() -> None:
    assert word_diff("a < b c", "a < d c e") == "a &lt; <del>b</del> <ins>d</ins> c <ins>e</ins>"
