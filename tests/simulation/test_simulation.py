"""Whole builds, simulated: a sample of seeds, and as many as there is time for with REFLEDGER_LONG=SECONDS.

What fails prints one command that does it again; docs/simulation.md says how to go on from there.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from tests.simulation.drawing import scenario
from tests.simulation.driver import Case, Statistics, explore, shrink
from tests.simulation.mutations import MUTATIONS
from tests.simulation.planting import Mutation, search
from tests.simulation.report import Report
from tests.simulation.smaller import smaller

FOUND = (
    (51, "", ""),
    (111, "", ""),
    (2009, "", ""),
    (8, "commit log.db", "ENOSPC"),
    (101, "unlink tmp", "EIO"),
    (402, "write format", "torn"),
    (2001, "rename tmp", "ENOSPC"),
    (30052, "fsync", "EIO"),
    (40118, "fsync blobs", "EIO"),
    (4, "read blobs", "EIO"),
    (8, "read index.json", "EIO"),
    (4, "list run", "EIO"),
    (4, "list locks", "EIO"),
)
"""What found a bug of the engine once (docs/simulation.md): a seed, and a fault at points of a name."""
SEARCHED = 20
"""Seeds that a planted bug is looked for in, unless there is time."""


def check(statistics: Statistics) -> None:
    """Fail with the first failure, made small."""
    for case, problems in statistics.failures:
        small, found = shrink(case)
        pytest.fail(f"{case.command}\n{problems[0]}\nshrunk: {small.command}\n{small.scenario.told()}\n{found[0]}")


@pytest.mark.parametrize("first", range(0, 12, 3))
def test_builds_keep_their_promises_whatever_happens(first: int) -> None:
    statistics = Statistics()
    explore(range(first, first + 3), 3, statistics)
    check(statistics)
    assert statistics.kinds, "no fault struck"


def test_as_many_seeds_as_there_is_time_for() -> None:
    seconds = float(os.environ.get("REFLEDGER_LONG") or 0)
    if not seconds:
        pytest.skip("REFLEDGER_LONG=SECONDS runs more seeds")
    statistics = Statistics()
    explore(range(100_000, 10_000_000), 5, statistics, until=time.monotonic() + seconds)
    print(statistics.told())
    check(statistics)


@pytest.mark.parametrize(("seed", "point", "kind"), FOUND)
def test_what_was_found_once_stays_mended(seed: int, point: str, kind: str) -> None:
    plain = Case(seed)
    report = plain.run()
    assert report.problems == ()
    points = [number for number, (name, _) in enumerate(report.offered, 1) if name == point]
    for number in points[:: max(1, len(points) // 3)]:
        struck = replace(plain, strikes=((number, report.offered[number - 1][1].index(kind)),))
        assert struck.run().problems == (), struck.command


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_is_found(mutation: Mutation) -> None:
    if len(mutation.seeds) > SEARCHED and not os.environ.get("REFLEDGER_LONG"):
        pytest.skip("it takes many seeds to find")
    assert search(mutation, 400) is not None


def test_a_run_can_be_repeated_to_the_letter() -> None:
    case = Case(4, strikes=((200, 0),))
    first, second = case.run(told=True), case.run(told=True)
    assert first.trace == second.trace
    assert first.story == second.story


def test_a_run_that_parts_from_the_undisturbed_one_is_the_same_as_by_itself() -> None:
    parted: dict[Case, Report] = {}

    def done(case: Case, report: Report) -> bool:
        parted[case] = report
        return False

    Case(4).part(lambda number, _, kinds: [((number, 1), (number + 40, 2))] if number in {69, 300} else [], done)
    assert {case.strikes for case in parted} == {((69, 1), (109, 2)), ((300, 1), (340, 2)), ()}
    for case, report in parted.items():
        assert case.run() == report


def test_seeds_differ_in_what_is_done_and_in_which_order() -> None:
    assert len({Case(seed).run().trace for seed in range(20, 26)}) == 6


def test_every_cut_is_smaller_and_can_be_run() -> None:
    whole = scenario(5)
    cuts = list(smaller(whole))
    assert whole not in cuts
    assert Case(5, (0,)).run().problems == ()
    assert Case(5, (len(cuts) - 1,)).run().problems == ()
