"""Planting a bug in the core, by a few characters of its source, and looking for a run that finds it."""

from __future__ import annotations
import __future__

import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from unittest.mock import patch

from tests.simulation.driver import Case
from tests.simulation.points import Strike
from tests.simulation.report import Report

STRIKES = 100
"""At how many of the points of a name faults strike."""


@dataclass(frozen=True, slots=True)
class Change:
    """In the function `where` (module:qualified.name), `new` stands for `old`."""

    where: str
    old: str
    new: str

    @contextmanager
    def made(self) -> Iterator[None]:
        """While it is made."""
        module_name, _, path = self.where.partition(":")
        module = importlib.import_module(module_name)
        *above, name = path.split(".")
        owner = reduce(getattr, above, module)
        function = inspect.unwrap(inspect.getattr_static(owner, name))
        source = textwrap.dedent(inspect.getsource(function))
        assert self.old in source, f"{self.where} does not have {self.old!r} any more"
        changed = compile(
            source.replace(self.old, self.new), inspect.getfile(function), "exec", __future__.annotations.compiler_flag
        )
        names: dict[str, object] = {}
        exec(changed, module.__dict__, names)
        holders = [owner]
        if not above:  # other modules have it by its name
            holders += [one for one in list(sys.modules.values()) if getattr(one, "__dict__", {}).get(name) is function]
        with ExitStack() as stack:
            for holder in dict.fromkeys(holders):
                stack.enter_context(patch.object(holder, name, names[name]))
            yield


@dataclass(frozen=True, slots=True)
class Mutation:
    """A bug: what it is, how it is made, and where it shows: in the scenarios of `seeds`, undisturbed, or with a fault
    of `kind` at the points called `point`."""

    name: str
    changes: tuple[Change, ...]
    seeds: tuple[int, ...] = tuple(range(10))
    point: str = ""
    kind: str = ""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """While it is there."""
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change.made())
            yield


def search(mutation: Mutation, runs: int) -> tuple[Case, str] | None:
    """A case that catches `mutation`, and what it says; None when there is none among the first `runs`."""
    found: list[tuple[Case, str]] = []
    done = 0

    def judge(case: Case, report: Report) -> bool:
        nonlocal done
        done += 1
        if report.problems:
            found.append((case, report.problems[0]))
        return bool(found) or done >= runs

    with mutation.planted():
        for seed in mutation.seeds:
            plain = Case(seed)
            report = plain.run()
            if judge(plain, report) or (mutation.point and _struck(plain, report, mutation, judge)):
                break
    return found[0] if found else None


def _struck(plain: Case, report: Report, mutation: Mutation, judge: Callable[[Case, Report], bool]) -> bool:
    """Run `plain` with faults at the points of a name, of which its `report` tells. Was that enough?"""
    points = [
        number for number, (name, kinds) in enumerate(report.offered, 1)
        if name == mutation.point and mutation.kind in kinds
    ]  # fmt: skip
    wanted = frozenset(points[:: max(1, len(points) // STRIKES)])

    def choose(number: int, _point: str, kinds: tuple[str, ...]) -> Iterable[tuple[Strike, ...]]:
        return [((number, kinds.index(mutation.kind)),)] if number in wanted else []

    enough = False

    def done(case: Case, report: Report) -> bool:
        nonlocal enough
        enough = bool(case.strikes) and judge(case, report)
        return enough

    plain.part(choose, done)
    return enough
