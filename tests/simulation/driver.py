"""Runs scenarios: undisturbed, and with faults at points of that run; shrinks what fails, and counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.simulation.chance import Chance
from tests.simulation.drawing import scenario
from tests.simulation.forks import Choose, Forks
from tests.simulation.points import Points, Strike
from tests.simulation.report import Report
from tests.simulation.scenarios import Scenario
from tests.simulation.smaller import smaller
from tests.simulation.world import simulate

TRIES = 6
"""How many of a smaller scenario's points are tried for the fault that broke the larger one."""
USUAL = 650
"""Points of a usual run."""
EARLY, WEIGHT = 3, 4
"""The first so many points of a name are struck so many times as often: some names are met a hundred times a run."""
SECOND, WITHIN = 30, 400
"""In so many of 100 runs with faults there are two, the second within so many points of the first."""


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario, by its seed and what was left out of it (see `smaller`), and the faults that strike."""

    seed: int
    cuts: tuple[int, ...] = ()
    strikes: tuple[Strike, ...] = ()

    @property
    def scenario(self) -> Scenario:
        """What is done."""
        found = scenario(self.seed)
        for cut in self.cuts:
            found = _nth(smaller(found), cut)
        return found

    @property
    def command(self) -> str:
        """The command line that does it again."""
        parts = [f"python -m tests.simulation --seed {self.seed}"]
        if self.cuts:
            parts.append(f"--cuts {','.join(map(str, self.cuts))}")
        if self.strikes:
            parts.append(f"--strike {','.join(f'{point}:{kind}' for point, kind in self.strikes)}")
        return " ".join(parts)

    def run(self, *, told: bool = False) -> Report:
        """Do it; `told`: its story is wanted."""
        return simulate(self.scenario, Points(dict(self.strikes)), told=told)

    def part(self, choose: Choose, done: Callable[[Case, Report], bool], jobs: int = 1) -> None:
        """Do it without faults, and all runs that `choose` (forks.Choose) wants beside it, up to `jobs` at once; `done`
        is told of each, and says whether that was enough."""
        whole = self.scenario
        parted = Forks(choose, lambda strikes, report: done(replace(self, strikes=strikes), report), jobs)
        parted.run(lambda points: simulate(whole, points))


def _nth(found: Iterator[Scenario], number: int) -> Scenario:
    for index, item in enumerate(found):
        if index == number:
            return item
    raise ValueError(f"there is no cut {number}")


@dataclass(slots=True)
class Statistics:
    """What was run."""

    runs: int = 0
    seeds: int = 0
    points: int = 0
    failures: list[tuple[Case, tuple[str, ...]]] = field(default_factory=list)
    traces: set[str] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def count(self, report: Report) -> None:
        """Add one run."""
        self.runs += 1
        self.points += report.points
        self.traces.add(report.trace)
        self.events.update(report.events)
        for _, point, kind in report.struck:
            self.kinds[kind] += 1
            self.places[point] += 1
        self.crashes.update(report.crashes)

    def told(self) -> str:
        """For people."""
        rate = self.runs / self.seconds if self.seconds else 0.0
        lines = [
            (f"seeds {self.seeds}, runs {self.runs}, distinct interleavings {len(self.traces)},"
            f" {rate:.1f} runs a second, points {self.points}, events {self.events.total()},"
            f" failures {len(self.failures)}"),
            "faults by kind: " + _listed(self.kinds),
            "faults by point: " + _listed(self.places),
            "crashes by the event before: " + _listed(self.crashes),
        ]
        return "\n".join(lines)


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"


# ---------------------------------------------------------------- faults


def every_kind(number: int, _point: str, kinds: tuple[str, ...]) -> Iterable[tuple[Strike, ...]]:
    """Faults of every kind at every point, one a run."""
    return [((number, kind),) for kind in range(len(kinds))]


class Drawn:
    """Some faults, some twice a run: about `faults` runs for each USUAL points. The points of a name that is met often
    are struck as often as others, but for the first ones."""

    def __init__(self, seed: int, faults: int) -> None:
        self._draw = Chance(seed * 7919 + 17)
        self._share = faults / USUAL / 2
        self._met: Counter[str] = Counter()

    def __call__(self, number: int, point: str, kinds: tuple[str, ...]) -> Iterable[tuple[Strike, ...]]:
        """See forks.Choose."""
        self._met[point] += 1
        weight = WEIGHT if self._met[point] <= EARLY else 1
        if self._draw.below(1_000_000) >= self._share * weight * 1_000_000:
            return []
        first = number, self._draw.below(len(kinds))
        if not self._draw.maybe(SECOND):
            return [(first,)]
        return [(first, (number + 1 + self._draw.below(WITHIN), self._draw.below(8)))]


def explore(
    seeds: Sequence[int], faults: int, statistics: Statistics, *, until: float | None = None, stop_at: int = 1,
    told: Callable[[str], None] = lambda _: None, jobs: int = 1,
) -> None:  # fmt: skip
    """Run every seed without faults, and about `faults` times with one or two (-1: every kind at every point); of a
    seed that fails only the first failure is kept. Ends after `stop_at` failures, or at `until` (monotonic seconds)."""
    started = time.monotonic()

    def over() -> bool:
        return (until is not None and time.monotonic() >= until) or len(statistics.failures) >= stop_at

    def done(case: Case, report: Report) -> bool:
        statistics.count(report)
        if report.problems:
            told(f"{case.command}\n    {report.problems[0]}")
            statistics.failures.append((case, report.problems))
        return bool(report.problems) or over()

    for seed in seeds:
        if over():
            break
        statistics.seeds += 1
        Case(seed).part(every_kind if faults < 0 else Drawn(seed, faults), done, jobs)
    statistics.seconds += time.monotonic() - started


# ---------------------------------------------------------------- shrinking


def shrink(case: Case, *, seconds: float = 60.0) -> tuple[Case, tuple[str, ...]]:
    """A smaller case that fails as well, and how: first with fewer faults, then of a smaller scenario."""
    deadline = time.monotonic() + seconds
    problems = case.run().problems
    for strike in case.strikes:
        fewer = replace(case, strikes=tuple(one for one in case.strikes if one != strike))
        if found := fewer.run().problems:
            case, problems = fewer, found
    while time.monotonic() < deadline:
        for candidate in _smaller(case):
            if time.monotonic() > deadline:
                return case, problems
            if found := candidate.run().problems:
                case, problems = candidate, found
                break
        else:
            break
    return case, problems


def _smaller(case: Case) -> Iterator[Case]:
    wanted = [(point, kind) for _, point, kind in case.run().struck]
    for cut in range(sum(1 for _ in smaller(case.scenario))):
        cutting = replace(case, cuts=(*case.cuts, cut), strikes=())
        if not case.strikes:
            yield cutting
            continue
        if len(wanted) != 1:
            yield replace(cutting, strikes=case.strikes)
            continue
        (name, kind) = wanted[0]
        offered = cutting.run().offered
        points = [number for number, (point, _) in enumerate(offered, 1) if point == name]
        near = sorted(points, key=lambda number: abs(number - case.strikes[0][0]))
        for point in near[:TRIES]:
            kinds = offered[point - 1][1]
            if kind in kinds:
                yield replace(cutting, strikes=((point, kinds.index(kind)),))
