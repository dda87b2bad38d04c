"""The event log of one root: an append-only SQLite file, written by many threads and several processes.

One thread of each process writes, and puts what accumulates while one commit runs into the next one: threads cannot
share an fsync otherwise. Reading goes through connections of its own. Processes meet at SQLite's write lock.
Fork before opening: neither SQLite's connections nor the writer thread survive a fork.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from storage.errors import DiskError, LogDamaged, LogError
from storage.interfaces.log import Event, EventLog, NewEvent, Payload
from storage.log import codec
from storage.log.detached import BadPayload
from storage.log.logfile import KEEP, LogReader, check_writable
from storage.log.payloads import Payloads

if TYPE_CHECKING:
    from concurrent.futures import Future

    from storage.log.recorder import LogWriter

PAGE = 2_000  # events a query reads at a time
PIECE = 250  # of them whose values that are stored apart are in memory at a time: each may have 1 MiB
GROUP = 5_000  # events after which a transaction takes no further submission
POLL = 0.03  # seconds between looks for what other processes appended (SQLite cannot notify)

_SELECT = "SELECT rowid, originator_id, originator_version, topic, state FROM events WHERE rowid > ? AND rowid <= ?"
Row = TypeVar("Row", bound=tuple[Any, ...])
_Submission = tuple[int, list[codec.Encoded], "Future[list[Event]]"]


def follow(
    log: EventLog, after: int, stop: Callable[[], bool], *, types: frozenset[str] | None = None
) -> Iterator[Event]:
    """Events later than `after`, for ever: those that are there, then those that any process appends, as they come.
    Ends within half a second of `stop()` being true, or raises LogError when the log is closed."""
    while not stop():
        if log.wait(after, 0.25):
            head = log.last_seq()
            yield from log.read(after=after, until=head, types=types)
            after = head


class SqliteEventLog:
    """EventLog in an SQLite file (WAL, synchronous FULL), made with its directory when it is not there."""

    def __init__(self, path: Path, *, clock: Callable[[], int] = time.time_ns, read_only: bool = False) -> None:
        """`clock` gives UTC nanoseconds. `read_only`: nothing is written, in the file or beside it (I13).
        Raises LogTooNew, LogError, DiskError."""
        self._path = path
        self._clock = clock
        self._read_only = read_only
        self._pid = os.getpid()
        self._queue: deque[_Submission] = deque()
        self._changed = threading.Condition()  # guards the queue, _closing and _thread; told of every submission
        self._closing = False
        self._thread: threading.Thread | None = None
        self._writer: LogWriter | None = None  # the writer thread's own
        self._committed = threading.Condition()  # guards _head; told of every commit of this process
        self._head = 0
        self._damage: LogDamaged | None = None
        self._quiet = False
        self._reader = LogReader(path, read_only=read_only)
        self._payloads = Payloads(partial(self._reader.query, largest=2 * codec.MAX_EVENT))
        try:
            self._prepare()
        except BaseException:
            self._reader.close()
            raise

    def _prepare(self) -> None:
        if self._read_only:
            if not self._path.exists() or self._nothing_in_it():
                raise LogError("there is no event log", where=str(self._path), hint="nothing was built here yet")
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError.of(error, "creating the event log") from error
        check_writable(self._path)
        if not self._path.exists() or self._reader.is_empty_file():
            from storage.log.recorder import create  # reason: slow to import, and needed once in the life of a root

            create(self._path)

    def _nothing_in_it(self) -> bool:
        try:
            return self._reader.is_empty_file()
        except LogDamaged as error:
            self._reader.tolerate()
            if not self._reader.is_empty_file():
                self._find_damage(error)
            return False

    # ---------------------------------------------------------------- writing

    def submit(self, events: Sequence[NewEvent]) -> Future[list[Event]]:
        """See EventLog. An event's time is that of its submission, never less than that of the event before it.
        Raises ValueError for a payload that does not belong in a log (see codec.encode), LogError when closed.
        The future cannot be cancelled; it raises LogError or DiskError."""
        encoded = [codec.encode(event) for event in events]
        if self._read_only:
            raise LogError("the event log is open for reading only", where=str(self._path))
        if os.getpid() != self._pid:
            raise RuntimeError("the event log was opened before this process was forked: open it afterwards")
        from concurrent.futures import Future  # reason: slow to import, and reading needs none

        future: Future[list[Event]] = Future()
        future.set_running_or_notify_cancel()  # what is submitted will be written: a cancelled waiter changes nothing
        if not encoded:
            future.set_result([])
            return future
        with self._changed:
            if self._closing:
                raise LogError("the event log is closed", where=str(self._path))
            if self._thread is None:
                # A daemon, so that a process that failed to close the log can still end.
                self._thread = threading.Thread(target=self._write, name="eventlog", daemon=True)
                self._thread.start()
            self._queue.append((self._clock(), encoded, future))
            self._changed.notify_all()
        return future

    def append(self, *events: NewEvent) -> list[Event]:
        """See EventLog."""
        return self.submit(events).result()

    def redact(self, *said: tuple[NewEvent, Sequence[Payload]]) -> list[Event]:
        """See StoredPayloads. What was submitted before may land later."""
        if self._read_only:
            raise LogError("the event log is open for reading only", where=str(self._path))
        from storage.log.recorder import LogWriter  # reason: slow to import

        encoded = [(codec.encode(event), payloads) for event, payloads in said]
        return LogWriter(self._path).redact(self._clock(), encoded) if encoded else []

    def _write(self) -> None:
        """The writer thread: one transaction after the other, until the log is closed and the queue empty."""
        while group := self._next_group():
            self._commit(group)
        if self._writer is not None:
            self._writer.close()

    def _next_group(self) -> list[_Submission]:
        group: list[_Submission] = []
        count = 0
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            while self._queue and count < GROUP:
                count += len(self._queue[0][1])
                group.append(self._queue.popleft())
        return group

    def _commit(self, group: list[_Submission]) -> None:
        try:
            if self._writer is None:
                from storage.log.recorder import LogWriter  # reason: slow to import; only the first append waits for it

                self._writer = LogWriter(self._path)
            results = self._writer.commit([(submitted, events) for submitted, events, _ in group])
        except BaseException as error:  # noqa: BLE001  reason: whatever it is, it belongs to those who wait for it
            with self._changed:  # what was submitted behind it must not be durable without it
                group += self._queue
                self._queue.clear()
            for *_, future in group:
                future.set_exception(error)
            return
        with self._committed:
            self._head = results[-1][-1].seq
            self._committed.notify_all()
        for (*_, future), result in zip(group, results, strict=True):
            future.set_result(result)

    # ---------------------------------------------------------------- reading

    def read(self, *, after: int = 0, until: int | None = None, types: frozenset[str] | None = None) -> Iterator[Event]:
        """See EventLog. Ends at `until`, or at what was the last event when reading began. Raises LogError; LogDamaged,
        also for a gap, behind the last event before the damage."""
        end = self.last_seq() if until is None else min(until, self.last_seq())
        names = sorted(types) if types is not None else []
        chosen = f" AND topic IN ({','.join('?' * len(names))})" if types is not None else ""
        while after < end and self._damage is None:
            # no row more than there is to read is looked at: behind the last sound one lies the damage
            limit = PAGE if types is not None else min(PAGE, end - max(after, 0))
            try:
                rows = self._reader.query(f"{_SELECT}{chosen} ORDER BY rowid LIMIT {limit}", (after, end, *names))
            except LogDamaged as error:
                self._find_damage(error)
                break
            whole = rows if types is not None else _in_order(rows, max(after, 0))
            try:
                yield from self._decode(whole)
                if types is None and len(whole) < max(len(rows), 1):
                    sound = max(after, 0) + len(whole)
                    what = f"events are missing after event {sound}"
                    raise LogDamaged(what, sound=sound, where=str(self._path), hint=KEEP)
            except LogDamaged as error:
                if not self._quiet:
                    raise
                self._damage = error
                return
            after = rows[-1][0] if len(rows) == PAGE or types is None else end
        if self._damage is not None:
            yield from self._read_sound(after, until, types)

    def rows(self, after: int, until: int, page: int = PAGE) -> Iterator[codec.Row]:
        """See StoredRows; `page`: rows a query. Raises LogError, also for a damaged file; gaps and states that are none
        are the caller's."""
        while after < until:
            rows = self._reader.query(f"{_SELECT} ORDER BY rowid LIMIT {page}", (after, until))
            if not rows:
                return
            if not after < rows[-1][0] <= until:  # a page that is no page any more: asking on would never end
                raise LogError(f"events are out of order after event {after}", where=str(self._path), hint=KEEP)
            yield from rows
            after = rows[-1][0]

    def payloads(self, after: int, until: int) -> Iterator[Payload]:
        """See StoredPayloads. Raises LogError, also for a damaged file."""
        while after < until:
            rows = list(islice(self.rows(after, until, PIECE), PIECE))
            if not rows:
                return
            try:
                yield from self._payloads.of(rows)
            except codec.UNREADABLE as error:
                what = f"an event between {after} and {rows[-1][0] + 1} is damaged"
                raise LogError(what, where=str(self._path), hint=KEEP) from error
            after = rows[-1][0]

    def _read_sound(self, after: int, until: int | None, types: frozenset[str] | None) -> Iterator[Event]:
        """What lies before the damage."""
        assert self._damage is not None
        end = self._damage.sound if until is None else min(until, self._damage.sound)
        after = max(after, 0)
        while after < end:
            rows = self._reader.query(f"{_SELECT} ORDER BY rowid LIMIT {min(PAGE, end - after)}", (after, end))
            whole = _in_order(rows, after)
            yield from self._decode([row for row in whole if types is None or row[3] in types])
            after += len(whole)
            if not whole:
                self._damage = self._lost_after(after)
                break
        if not self._quiet and (until is None or until > self._damage.sound):
            raise self._damage

    def _decode(self, rows: list[codec.Row]) -> Iterator[Event]:
        for start in range(0, len(rows), PIECE):
            some = rows[start : start + PIECE]
            try:
                events = self._joined(some)
            except codec.UNREADABLE:
                for row in some:
                    try:
                        yield from self._joined([row])
                    except codec.UNREADABLE as error:
                        what = f"event {row[0]} is damaged" + (f": {error}" if isinstance(error, BadPayload) else "")
                        raise LogDamaged(what, sound=row[0] - 1, where=str(self._path), hint=KEEP) from error
            else:
                yield from events

    def _joined(self, rows: list[codec.Row]) -> list[Event]:
        """The events of stored rows with all their data. Raises one of codec.UNREADABLE."""
        detached: list[tuple[Event, dict[str, str]]] = []
        events = [codec.decode(row, detached) for row in rows]
        if detached:
            self._payloads.join(detached)
        return events

    @property
    def damage(self) -> LogDamaged | None:
        """What was found to be damaged so far, in a log that is open for reading only."""
        return self._damage

    def end_before_damage(self) -> None:
        """From now on reading ends before what is damaged, and does not raise it: the caller asks for `damage`."""
        self._quiet = True

    def _find_damage(self, error: LogDamaged) -> None:
        """Find out up to where the file can be read. Raises `error` in a log that is open for writing too."""
        if not self._read_only:
            raise error
        sound, step = 0, 4096
        while step:
            # the last byte of every state, so that pages that large ones lie on are read too
            columns = "rowid, originator_id, topic, substr(state, -1)"
            sql = f"SELECT {columns} FROM events WHERE rowid > ? ORDER BY rowid LIMIT {step}"  # noqa: S608
            try:
                rows = self._reader.query(sql, (sound,))
            except LogDamaged:
                step //= 2
                continue
            whole = _in_order(rows, sound)
            sound += len(whole)
            if not rows or len(whole) < len(rows):
                break
        self._damage = self._lost_after(sound)

    def _lost_after(self, sound: int) -> LogDamaged:
        lost = f"events after event {sound} cannot be read" if sound else "no event of it can be read"
        return LogDamaged(f"the file is damaged: {lost}", sound=sound, where=str(self._path), hint=KEEP)

    def last_seq(self) -> int:
        """See EventLog; in a damaged log that is open for reading only: the last event before the damage.
        Raises LogError."""
        if self._damage is None:
            try:
                return int(self._reader.query("SELECT MAX(rowid) FROM events")[0][0] or 0)
            except LogDamaged as error:
                self._find_damage(error)
        assert self._damage is not None
        return self._damage.sound

    def wait(self, after: int, timeout: float) -> bool:
        """See EventLog: at once for events of this process, after `POLL` seconds at most for those of others."""
        deadline = time.monotonic() + timeout
        while self.last_seq() <= after:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._committed:
                self._committed.wait_for(lambda: self._head > after, min(left, POLL))
        return True

    def close(self) -> None:
        """See EventLog. Harmless when closed already; `submit`, `read`, `wait` and `last_seq` raise LogError then."""
        with self._changed:
            self._closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and os.getpid() == self._pid:
            thread.join()
        self._reader.close()


def _in_order(rows: list[Row], after: int) -> list[Row]:
    """Those that follow on event `after` one by one: a page that is no page any more gives rows that are none."""
    if [row[0] for row in rows] == [*range(after + 1, after + 1 + len(rows))]:
        return rows
    return rows[: next(at for at, row in enumerate(rows) if row[0] != after + 1 + at)]
