"""`python -m tests.simulation --seeds 0..1000 --faults 5`; see docs/simulation.md."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.driver import Case, Statistics, explore, shrink


def main() -> int:
    """Run what the command line says; 1 when something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="", metavar="A..B", help="from A up to, and without, B")
    parser.add_argument("--faults", type=int, default=0, metavar="N", help="runs with faults for each seed")
    parser.add_argument("--systematic", action="store_true", help="every kind at every point")
    parser.add_argument("--seconds", type=float, help="stop then")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run so many with faults at once")
    parser.add_argument("--failures", type=int, default=1, metavar="N", help="stop after so many")
    parser.add_argument("--no-shrink", action="store_true", help="leave what fails as it was found")
    parser.add_argument("--seed", type=int, help="one case: its seed")
    parser.add_argument("--cuts", default="", metavar="N,…", help="one case: what was left out of its scenario")
    parser.add_argument("--strike", default="", metavar="POINT:KIND,…", help="one case: its faults")
    parser.add_argument("--story", action="store_true", help="one case: tell what happened, in order")
    given = parser.parse_args()
    if given.seed is not None:
        return _one(given)
    first, _, last = given.seeds.partition("..")
    statistics = Statistics()
    until = None if given.seconds is None else time.monotonic() + given.seconds
    explore(
        range(int(first or 0), int(last or 1_000_000)), -1 if given.systematic else given.faults, statistics,
        until=until, stop_at=given.failures, told=lambda line: print(line, flush=True), jobs=given.jobs,
    )  # fmt: skip
    print(statistics.told())
    for case, problems in statistics.failures[:1] if not given.no_shrink else []:
        small, found = shrink(case)
        print(f"\nfailed: {case.command}\n  {problems[0]}")
        print(f"shrunk: {small.command}\n  {small.scenario}")
        for problem in found:
            print(f"  {problem}")
    return 1 if statistics.failures else 0


def _one(given: argparse.Namespace) -> int:
    cuts = tuple(int(cut) for cut in given.cuts.split(",") if cut)
    pairs = (one.partition(":") for one in given.strike.split(",") if one)
    strikes = tuple((int(point), int(kind or 0)) for point, _, kind in pairs)
    case = Case(given.seed, cuts, strikes)
    report = case.run(told=given.story)
    print(case.scenario.told())
    if given.story:
        print("\n".join(report.story))
    for number, point, kind in report.struck:
        print(f"struck at point {number}: {point}: {kind}")
    for problem in report.problems:
        print(problem)
    print("ok" if not report.problems else f"{len(report.problems)} problems")
    return 1 if report.problems else 0


sys.exit(main())
