"""Runs scenarios: without faults to count the points, then with faults at them; shrinks what fails, and counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.simulation.chance import Chance
from tests.simulation.scenarios import Scenario, scenario, smaller
from tests.simulation.world import Report, simulate

Strike = tuple[int, int]
"""A fault: the number of a point, and which kind of those that it offers."""
TRIES = 6
"""How many of a smaller scenario's points are tried for the fault that broke the larger one."""


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

    def run(self) -> Report:
        """Do it."""
        return simulate(self.scenario, dict(self.strikes))


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
        self.points += len(report.offered)
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


def explore(
    seeds: Sequence[int], faults: int, statistics: Statistics, *, until: float | None = None, stop_at: int = 1,
    told: Callable[[str], None] = lambda _: None,
) -> None:  # fmt: skip
    """Run every seed without faults, and `faults` times (-1: at every point, with every kind) with one or two. Ends
    after `stop_at` failures, or at `until` (monotonic seconds)."""
    started = time.monotonic()
    for seed in seeds:
        if until is not None and time.monotonic() >= until:
            break
        statistics.seeds += 1
        for case in cases(seed, faults, statistics):
            report = case.run()
            statistics.count(report)
            if report.problems:
                told(f"{case.command}\n    {report.problems[0]}")
                statistics.failures.append((case, report.problems))
                break
            if until is not None and time.monotonic() >= until:
                break
        if len(statistics.failures) >= stop_at:
            break
    statistics.seconds += time.monotonic() - started


def cases(seed: int, faults: int, statistics: Statistics) -> Iterator[Case]:
    """The case of `seed` without faults, and those with them."""
    plain = Case(seed)
    report = plain.run()
    statistics.count(report)
    if report.problems:
        yield plain  # to be seen by the caller, once more
        return
    if faults < 0:
        for point, (_, kinds) in enumerate(report.offered, 1):
            for kind in range(len(kinds)):
                yield replace(plain, strikes=((point, kind),))
        return
    draw = Chance(seed * 7919 + 17)
    for _ in range(faults if report.offered else 0):
        count = 2 if draw.maybe(30) else 1
        yield replace(plain, strikes=tuple(sorted(_strike(draw, report) for _ in range(count))))


def _strike(draw: Chance, report: Report) -> Strike:
    """A point: any, or of a name that is as likely as any other (some are met a hundred times as often)."""
    by_name: dict[str, list[int]] = {}
    for number, (name, _) in enumerate(report.offered, 1):
        by_name.setdefault(name, []).append(number)
    point = draw.below(len(report.offered)) + 1 if draw.maybe(60) else draw.pick(by_name[draw.pick(sorted(by_name))])
    return point, draw.below(len(report.offered[point - 1][1]))


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
    wanted = _names(case.run())
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


def _names(report: Report) -> list[tuple[str, str]]:
    return [(point, kind) for _, point, kind in report.struck]


def reproduce(case: Case) -> Mapping[str, object]:
    """What a failing case looks like: for whoever mends it."""
    report = case.run()
    return {"scenario": case.scenario, "struck": report.struck, "problems": report.problems, "story": report.story}
