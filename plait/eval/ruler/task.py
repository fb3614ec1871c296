"""The 13 tasks at all asked lengths, as one evaluation task: plan, score, and Table 4's numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from typing import Any

from plait.eval.prompt import count_prompt_tokens
from plait.eval.ruler.documents import draw_documents
from plait.eval.ruler.fitting import fit
from plait.eval.ruler.needles import NEEDLE_KINDS, draw_needles
from plait.eval.ruler.novels import novels
from plait.eval.ruler.scoring import (
    N_DEPTHS,
    any_found,
    as_length,
    effective_length,
    share_found,
    weighted_averages,
)
from plait.eval.ruler.sources import Library, Prose, Words, read_hotpot, read_prose, read_squad, read_words
from plait.eval.ruler.variables import draw_variables, solved_example
from plait.eval.ruler.words import coded_words, draw_common_words, draw_frequent_words
from plait.eval.task import Answer, Draft, Inputs, Metric, Option, Plan, Record, Sample, Task

TASK_NAMES = (*NEEDLE_KINDS, "vt", "cwe", "fwe", "qa_1", "qa_2")
SAMPLES_PER_TASK = 500
EXAMPLE_TOKENS = 500  # the solved example of variable tracking
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072, 262144)

Sized = Callable[[int, random.Random], Sample]


@dataclass(frozen=True, eq=False)
class Making:
    """What all samples of a run are made from."""

    inputs: Inputs

    @cached_property
    def prose(self) -> Prose:
        return read_prose(self.inputs)

    @cached_property
    def words(self) -> Words:
        return read_words(self.inputs, self.prose)

    @cached_property
    def squad(self) -> Library:
        return self._library("squad", ("squad/dev-v2.0.json", "dev-v2.0.json"), ("xquad/xquad.en.json",), read_squad, 1)

    @cached_property
    def hotpot(self) -> Library:
        names = ("hotpotqa/hotpot_dev_distractor_v1.json", "hotpot_dev_distractor_v1.json")
        return self._library("hotpot", names, (), read_hotpot, 2)

    def _library(
        self, option: str, official: Sequence[str], others: Sequence[str], read: Callable[..., Library], n_hops: int
    ) -> Library:
        """The option's file, the official one, a known substitute, or our questions on the novels; in this order."""
        given = self.inputs.options[option]
        data = self.inputs.data
        paths = [Path(given)] if given else [data / name for name in (*official, *others)] if data else []
        path = next((path for path in paths if path.exists()), None)
        if path is None and given:
            raise ValueError(f"{option}={given}: no such file")
        if path is None:
            return novels(read_prose(replace(self.inputs, data=None)), n_hops=n_hops)
        return read(path, suffix="" if any(path.match(name) for name in official) else path.parent.name)

    @cached_property
    def example_size(self) -> int:
        """Noise sentences with which the solved example of variable tracking takes at most 500 tokens."""
        tokenizer = self.inputs.need_tokenizer()
        names = ["ABC", "DEF", "GHI", "JKL", "MNO"]
        size = 10
        while len(tokenizer.encode(solved_example(names, 12345, size + 5, random.Random(0)))) <= EXAMPLE_TOKENS:
            size += 5
        return size

    def name(self, task: str) -> str:
        """The task's name in results: with a suffix where something stands in for the official source."""
        uses_essay = task in NEEDLE_KINDS and NEEDLE_KINDS[task].haystack == "essay"
        suffix = self.prose.suffix if uses_essay else ""
        if task in ("qa_1", "qa_2"):
            suffix = (self.squad if task == "qa_1" else self.hotpot).suffix
        return f"{task}_{suffix}" if suffix else task

    def n_samples(self, task: str) -> int:
        most = SAMPLES_PER_TASK if self.inputs.limit is None else self.inputs.limit
        if task in ("qa_1", "qa_2"):
            most = min(most, len((self.squad if task == "qa_1" else self.hotpot).questions))
        return most

    def draw(self, task: str, length: int, index: int) -> tuple[Sized, int]:
        """How to draw sample `index` of a task by size, and its smallest size."""
        if task in NEEDLE_KINDS:
            kind = NEEDLE_KINDS[task]
            return lambda size, rng: draw_needles(kind, size, rng, self.prose, self.words), 1
        if task == "vt":
            return lambda size, rng: draw_variables(size, rng, self.example_size), 1
        if task == "cwe":
            return lambda size, rng: draw_common_words(size, rng, self.words, length), 10
        if task == "fwe":
            return self._draw_frequent(length, index), 30
        library, costs = (self.squad, self.squad_costs) if task == "qa_1" else (self.hotpot, self.hotpot_costs)
        return lambda size, rng: draw_documents(size, rng, library, index, costs), 1

    def _draw_frequent(self, length: int, index: int) -> Sized:
        """One vocabulary for 30 draws: a new one each time would make lengths jump, one for all may have no size that
        fits (counts are whole numbers, and several may grow at once).
        """
        calls = count()

        @cache
        def coded(n: int) -> list[str]:
            return coded_words(length, random.Random(f"{self.inputs.seed}:coded:{length}:{index}:{n}"))

        return lambda size, rng: draw_frequent_words(size, rng, coded(next(calls) // 30))

    @cached_property
    def squad_costs(self) -> list[int]:
        return self._costs(self.squad)

    @cached_property
    def hotpot_costs(self) -> list[int]:
        return self._costs(self.hotpot)

    def _costs(self, library: Library) -> list[int]:
        """Tokens of each document with its heading."""
        tokenizer = self.inputs.need_tokenizer()
        return [len(tokenizer.encode(f"Document 100:\n{text}\n\n")) for text in library.documents]

    @cache  # noqa: B019 - lives as long as the run
    def start_size(self, task: str, length: int) -> int:
        """About the size that fits, found once; samples must not depend on what ran before them."""
        draw, least = self.draw(task, length, 0)
        rng = random.Random(f"{self.inputs.seed}:{task}:{length}")
        return fit(draw, self.count, length, rng, start=max(least, length // 100), least=least)[1]

    def count(self, sample: Sample) -> int:
        return count_prompt_tokens(sample, self.inputs)

    def sample(self, task: str, length: int, index: int) -> Sample:
        draw, least = self.draw(task, length, index)
        rng = random.Random(f"{self.inputs.seed}:{task}:{length}:{index}")
        made, _ = fit(draw, self.count, length, rng, start=self.start_size(task, length), least=least)
        facts = {"task": task, "length": length, "tokens": self.count(made) + made.max_tokens} | dict(made.facts)
        return replace(made, id=self.id_of(task, length, index), group=self.group(task, length), facts=facts)

    def group(self, task: str, length: int) -> str:
        return f"{self.name(task)}/{as_length(length)}"

    def id_of(self, task: str, length: int, index: int) -> str:
        return f"{self.group(task, length)}/{index}"


def plan(inputs: Inputs) -> Plan:
    inputs.need_tokenizer()
    tasks = _chosen(inputs.options["tasks"])
    making = Making(inputs)
    drafts = [
        Draft(making.id_of(task, length, n), making.group(task, length), _maker(making, task, length, n))
        for length in inputs.numbers("lengths")
        for task in tasks
        for n in range(making.n_samples(task))
    ]
    sources = {"prose": making.prose.version, "words": making.words.version}
    sources |= {
        name: getattr(making, lib).version for name, lib in (("qa_1", "squad"), ("qa_2", "hotpot")) if name in tasks
    }
    return Plan(drafts, sources)


def _maker(making: Making, task: str, length: int, index: int) -> Callable[[], Sample]:
    return lambda: making.sample(task, length, index)


def _chosen(given: str) -> list[str]:
    names = given.split(",") if given else list(TASK_NAMES)
    unknown = [name for name in names if name not in TASK_NAMES]
    if unknown:
        raise ValueError(f"RULER has no task {unknown[0]!r}; it has {', '.join(TASK_NAMES)}")
    return names


def score(sample: Sample, answer: Answer) -> dict[str, float]:
    found = any_found if sample.facts["task"].startswith("qa") else share_found
    return {"score": found(answer.text, sample.references)}


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """By length: the unweighted mean of task scores (0..100); RULER's averages and effective length; depths."""
    cells: dict[tuple[int, str], list[float]] = {}
    for record in records:
        task = record["group"].split("/")[0]
        cells.setdefault((record["facts"]["length"], task), []).append(record["scores"]["score"])
    means = {key: round(100 * sum(scores) / len(scores), 2) for key, scores in cells.items()}
    lengths = sorted({length for length, _ in means})
    by_length = {length: _mean([score for (at, _), score in means.items() if at == length]) for length in lengths}
    growing, shrinking = weighted_averages(by_length)
    effective = effective_length(by_length)
    tasks = list(dict.fromkeys(task for _, task in means))
    return {
        "by_length": {str(length): round(score, 2) for length, score in by_length.items()},
        "by_task": {task: {str(at): means[at, task] for at in lengths if (at, task) in means} for task in tasks},
        "average": round(_mean(list(by_length.values())), 2),
        "average_growing": round(growing, 2),
        "average_shrinking": round(shrinking, 2),
        "effective_length": effective,
        "passes_longest": effective == lengths[-1],
        "depths": _depths(records),
    }


def _depths(records: Sequence[Record]) -> list[dict[str, float]]:
    """Needle tasks by depth and length. A sample with several needles counts at each of their depths, by its share."""
    cells: dict[tuple[int, int], list[float]] = {}
    for record in records:
        for depth in record["facts"].get("depths", ()):
            key = record["facts"]["length"], min(int(depth * N_DEPTHS / 100), N_DEPTHS - 1)
            cells.setdefault(key, []).append(record["scores"]["score"])
    width = 100 / N_DEPTHS
    return [
        {"length": length, "depth": place * width, "score": round(100 * _mean(scores), 2), "n": len(scores)}
        for (length, place), scores in sorted(cells.items())
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


RULER = Task(
    name="ruler",
    about="13 synthetic long-context tasks by length (Table 4): needles, variable tracking, word counts, questions",
    plan=plan,
    score=score,
    metrics=(Metric("score"),),
    options={
        "lengths": Option("4096", "tokens of prompt and answer, commas between; the paper goes to 262144"),
        "tasks": Option("", f"a choice of {', '.join(TASK_NAMES)}; all if empty"),
        "haystack": Option("", "folder of .txt files, or one, to hide needles in"),
        "words": Option("", "wonderwords (RULER's own lists) or a file with a word on each line"),
        "squad": Option("", "file in SQuAD's layout, for qa_1"),
        "hotpot": Option("", "file in HotpotQA's distractor layout, for qa_2"),
    },
    prompt_format="chat",
    mean_over="groups",
    summarize=summarize,
)
