"""Steerability: document drafts under constraints that a program checks (paper section 5.3).

Prompts come in groups that share one instruction. Several answers to each are sampled, those that break an instruction
are rejected, a reward ranks the rest; what is left of a group becomes one conversation with the shared instruction
moved to the system message, or stays as single turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from plait.synth.conversation import without_artifacts
from plait.synth.instructions import KINDS, Instruction, draw_instruction, draw_instructions
from plait.synth.pipeline import Ask, Dropped
from plait.synth.record import Record, random_for, request_seed
from plait.synth.reward import Reward, judged
from plait.text import GenerationRequest, SamplingParams

_DOCUMENTS = (
    "a letter", "an email", "a short report", "a press release", "a memo", "a blog post", "a speech",
    "a product description", "a proposal", "an announcement", "a newsletter item", "a cover note",
    "a set of guidelines",
)  # fmt: skip
_TOPICS = (
    "the opening of a neighbourhood library", "a delayed delivery of office chairs",
    "a training course on first aid", "the move to a four-day week", "a bicycle repair workshop",
    "the results of a customer survey", "a summer school for young musicians",
    "new rules for the shared kitchen", "a charity run along the river", "the renovation of a school gym",
    "a lost parcel", "an upgrade of the booking system", "a guided tour of a botanical garden",
    "saving water at home", "the retirement of a long-serving colleague", "a partnership between two farms",
    "a change of opening hours", "the history of a small harbour", "a cooking competition",
    "safe passwords for a family",
)  # fmt: skip
_READERS = ("", "", " for new colleagues", " for residents", " for a general audience", " for the managing director")


class Steerability:
    """`samples` answers per prompt; `reward` scores those that keep all instructions, and must reach `min_reward`."""

    name = "steerability"

    def __init__(
        self,
        *,
        samples: int = 4,
        max_instructions: int = 3,
        group: int = 3,
        multi_turn: float = 0.5,
        kinds: Sequence[str] = (),
        reward: Reward | None = judged,
        min_reward: float = 0.5,
    ) -> None:
        """`group` prompts share an instruction; a share `multi_turn` of the groups become conversations. `kinds` of
        instructions, none given: all."""
        if unknown := sorted(set(kinds) - set(KINDS)):
            raise ValueError(f"kinds {', '.join(unknown)} must be among {', '.join(KINDS)}")
        if samples < 1 or max_instructions < 1 or group < 1 or not 0 <= multi_turn <= 1:
            raise ValueError(
                f"samples={samples}, max_instructions={max_instructions} and group={group} must be at least 1,"
                f" multi_turn={multi_turn} from 0 to 1"
            )
        self.samples = samples
        self.max_instructions = max_instructions
        self.group = group
        self.multi_turn = multi_turn
        self.kinds = tuple(kinds)
        self.reward = reward
        self.min_reward = min_reward

    def settings(self) -> dict[str, Any]:
        reward = None if self.reward is None else getattr(self.reward, "__name__", repr(self.reward))
        keys = ("samples", "max_instructions", "group", "multi_turn", "kinds", "min_reward")
        return {**{key: getattr(self, key) for key in keys}, "reward": reward}

    def prompts(self, n: int, seed: int) -> Iterator[Record]:
        for i in range(n):
            group = i // self.group
            shared_random = random_for("steerability", seed, "group", group)
            shared = draw_instruction(shared_random, kinds=self.kinds)
            random = random_for("steerability", seed, i)
            own = draw_instructions(random, random.randint(0, self.max_instructions - 1), [shared], self.kinds)
            task = f"Write {random.choice(_DOCUMENTS)} about {random.choice(_TOPICS)}{random.choice(_READERS)}."
            facts = {
                "task": task,
                "shared": shared.as_dict(),
                "own": [item.as_dict() for item in own],
                "group": group,
                "becomes_conversation": shared_random.random() < self.multi_turn,
            }
            yield Record(f"steerability-{seed}-{i}", self.name, facts=facts, source={"seed": seed, "group": group})

    def respond(self, record: Record, ask: Ask) -> Sequence[Record]:
        prompt = {"role": "user", "content": _prompt(record, with_shared=True)}
        seed = request_seed(record.id)
        sampling = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=1024, n=self.samples, seed=seed)
        answers = dict.fromkeys(text.strip() for text in ask(GenerationRequest(messages=[prompt], sampling=sampling)))
        return [record.with_messages(prompt, {"role": "assistant", "content": answer}) for answer in answers]

    def check(self, record: Record, ask: Ask) -> Record:
        for item in instructions_of(record):
            if not item.holds(record.answer):
                raise Dropped(f"instruction not kept ({item.kind.replace(':', ' ')}): {item.text}")
        if self.reward is None:
            return record.with_scores(instructions=1.0)
        reward = self.reward(record, ask)
        if reward < self.min_reward:
            raise Dropped(f"reward below {self.min_reward}: {reward}")
        return record.with_scores(instructions=1.0, reward=reward)

    def edit(self, records: Iterable[Record]) -> Iterator[Record]:
        """Artifacts are cut where no instruction breaks by it; groups become conversations."""
        tidied = (_without_artifacts(record) for record in records)
        for _, group in groupby(tidied, key=lambda record: record.facts["group"]):
            members = list(group)
            if len(members) > 1 and members[0].facts["becomes_conversation"]:
                yield conversation(members)
            else:
                yield from members


def instructions_of(record: Record) -> list[Instruction]:
    return [Instruction(**values) for values in (record.facts["shared"], *record.facts["own"])]


def _prompt(record: Record, *, with_shared: bool) -> str:
    """The task and its constraints: in one line if it has one, else as a list."""
    own = [item["text"] for item in record.facts["own"]]
    texts = [record.facts["shared"]["text"], *own] if with_shared else own
    if len(texts) < 2:
        return " ".join([record.facts["task"], *texts])
    return "\n".join([record.facts["task"], "", *(f"- {text}" for text in texts)])


def _without_artifacts(record: Record) -> Record:
    cleaned = without_artifacts(record.answer)
    if cleaned == record.answer or not all(item.holds(cleaned) for item in instructions_of(record)):
        return record
    return record.with_messages(*record.messages[:-1], {"role": "assistant", "content": cleaned})


def conversation(members: Sequence[Record]) -> Record:
    """Records of one group as turns of one conversation; their shared instruction, word for word, is the system's."""
    shared = members[0].facts["shared"]
    assert all(member.facts["shared"] == shared for member in members), "a group shares one instruction"
    turns: list[dict[str, Any]] = [{"role": "system", "content": shared["text"]}]
    for member in members:
        turns += [{"role": "user", "content": _prompt(member, with_shared=False)}, member.messages[-1]]
    scores = {key: min(member.scores[key] for member in members) for key in members[0].scores}
    facts = {"shared": shared, "turns": [{"task": m.facts["task"], "own": m.facts["own"]} for m in members]}
    sources = {**members[0].source, "joined": [member.id for member in members]}
    return replace(members[0], messages=tuple(turns), facts=facts, scores=scores, source=sources)
