import re
from collections.abc import Callable

import pytest

from plait.synth.steerability import Steerability, instructions_of
from plait.text import GenerationRequest

EASY = ("signs:no_comma", "ending:phrase", "opening:word", "language:ascii", "case:shouted_at_most", "list:bullets")


def keeping(prompt: str) -> str:
    """A text that keeps every instruction of EASY found in the prompt."""
    import re

    word = re.search(r"first word must be (\w+)", prompt)
    bullets = re.search(r"exactly (\d) bullet", prompt)
    end = re.search(r"(?:sentence|words must be): (.*)$", prompt, re.MULTILINE)
    parts = [f"{word.group(1) if word else 'Dear'} reader: here is what we plan for the coming month."]
    parts += [f"- point {i}" for i in range(int(bullets.group(1)))] if bullets else []
    return "\n".join([*parts, end.group(1) if end else "Yours."])


def model(*answers: Callable[[str], str], rating: Callable[[str], str] = lambda prompt: "8"):
    def answer(request: GenerationRequest, k: int) -> str:
        prompt = request.messages[-1]["content"]
        return rating(prompt) if prompt.startswith("Rate the answer") else answers[k % len(answers)](prompt)

    return answer


def test_answers_that_break_an_instruction_never_pass(run) -> None:
    no_way, too_much = (
        (lambda prompt: "NO WAY, José"),
        (lambda prompt: keeping(prompt) + " ÉTÉ, OR SO I THINK, HE SAID"),
    )
    broken = model(no_way, lambda prompt: "", too_much, keeping)
    records, outcome = run(Steerability(kinds=EASY, multi_turn=0), broken, n=20)
    assert outcome.n_records == 20
    for record in records:
        assert all(item.holds(record.answer) for item in instructions_of(record))
    assert outcome.stages[1].n_out == 80
    reasons = dict(outcome.stages[2].dropped)
    assert reasons.pop("empty answer") == 20
    assert reasons.pop("ranked below another answer", 0) + sum(reasons.values()) == 40
    assert sum(reasons.values()) > 20
    assert all(re.fullmatch(r"instruction not kept \(\w+ \w+\)", reason) for reason in reasons)


def test_the_reward_chooses_among_those_and_has_a_floor(run) -> None:
    first, second = keeping, lambda prompt: keeping(prompt).replace("reader", "best reader")
    rating = {"best reader": "9", "reader": "6"}
    judge = lambda prompt: next(score for words, score in rating.items() if words in prompt.rpartition("# Answer")[2])  # noqa: E731
    records, outcome = run(Steerability(kinds=EASY, samples=2, multi_turn=0), model(first, second, rating=judge), n=6)
    assert ["best reader" in record.answer for record in records] == [True] * 6
    assert {record.scores["reward"] for record in records} == {0.9}
    assert outcome.stages[2].dropped == {"ranked below another answer": 6}
    _, outcome = run(Steerability(kinds=EASY, samples=1), model(keeping, rating=lambda prompt: "2"), n=6)
    assert outcome.stages[2].dropped == {"reward below 0.5": 6}
    _, outcome = run(Steerability(kinds=EASY, samples=1), model(keeping, rating=lambda prompt: "lovely"), n=6)
    assert outcome.stages[2].dropped == {"judge gave no number": 6}


def test_groups_become_conversations_with_the_shared_instruction_as_system_message(run) -> None:
    records, outcome = run(Steerability(kinds=EASY, group=3, multi_turn=1), model(keeping), n=9)
    assert outcome.n_records == 3
    for record in records:
        system, *turns = record.messages
        shared = record.facts["shared"]["text"]
        assert system == {"role": "system", "content": shared}
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3
        assert not any(shared in turn["content"] for turn in turns[::2])
        assert len(record.source["joined"]) == 3
        for turn, facts in zip(turns[::2], record.facts["turns"], strict=True):
            assert facts["task"] in turn["content"]
            assert all(item["text"] in turn["content"] for item in facts["own"])


def test_artifacts_are_cut_unless_an_instruction_lives_on_them(run) -> None:
    chatty = model(lambda prompt: "Sure! Here is the letter you asked for:\n\nDear all.\nYours.")
    records, _ = run(Steerability(kinds=["language:ascii"], multi_turn=0, max_instructions=1), chatty, n=2)
    assert [record.answer for record in records] == ["Dear all.\nYours."] * 2
    quoted = model(lambda prompt: '"Dear all."')
    records, _ = run(Steerability(kinds=["structure:quoted"], multi_turn=0, max_instructions=1), quoted, n=2)
    assert [record.answer for record in records] == ['"Dear all."'] * 2


def test_prompts_of_a_group_share_one_instruction_and_differ() -> None:
    records = list(Steerability(group=4).prompts(40, seed=2))
    for start in range(0, 40, 4):
        group = records[start : start + 4]
        assert len({str(record.facts["shared"]) for record in group}) == 1
        assert len({record.facts["task"] for record in group}) > 1
    assert len({str(record.facts["shared"]) for record in records}) >= 8


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="kinds x:y"):
        Steerability(kinds=["x:y"])
    with pytest.raises(ValueError, match="samples=0"):
        Steerability(samples=0)
