"""Runs that begin alike, each beginning done once: the undisturbed run goes on, and where another one differs from it
the process of the operating system forks. The child strikes, goes on to its own end, and hands back its report.

What a run is does not depend on that: its trace and its story are those of the same run by itself.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import resource
import select
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.simulation.points import Points, Strike
from tests.simulation.report import Report

PATIENCE, MOST_CPU = 1800.0, 120
"""Seconds until a child is given up, and of a processor that it may take; the longest honest one takes a few of these,
but its machine may be busy."""
Choose = Callable[[int, str, tuple[str, ...]], Iterable[tuple[Strike, ...]]]
"""Given a point's number, its name and the kinds it offers: the faults of each run that is to part there. The first of
them strikes at that point."""
Done = Callable[[tuple[Strike, ...], Report], bool]
"""Told of each run, by its faults, in the order in which they parted, the undisturbed one last. Was that enough?"""


@dataclass(frozen=True, slots=True)
class _Child:
    """A run of its own: `answers` is read to its end."""

    strikes: tuple[Strike, ...]
    pid: int
    answers: int


class Forks:
    """All runs of one scenario that `choose` wants, up to `jobs` of them at once."""

    def __init__(self, choose: Choose, done: Done, jobs: int = 1) -> None:
        self._choose = choose
        self._done = done
        self._jobs = jobs
        self._children: deque[_Child] = deque()
        self._enough = False
        self._answer = -1
        """Where a child writes its report; -1 in the parent."""

    def run(self, simulate: Callable[[Points], Report]) -> None:
        """Do the undisturbed run, and all that part from it."""
        points = Points({}, self._part)
        try:
            report = simulate(points)
        except BaseException:
            if self._answer < 0:
                self._abandon()
                raise
            report = Report.of_failure(traceback.format_exc())
        if self._answer >= 0:
            self._deliver(report)
        while self._children:
            self._hear()
        if not self._enough:
            self._done((), report)

    def _part(self, number: int, point: str, kinds: tuple[str, ...]) -> tuple[Strike, ...]:
        """What strikes from here on: nothing in the parent, as always."""
        if self._answer >= 0 or self._enough:
            return ()
        for strikes in self._choose(number, point, kinds):
            if self._fork(strikes):
                return strikes
            while len(self._children) >= self._jobs:
                if self._hear():
                    return ()
        return ()

    def _fork(self, strikes: tuple[Strike, ...]) -> bool:
        """Is this the child?"""
        answers, answer = os.pipe()
        loop = asyncio._get_running_loop()  # it is the loop of the process, by its number
        pid = os.fork()
        if pid:
            os.close(answer)
            self._children.append(_Child(strikes, pid, answers))
            return False
        os.close(answers)
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        self._answer = answer
        self._children.clear()
        asyncio._set_running_loop(loop)
        return True

    def _deliver(self, report: Report) -> None:
        """Hand back `report`; the child has done its work, and has nothing to clean up."""
        try:
            with os.fdopen(self._answer, "wb") as file:
                pickle.dump(report, file, pickle.HIGHEST_PROTOCOL)
        finally:
            os._exit(0)

    def _hear(self) -> bool:
        """Wait for the child that parted first. Was that enough?"""
        child = self._children.popleft()
        data = bytearray()
        try:
            while select.select([child.answers], [], [], PATIENCE)[0]:
                part = os.read(child.answers, 1 << 20)
                if not part:
                    break
                data += part
            else:
                data.clear()
                os.kill(child.pid, signal.SIGKILL)
        finally:
            os.close(child.answers)
            os.waitpid(child.pid, 0)
        # a pickle that this program made itself
        report = pickle.loads(data) if data else Report.of_failure("the simulating process hangs, or died")
        if not self._enough:
            self._enough = self._done(child.strikes, report)
        return self._enough

    def _abandon(self) -> None:
        for child in self._children:
            os.kill(child.pid, signal.SIGKILL)
            os.close(child.answers)
            os.waitpid(child.pid, 0)
