"""Many engines over one runner: each has a lane, a share of the pools of its own, and plans for itself; what they plan
is run as one step. A call of a tiny model costs the same for two rows and for a hundred, so thousands of schedules on a
real model become cheap, and each one's rows lie beside all the others'.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from plait.serve.plan import Copy, Place, Row, StepPlan, StepResult
from plait.serve.pools import KINDS, TIERS, PoolSizes
from plait.serve.runner import Runner


class Lane:
    """The executor of one engine at a time: numbers of its plans become those of the runner's own pools."""

    def __init__(self, nth: int, n_lanes: int, sizes: PoolSizes) -> None:
        self.sizes = sizes  # an engine's may be smaller
        self._nth, self._n_lanes = nth, n_lanes
        self._first = {(kind, tier): nth * sizes.of(kind, tier) for kind in KINDS for tier in TIERS}
        self._pages: dict[int, tuple[Sequence[int], list[int]]] = {}  # by identity, which runners may go by
        self._begun: set[int] = set()
        self._left: list[int] = []
        self._base = self._next = 0
        self.planned: StepPlan | None = None
        self.results: deque[StepResult] = deque()

    def begin_engine(self) -> None:
        """From here on plans are another engine's, which counts its sequences and plans from the beginning."""
        assert not self.planned
        assert not self.results
        self._base = self._next
        self._left += self._begun
        self._begun.clear()
        self._pages.clear()

    def launch(self, plan: StepPlan) -> None:
        assert self.planned is None
        started = [start._replace(sequence=self._sequence(start.sequence)) for start in plan.started]
        released = [*self._left, *map(self._sequence, plan.released)]
        self._begun |= {start.sequence for start in started}
        self._begun -= set(released)
        self._left = []
        self.planned = StepPlan(
            plan.number, [self._row(row) for row in plan.rows], [self._copy(copy) for copy in plan.before],
            [self._copy(copy) for copy in plan.after], started, released,
        )  # fmt: skip

    def collect(self) -> StepResult:
        return self.results.popleft()

    def reset(self) -> None:
        raise AssertionError("an engine dropped what it had")

    def _sequence(self, number: int) -> int:
        self._next = max(self._next, self._base + number + 1)
        return (self._base + number) * self._n_lanes + self._nth

    def _row(self, row: Row) -> Row:
        slot = self._first["state", "device"]
        export = None if row.export is None else (row.export[0], slot + row.export[1])
        return row._replace(
            sequence=self._sequence(row.sequence), slot=slot + row.slot, pages=self._own(row.pages), export=export
        )

    def _own(self, pages: Sequence[int]) -> list[int]:
        """The same list for the same list, grown as that has grown."""
        _, mine = self._pages.setdefault(id(pages), (pages, []))
        mine += [self._first["page", "device"] + page for page in pages[len(mine) :]]
        return mine

    def _copy(self, copy: Copy) -> Copy:
        places = (Place(tier, self._first[copy.kind, tier] + number) for tier, number in (copy.source, copy.target))
        return Copy(copy.kind, *places)


class Lanes:
    """A runner and its lanes. `overlap`: a step is collected after the next one was launched, if nobody guesses."""

    def __init__(self, runner: Runner, lanes: Sequence[Lane], *, overlap: bool) -> None:
        self.runner, self.lanes, self.overlap = runner, lanes, overlap
        self._under_way: deque[list[tuple[Lane, StepPlan]]] = deque()
        self.n_steps = self.n_rows = 0

    def run(self, players: Sequence[Iterator[None]]) -> None:
        """One player a lane; each yields where its engine has launched what it wants to, and goes on when results that
        are due lie ready.
        """
        playing = list(players)
        while playing:
            playing = [player for player in playing if next(player, self) is not self]
            self._exchange()

    def _exchange(self) -> None:
        plans = [(lane, lane.planned) for lane in self.lanes if lane.planned is not None]
        if plans:
            rows = [row for _, plan in plans for row in plan.rows]
            self.n_steps += 1
            self.n_rows += len(rows)
            self.runner.launch(StepPlan(
                self.n_steps,
                sorted(rows, key=lambda row: row.mode != "decode"),
                [copy for _, plan in plans for copy in plan.before],
                [copy for _, plan in plans for copy in plan.after],
                [start for _, plan in plans for start in plan.started],
                [sequence for _, plan in plans for sequence in plan.released],
            ))  # fmt: skip
            for lane in self.lanes:
                lane.planned = None
            self._under_way.append(plans)
        n_ahead = self.overlap and bool(plans) and not any(row.n_drafts for _, plan in plans for row in plan.rows)
        while len(self._under_way) > n_ahead:
            brought = {row.sequence: row for row in self.runner.collect().rows}
            for lane, plan in self._under_way.popleft():
                lane.results.append(StepResult(plan.number, [brought[row.sequence] for row in plan.rows]))
