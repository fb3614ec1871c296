"""The whole engine on real models in fp32: over 10,000 random schedules the greedy tokens are the plain model's own.

Engines run in lanes of one runner (lanes.py), 64 at once. In each, schedules follow one another, in half of the cases
with the cache that the one before left. The books are checked after every step.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from plait.config import ModelConfig
from plait.model import LanguageModel, Layout, init_weights
from plait.model.checkpoint import load_model
from plait.serve.engine import Engine
from plait.serve.pools import PoolSizes
from plait.serve.request import Request
from plait.serve.runner import Runner
from plait.serve.scheduler import Limits
from plait.text import SamplingParams
from tests.serve.lanes import Lane, Lanes

PAGE = 4
N_IDS = 11  # of prompts: few, so that runs of them come again and are guessed
LONGEST = 56  # tokens of a sequence
TINY = {
    "vocab_size": N_IDS, "d_model": 16, "d_ff": 24, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "attn_period": 3,
    "attn_offset": 1, "n_experts": 2, "d_state": 4, "init_std": 0.4, "max_context": 128, "dtype": "float32",
}  # fmt: skip
GOLDEN = Path(__file__).parents[1] / "golden"
NEAR = 1e-4  # two tokens whose logits differ by less are as good as each other


@dataclass
class Asked:
    """A request, and what came of each of its answers."""

    request: Request
    answers: list[list[int]] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)
    is_dropped: bool = False


class Guesser:
    """In the place of `Drafter`: guesses what was written behind the same text before, now and then something else."""

    written: ClassVar[dict[tuple[int, ...], int]] = {}  # text -> the token behind it

    def __init__(self, n_drafts: int) -> None:
        self.n_drafts = n_drafts

    def guess(self, tokens: list[int], n_most: int) -> list[int]:
        rng, text = random.Random(sum(tokens)), list(tokens)
        while len(text) - len(tokens) < min(n_most, self.n_drafts) and rng.random() < 0.9:
            text.append(rng.randrange(N_IDS) if rng.random() < 0.2 else self.written.get(tuple(text), 1))
        return text[len(tokens) :] if tuple(tokens) in self.written or rng.random() < 0.1 else []

    def hopes(self, tokens: list[int]) -> bool:
        return random.Random(len(tokens)).random() < 0.3

    def note(self, n_right: int) -> None:
        pass


class Plain:
    """What the model writes by itself: whole texts, without state, chunks or neighbours."""

    def __init__(self, model: LanguageModel, near: float = NEAR) -> None:
        self.model, self.near = model, near
        self.known: set[tuple[tuple[int, ...], int]] = set()  # text, tokens of it that were asked
        self._new: dict[tuple[tuple[int, ...], int], None] = {}
        self._n_new = 0  # tokens of these

    def look_at(self, asked: Asked) -> None:
        prompt = asked.request.prompt
        for answer in asked.answers:
            text = (*prompt, *answer), len(prompt)
            Guesser.written |= {text[0][:n]: text[0][n] for n in range(len(prompt), len(text[0]))}
            if answer and text not in self.known:
                self._n_new += len(text[0]) * (text not in self._new)
                self._new[text] = None
        if self._n_new > 8000:
            self.check()

    @torch.inference_mode()
    def check(self) -> None:
        """Each new token is the likeliest where it stands."""
        if not self._new:
            return
        lengths = [len(tokens) for tokens, _ in self._new]
        ids = torch.tensor([[token for tokens, _ in self._new for token in tokens]])
        logits = self.model(ids, Layout.packed([lengths], ids.shape[1])).logits[0]
        behind = logits.max(-1).values[:-1] - logits[:-1].gather(1, ids[0, 1:, None])[:, 0]
        end = 0
        for (tokens, n_prompt), n in zip(self._new, lengths, strict=True):
            missed = behind[end + n_prompt - 1 : end + n - 1]
            assert missed.max() <= self.near, f"behind {tokens[:n_prompt]}: {tokens[n_prompt:]} is no greedy answer"
            end += n
        self.known |= self._new.keys()
        self._new.clear()
        self._n_new = 0


def random_request(rng: random.Random, stems: list[list[int]], seen: list[list[int]]) -> Request:
    """A prompt that may begin like others, or be one seen before."""
    stem = rng.choice(stems)
    prompt = stem[: rng.randint(1, len(stem))] + [rng.randrange(N_IDS) for _ in range(rng.choice((0, 1, 6)))]
    prompt = rng.choice(seen) if seen and rng.random() < 0.3 else prompt
    max_tokens = rng.choice((1, 3, 6, 10))
    prompt = prompt[: LONGEST - max_tokens]
    params = SamplingParams(temperature=0, max_tokens=max_tokens, n=rng.choice((1, 1, 1, 2)))
    return Request(
        tuple(prompt), params, frozenset({0}) if rng.random() < 0.2 else frozenset(),
        turns=(rng.randint(1, len(prompt)),), priority=rng.choice((0, 0, -1)), salt=rng.choice(("", "", "", "other")),
        is_private=rng.random() < 0.05,
    )  # fmt: skip


def random_engine(rng: random.Random, lane: Lane, overlap: bool, guesses: bool) -> Engine:
    max_running, most = rng.choice((1, 2, 3)), lane.sizes
    sizes = PoolSizes(
        max_running + rng.choice((0, 1, 3, most.slots - 3)), rng.choice((14, 14, 18, most.pages)),
        rng.choice((0, most.host_slots)), rng.choice((0, most.host_pages)),
        *rng.choice(((0, 0), (0, 0), (most.disk_slots, most.disk_pages))),
    )  # fmt: skip
    n_drafts = rng.choice((0, 1, 3)) if guesses else 0
    return Engine(
        lane, sizes, page_size=PAGE, ladder=rng.choice((PAGE, 2 * PAGE, 100)), overlap=overlap,
        limits=Limits(rng.choice((3, 7, 16, 64)), max_running, n_drafts, aging=4),
    )  # fmt: skip


class Player:
    """Schedules of one lane, one after the other."""

    def __init__(self, lane: Lane, plain: Plain, seen: Counter[str], *, overlap: bool, guesses: bool) -> None:
        self.lane, self.plain, self.seen, self.overlap, self.guesses = lane, plain, seen, overlap, guesses
        self.asked: dict[int, Asked] = {}

    def play(self, seeds: Iterator[int]) -> Iterator[None]:
        """Those nobody else has taken."""
        for seed in seeds:
            rng = random.Random(seed)
            try:
                if not self.asked or rng.random() < 0.5:
                    self._begin(rng)
                yield from self._schedule(rng)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {error!r}") from error
        if self.asked:
            self._count()

    def _begin(self, rng: random.Random) -> None:
        if self.asked:
            self._count()
        self.asked = {}
        self.lane.begin_engine()
        self.engine = random_engine(rng, self.lane, self.overlap, self.guesses)
        self.stems = [[rng.randrange(N_IDS) for _ in range(rng.choice((5, 21, 40)))] for _ in range(2)]

    def _schedule(self, rng: random.Random) -> Iterator[None]:
        mine: list[int] = []
        for _ in range(rng.randint(2, 5)):
            request = random_request(rng, self.stems, [list(one.request.prompt) for one in self.asked.values()])
            mine.append(self.engine.add(request))
            self.asked[mine[-1]] = Asked(request, [[] for _ in range(request.params.n)])
            for _ in range(rng.choice((0, 0, 2, 5))):
                yield from self._step()
            if rng.random() < 0.05:
                dropped = rng.choice(mine)
                self.engine.abort(dropped)
                self.asked[dropped].is_dropped = True
        while not self.engine.is_idle:
            yield from self._step()
        for number in mine:
            asked = self.asked[number]
            assert len(asked.finished) == len(asked.answers) or asked.is_dropped
            self.plain.look_at(asked)
            self.seen["aborts"] += len(asked.finished) < len(asked.answers)
            if rng.random() < 0.3:
                self.stems.append([*asked.request.prompt, *asked.answers[0]])
        assert all(salt in ("", "other") for salt in self.engine.memory.tree.roots)  # private requests leave nothing
        self.seen["schedules"] += 1

    def _step(self) -> Iterator[None]:
        is_due = self.engine.launch()
        copies = self.lane.planned.before if self.lane.planned else ()
        self.seen["restored from the host"] += sum(copy.source.tier == "host" for copy in copies)
        self.seen["restored from disk"] += sum(copy.source.tier == "disk" for copy in copies)
        yield
        if is_due:
            for out in self.engine.collect():
                asked = self.asked[out.request]
                assert out.answer not in asked.finished
                answer, params, ends = asked.answers[out.answer], asked.request.params, asked.request.end_ids
                answer += out.token_ids
                is_over = answer[-1] in ends or len(answer) == params.max_tokens
                assert (out.finish_reason is not None) == is_over, (answer, out.finish_reason)
                if is_over:
                    asked.finished.add(out.answer)
        self.engine.check()

    def _count(self) -> None:
        stats = self.engine.stats()
        self.seen["steps"] += stats.steps_total
        self.seen["preemptions"] += stats.preemptions_total
        self.seen["hits"] += stats.prefix_usable_total
        self.seen["lost"] += stats.prefix_lost_total
        self.seen["right drafts"] += stats.drafts_accepted_total
        self.seen["wrong drafts"] += stats.drafts_total - stats.drafts_accepted_total


@pytest.fixture(autouse=True)
def guessers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.serve.scheduler.Drafter", Guesser)
    monkeypatch.setattr(Guesser, "written", {})


def play(
    model: LanguageModel, seeds: range, disk: Path, *, n_lanes: int, overlap: bool = False, guesses: bool = True,
    int8_near: float | None = None,
) -> None:  # fmt: skip
    """As many schedules as seeds, dealt out to the lanes. With int8_near states outside the device are int8, and a
    token may be so far from the likeliest.
    """
    sizes = PoolSizes(slots=9, pages=30, host_slots=4, host_pages=12, disk_slots=3, disk_pages=20)
    runner = Runner(
        model, n_slots=n_lanes * sizes.slots, n_pages=n_lanes * sizes.pages, page_size=PAGE, max_context=LONGEST,
        host_states=n_lanes * sizes.host_slots, host_pages=n_lanes * sizes.host_pages, disk=disk,
        int8_states=int8_near is not None,
    )  # fmt: skip
    lanes = [Lane(nth, n_lanes, sizes) for nth in range(n_lanes)]
    plain, seen, left = Plain(model, int8_near or NEAR), Counter[str](), iter(seeds)
    players = [Player(lane, plain, seen, overlap=overlap, guesses=guesses) for lane in lanes]
    Lanes(runner, lanes, overlap=overlap).run([player.play(left) for player in players])
    plain.check()
    runner.close()
    assert seen["schedules"] == len(seeds)
    assert len(plain.known) > len(seeds)
    wanted = {"restored from the host", "restored from disk", "preemptions", "hits", "lost", "aborts"}
    wanted |= {"right drafts", "wrong drafts"} if guesses else set()
    assert all(seen[name] > len(seeds) / 50 for name in wanted), seen


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return init_weights(LanguageModel(ModelConfig(**TINY)), seed=3).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("overlap", [False, True], ids=["drafts", "overlap"])
@pytest.mark.parametrize("block", range(3))
def test_random_schedules(tiny: LanguageModel, tmp_path: Path, block: int, overlap: bool) -> None:
    first = 3200 * block + 1600 * overlap
    play(tiny, range(first, first + 1600), tmp_path, n_lanes=64, overlap=overlap, guesses=not overlap)


def test_random_schedules_that_wait_where_somebody_guesses(tiny: LanguageModel, tmp_path: Path) -> None:
    play(tiny, range(10_200, 10_500), tmp_path, n_lanes=32, overlap=True)


@pytest.mark.parametrize("name", ["hf-jamba-tiny", "hf-jamba-dense-tiny"])
def test_random_schedules_on_the_models_of_the_golden_values(name: str, tmp_path: Path) -> None:
    model = load_model(GOLDEN / name, dtype=torch.float32).eval()
    first = 9600 + 150 * (name == "hf-jamba-tiny")
    play(model, range(first, first + 150), tmp_path, n_lanes=32)


def test_random_schedules_on_tapes(tiny: LanguageModel, tmp_path: Path) -> None:
    """With few rows a step that only decodes is a tape."""
    play(tiny, range(9900, 10_000), tmp_path, n_lanes=2)


def test_random_schedules_with_int8_states_outside_the_device(tmp_path: Path) -> None:
    """Not exact, but the tokens are the likeliest, or as good as that: scales 5 % too large would already fail."""
    model = load_model(GOLDEN / "hf-jamba-tiny", dtype=torch.float32).eval()
    play(model, range(10_000, 10_150), tmp_path, n_lanes=32, int8_near=0.1)
