"""The past: views as of any event, quick through snapshots that anybody may delete, and the event of a time of day."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from projections.runner import Projection, Views
from storage.errors import DiskError, LogError
from storage.interfaces.log import Event, EventLog

KEPT = 6
"""Snapshots at most: a log twice as long has them twice as far apart."""
STEP = 50_000
"""Events between two snapshots at least: folding that many anew is not worth one."""


class Moments:
    """Snapshots of `projections` in `directory`, a file each, named after the position that it holds."""

    def __init__(self, directory: Path, projections: Sequence[Projection]) -> None:
        self._directory = directory
        self._projections = tuple(projections)

    def views(self, log: EventLog, seq: int) -> Views:
        """The views as they were after event `seq`, in memory; writes nothing (I13). Raises LogError."""
        return Views.read_only(self._path(self._before(seq)), log, self._projections, until=seq)

    def extend(self, log: EventLog) -> int:
        """Write the snapshots that `log` has come to want, drop those it does not want any more, and return how many
        were written; 0 while another process is at it. Raises LogError, DiskError."""
        head = log.last_seq()
        wanted = wanted_positions(head)
        if not wanted or self._path(wanted[-1]).exists():
            return 0
        try:
            self._directory.mkdir(exist_ok=True, mode=0o700)
            with self._alone() as alone:
                return self._write(log, wanted) if alone else 0
        except OSError as error:
            raise DiskError.of(error, "keeping snapshots of the views") from error

    def discard(self) -> None:
        """Forget every snapshot. Raises DiskError."""
        try:
            for path in self._directory.glob("*.db*"):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError.of(error, "removing snapshots of the views") from error

    def _write(self, log: EventLog, wanted: Sequence[int]) -> int:
        for path in self._directory.glob("*.db*"):
            if path.name not in {self._path(position).name for position in wanted}:
                path.unlink(missing_ok=True)
        missing = [position for position in wanted if not self._path(position).exists()]
        with self.views(log, missing[0] - 1) as views:
            for position in missing:
                views.catch_up(log, until=position)
                part = self._path(position).with_suffix(".db.part")
                views.save(part)
                with part.open("rb") as file:
                    os.fsync(file.fileno())  # what is found under its name is believed
                part.rename(self._path(position))
        return len(missing)

    def _before(self, seq: int) -> int:
        """The latest snapshot that is not later than `seq`; 0 for none."""
        try:
            names = [path.stem for path in self._directory.iterdir() if path.suffix == ".db"]
        except OSError:
            return 0
        return max((int(name) for name in names if name.isdecimal() and int(name) <= seq), default=0)

    def _path(self, position: int) -> Path:
        return self._directory / f"{position}.db"

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the directory, unless somebody else does; what a killed holder left is overwritten."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)


def wanted_positions(head: int) -> list[int]:
    """Where a log of `head` events wants snapshots: multiples of a step that doubles as the log grows."""
    step = STEP
    while head // step > KEPT:
        step *= 2
    return list(range(step, head + 1, step))


def seq_at(log: EventLog, time: int) -> int:
    """The last event that is not later than `time` (UTC ns); 0 when all are. Raises LogError."""
    low, high = 0, log.last_seq()
    while low < high:  # times never go back along the log
        middle = (low + high + 1) // 2
        if event_at(log, middle).time <= time:
            low = middle
        else:
            high = middle - 1
    return low


def event_at(log: EventLog, seq: int) -> Event:
    """Event `seq`, which is in the log. Raises LogError, also where that ends before it: it is damaged."""
    event = next(iter(log.read(after=seq - 1, until=seq)), None)
    if event is None:
        raise LogError(f"event {seq} cannot be read", hint="refledger audit verify says where the log is damaged")
    return event
