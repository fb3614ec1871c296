import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from plait.synth.decontaminate import Decontaminator
from plait.synth.pipeline import STEPS, Dropped, ordered_map, run_pipeline
from plait.synth.record import Record, from_chat, read_jsonl
from plait.synth.requester import Requester, RequestError, RequestLimits
from plait.text import GenerationRequest, SamplingParams


class Doubling:
    """Asks for 2 i; of n answers keeps those that are right."""

    name = "doubling"

    def __init__(self, samples: int = 2) -> None:
        self.samples = samples

    def settings(self) -> dict:
        return {"samples": self.samples}

    def prompts(self, n: int, seed: int) -> Iterator[Record]:
        for i in range(n):
            yield Record(f"d-{seed}-{i}", self.name, facts={"i": i}, source={"seed": seed})

    def respond(self, record: Record, ask) -> list[Record]:
        user = {"role": "user", "content": str(record.facts["i"])}
        texts = ask(GenerationRequest(messages=[user], sampling=SamplingParams(n=self.samples)))
        return [record.with_messages(user, {"role": "assistant", "content": text}) for text in texts]

    def check(self, record: Record, ask) -> Record:
        if record.answer != str(2 * record.facts["i"]):
            raise Dropped(f"wrong product: {record.answer}")
        return record.with_scores(reward=float(record.id.endswith("/1")))

    def edit(self, records: Iterable[Record]) -> Iterator[Record]:
        yield from records


def doubled(request: GenerationRequest, k: int) -> str:
    i = int(request.messages[0]["content"])
    return str(2 * i + (k == 0 and i % 3 == 0))


def run(model, out: Path, n: int = 9, samples: int = 2, **more):
    limits = RequestLimits(batch=4, retries=0, wait_s=0)
    with Requester(model, "scripted", limits=limits) as requester:
        return run_pipeline(Doubling(samples), out, n=n, requester=requester, **more)


def test_four_steps_count_what_they_take_give_and_drop(scripted, tmp_path: Path) -> None:
    outcome = run(scripted(doubled), tmp_path / "out")
    assert [(s.name, s.n_in, s.n_out, dict(s.dropped)) for s in outcome.stages] == [
        ("prompts", 9, 9, {}),
        ("responses", 9, 18, {}),
        ("filter", 18, 9, {"wrong product": 3, "ranked below another answer": 6}),
        ("post-edit", 9, 9, {}),
    ]
    lines = [from_chat(line) for line in read_jsonl(outcome.chat)]
    assert [line.messages[-1]["content"] for line in lines] == [str(2 * i) for i in range(9)]
    assert {line.scores["reward"] for line in lines} == {1.0}, "the higher reward is kept"
    assert lines[4].source == {"seed": 0}
    assert lines[4].generators == ("scripted",)
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["stages"][2]["examples"]["wrong product"] == "d-0-0/0 wrong product: 1"
    assert "wrong product" in (tmp_path / "out" / "funnel.html").read_text()


def test_a_run_that_broke_off_goes_on_and_gives_the_same(scripted, tmp_path: Path) -> None:
    whole = run(scripted(doubled), tmp_path / "whole")
    broken = scripted(doubled, failures=[OSError("down")])
    with pytest.raises(RequestError):
        run(broken, tmp_path / "out")
    left = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert left == ["1_prompts.json", "1_prompts.jsonl", "run.json"], "nothing half-written"
    resumed = run(scripted(doubled), tmp_path / "out", resume=True)
    assert resumed.chat.read_bytes() == whole.chat.read_bytes()
    assert resumed.stages == whole.stages


def test_finished_steps_are_not_done_again(scripted, tmp_path: Path) -> None:
    run(scripted(doubled), tmp_path / "out")
    for step in ("3_filter", "4_post-edit"):
        (tmp_path / "out" / "steps" / f"{step}.json").unlink()
    again = scripted(doubled)
    outcome = run(again, tmp_path / "out", resume=True)
    assert again.batches == []
    assert outcome.n_records == 9


def test_other_settings_or_a_foreign_folder_are_refused(scripted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(scripted(doubled), out)
    with pytest.raises(ValueError, match=r"other settings \(n, samples\)"):
        run(scripted(doubled), out, n=10, samples=3, resume=True)
    with pytest.raises(ValueError, match="holds a run already: resume"):
        run(scripted(doubled), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="isn't empty"):
        run(scripted(doubled), tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_a_run_that_fails_before_it_made_anything_gives_its_folder_back(tmp_path: Path) -> None:
    class Unreadable(Doubling):
        def prompts(self, n: int, seed: int) -> Iterator[Record]:
            yield from super().prompts(n, seed)
            raise ValueError("line 9 is not JSON")

    with pytest.raises(ValueError, match="line 9"):
        run_pipeline(Unreadable(), tmp_path / "out", n=2)
    with pytest.raises(ValueError, match="needs a model"):  # so the folder was taken, with other settings
        run_pipeline(Doubling(samples=3), tmp_path / "out", n=2)


def test_answers_no_one_can_train_on_never_pass(scripted, tmp_path: Path) -> None:
    planted = iter(["", "<|eom|>", "As an AI language model I can't", "0"])
    outcome = run(scripted(lambda request, k: next(planted)), tmp_path / "out", n=1, samples=4)
    assert outcome.stages[2].dropped == {
        "empty answer": 1,
        "format marker in the text": 1,
        "talks about being a model": 1,
    }
    assert outcome.n_records == 1


def test_decontamination_and_more_than_one_answer_per_prompt(scripted, tmp_path: Path) -> None:
    found = Decontaminator({"exam": ["8"]}, n=1, shortest=1)
    outcome = run(scripted(doubled), tmp_path / "out", keep=2, decontaminator=found)
    assert outcome.stages[2].dropped == {"wrong product": 3, "contaminated by exam": 4}, "as question and as answer"
    with pytest.raises(ValueError, match=r"other settings \(decontamination\)"):
        run(scripted(doubled), tmp_path / "out", keep=2, resume=True)
    assert outcome.n_records == 11


def test_a_refused_request_drops_its_record_only(scripted, tmp_path: Path) -> None:
    def refuse(request: GenerationRequest, k: int) -> str:
        if request.messages[0]["content"] == "5":
            raise ValueError("no fives")
        return doubled(request, k)

    outcome = run(scripted(refuse), tmp_path / "out")
    assert outcome.stages[1].dropped == {"refused by the model": 1}
    assert outcome.n_records == 8


def test_no_prompts_and_no_answers_kept_are_refused(scripted, tmp_path: Path) -> None:
    for wrong in ({"n": 0}, {"keep": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            run(scripted(doubled), tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_skill_that_needs_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a model"):
        run_pipeline(Doubling(), tmp_path / "out", n=1)


@pytest.mark.parametrize(("n_threads", "chunk", "window"), [(4, 1, 9), (2, 8, 40), (1, 3, 9)])
def test_ordered_map_keeps_order_and_a_bounded_window(n_threads: int, chunk: int, window: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = ordered_map(lambda i: i * i, items(), n_threads, chunk=chunk)
    assert next(results) == 0
    assert len(taken) <= window
    assert list(results) == [i * i for i in range(1, 100)]


def test_steps_are_named_in_order(tmp_path: Path, scripted) -> None:
    run(scripted(doubled), tmp_path / "out")
    names = sorted(path.stem for path in (tmp_path / "out" / "steps").glob("*.jsonl"))
    assert names == [f"{i}_{step}" for i, step in enumerate(STEPS, start=1)]
