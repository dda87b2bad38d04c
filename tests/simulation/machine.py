"""Machines of a simulated world: a root each, and the processes that share it; and what must be true of a root."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from engine.errors import Cancelled, RefledgerError
from projections.runner import Views
from projections.standard import STANDARD
from storage.digest import sha256
from storage.interfaces.log import Event
from tests.simulation import oracle
from tests.simulation.chance import Process
from tests.simulation.disk import Disk, DiskProcess
from tests.simulation.processes import READER, disk_of
from tests.simulation.scenarios import Act

SECRET = "hunter2-of-the-simulation"  # the one that builds are lent, to be looked for everywhere


class KeptViews(Views):
    """The views that all processes of a root share: none of them closes the file for the others."""

    def close(self) -> None:
        """The file stays."""


class Machine:
    """One root, and what is folded of its log: a file that all its processes share. `fetching`: who fetches a blob just
    now, or did when he died; `rotten`: what somebody changed or removed, which who does not use it need not notice."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.views = KeptViews(None, STANDARD)
        self.fetching: defaultdict[str, list[Doing]] = defaultdict(list)
        self.rotten: set[str] = set()
        self._events: list[Event] = []
        self._asked: defaultdict[str, set[str]] = defaultdict(set)
        self._exported: defaultdict[str, set[str]] = defaultdict(set)

    @property
    def events(self) -> list[Event]:
        """All that is in the log."""
        for event in events_after(self.disk, len(self._events)):
            self._events.append(event)
            kept = {"MaterializationRequested": self._asked, "ExportStarted": self._exported}.get(event.type)
            if kept is not None:
                kept[event.build or ""].update(event.data["layers"])
        return self._events

    @property
    def asked(self) -> Mapping[str, set[str]]:
        """Blobs that a build asked for, by build."""
        return self._asked if self.events is not None else {}

    @property
    def exported(self) -> Mapping[str, set[str]]:
        """Blobs that a build said it would export, by build."""
        return self._exported if self.events is not None else {}


@dataclass(slots=True)
class Doing:
    """An act that is under way: as what build, on which machine, and which exits it may have; `harm`: how many faults
    had struck before that may be a reason to fail; `problems`: what it does wrong is added; `owner`: its process."""

    act: Act
    build: str
    machine: Machine
    allowed: set[int]
    harm: int
    problems: list[str]
    cached: bool = False
    """Is it given a cache that has the results of all steps?"""
    owner: Process | None = None
    work: asyncio.Task[object] | None = None
    """What a signal would interrupt."""

    def interrupt(self) -> None:
        """SIGINT: soon; it may come too late."""
        if self.work is not None and not self.work.done():
            self.allowed.add(Cancelled.exit_code)
            self.work.get_loop().call_soon(self.work.cancel)

    @property
    def disk(self) -> str:
        """Where it finds the disk of its machine, as any other process of it does."""
        return disk_of(self.machine.disk.number)

    @property
    def process(self) -> DiskProcess:
        """What the process sees of the disk."""
        found = self.machine.disk.process(self.build, self.owner)
        found.calls.problems = self.problems
        return found


current: ContextVar[Doing] = ContextVar("doing")
"""The act on whose behalf code runs."""


def events_after(disk: Disk, seq: int) -> list[Event]:
    """What is durable in the log of `disk` behind event `seq`."""
    if len(disk.log.rows) == seq:
        return []
    return list(reader_of(disk).log.read(after=seq))


def reader_of(disk: Disk) -> DiskProcess:
    """A process that is nobody's and only looks."""
    return disk.process(READER, Process(READER))


def view_problems(machine: Machine, reader: DiskProcess) -> list[str]:
    """I1: folded anew, the views are the same."""
    if not machine.disk.log.rows:
        return []
    machine.views.catch_up(reader.log)
    with Views(None, STANDARD) as fresh:
        fresh.catch_up(reader.log)
        return [] if fresh.dump() == machine.views.dump() else ["I1 views that are folded anew differ"]


def disk_problems(machine: Machine, reader: DiskProcess) -> Iterator[str]:
    """I3, I9: what is stored is what its name says, and no secret is in it."""
    here = reader.stored()
    blobs = reader.path / "blobs"
    stored = {str(digest): (blobs / digest.algorithm / digest.hex).read_bytes() for digest in here.blobs}
    for digest, data in stored.items():
        if sha256(data) != digest and digest not in machine.rotten:
            yield f"I3 blob {digest} has other bytes"
    for diff_id in (one for one in here.layers if one not in machine.rotten):
        try:
            with reader.tars.open(diff_id) as tar:
                found = sha256(oracle.whole(tar))
        except RefledgerError as error:
            yield f"I3 layer {diff_id} cannot be read: {error}"
        else:
            if found != diff_id:
                yield f"I3 layer {diff_id} has other bytes"
    log = {f"event {event.seq}": str(event.data).encode() for event in machine.events}
    yield from oracle.secret_problems([SECRET], {**log, **stored})
