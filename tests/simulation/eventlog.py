"""The event log of a simulated disk: rows as the real one stores them, group commit, appended by several processes.

What a submission costs the real log is a transaction of a thread of its own, which becomes durable with an fsync; here
it is a callback of the loop at some later moment. A commit is whole or not at all, and durable when anybody is told.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from storage.errors import DiskError, LogError
from storage.interfaces.log import Event, NewEvent, Payload
from storage.log import codec
from storage.log.detached import erased, ids
from storage.log.payloads import Payloads
from tests.simulation.chance import Chance, Crashed
from tests.simulation.processes import Process
from tests.simulation.threads import STALL

_LATEST = 0.004
"""Seconds that a commit takes at most."""


@dataclass(slots=True)
class StoredLog:
    """What is durable: events, and what is detached from them by id (salt, data)."""

    rows: list[codec.Row] = field(default_factory=list)
    payloads: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    time: int = 0
    commits: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)


class _Submitted(Future[list[Event]]):
    """Whoever waits for it with the thread, not with the loop, makes the commit happen."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__()
        self._log = log

    def result(self, timeout: float | None = None) -> list[Event]:
        if not self.done():
            self._log.commit()
        return super().result(timeout)


class MemoryLog:
    """Implements EventLog, StoredRows and StoredPayloads for one process, whose `alive` ends with it."""

    def __init__(
        self, stored: StoredLog, process: Process, chance: Chance, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """`loop`: which commits what was submitted; that of the caller when None; without any, whoever waits does."""
        self._stored = stored
        self._process = process
        self._chance = chance
        self._loop = loop
        self._queue: deque[tuple[int, list[codec.Encoded], Future[list[Event]]]] = deque()
        self._due = False
        self.closed = False
        self.damage: LogError | None = None
        """Nobody damages a log here."""
        self._payloads = Payloads(self._query)

    # ------------------------------------------------------------ writing

    def submit(self, events: Sequence[NewEvent]) -> Future[list[Event]]:
        """See EventLog."""
        encoded = [codec.encode(event) for event in events]
        self._process.check()
        self._check()
        future = _Submitted(self)
        future.set_running_or_notify_cancel()
        if not encoded:
            future.set_result([])
            return future
        with self._stored.lock:
            self._queue.append((self._process.machine.now(), encoded, future))
        self._schedule()
        return future

    def append(self, *events: NewEvent) -> list[Event]:
        """See EventLog."""
        return self.submit(events).result()

    def commit(self, *more: str) -> None:
        """What the writer's thread does: one transaction for all that was submitted until now. `more`: kinds of fault,
        beside those of every commit."""
        self._due = False
        if not self._queue or not self._process.alive:
            return
        with self._stored.lock:
            self._commit(*more)

    def _commit(self, *more: str) -> None:
        group = list(self._queue)
        self._queue.clear()
        if not group:
            return
        try:
            kind = self._process.fault("commit", (b"root", b"log.db"), "ENOSPC", "EIO", "crash behind", *more)
        except OSError as error:
            for *_, future in group:
                future.set_exception(DiskError.of(error, "writing the event log"))
            return
        if kind == "late":
            self._queue.extendleft(reversed(group))
            return
        results = [self._insert(submitted, events) for submitted, events, _ in group]
        self._stored.commits += 1
        if kind == "crash behind":
            self._process.die()
            raise Crashed(f"{self._process.name} was killed behind a commit")
        for (*_, future), result in zip(group, results, strict=True):
            future.set_result(result)

    def redact(self, *said: tuple[NewEvent, Sequence[Payload]]) -> list[Event]:
        """See StoredPayloads."""
        if not said:
            return []
        self._process.fault("redact", (b"root", b"log.db"), "ENOSPC")
        events = self._insert(self._process.machine.now(), [codec.encode(event) for event, _ in said])
        for event, (_, payloads) in zip(events, said, strict=True):
            for payload in payloads:
                kept = self._stored.payloads.get(payload.id)
                if kept is not None and kept[1][:1] != b"\0":
                    self._stored.payloads[payload.id] = erased(kept[1], event.seq)
        return events

    def close(self) -> None:
        """See EventLog."""
        if self._process.alive:
            self.commit()
        self.closed = True

    def _insert(self, submitted: int, events: Sequence[codec.Encoded]) -> list[Event]:
        stored = self._stored
        stored.time = max(stored.time, submitted)
        made = []
        for stream, name, body, state, payloads in events:
            seq = len(stored.rows) + 1
            version = stored.versions[stream] = stored.versions.get(stream, 0) + 1
            stored.rows.append((seq, stream, version, name, codec.stamp(body, stored.time)))
            stored.payloads.update(enumerate(payloads, ids(seq)))
            made.append(codec.event_of(seq, stored.time, stream, version, name, state))
        return made

    def _schedule(self) -> None:
        if self._due:
            return
        loop = self._loop
        if loop is None:
            try:
                loop = self._loop = asyncio.get_running_loop()
            except RuntimeError:
                return
        self._due = True
        delay = self._chance.below(5) * _LATEST / 4

        def later() -> None:
            loop.call_later(delay, when_due)

        def when_due() -> None:
            self.commit("late")
            if self._queue and not self._due:
                self._due = True
                loop.call_later(STALL, self.commit)

        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            later()
        else:
            loop.call_soon_threadsafe(later)

    def _check(self) -> None:
        if self.closed:
            raise LogError("the event log is closed", where="log.db")

    # ------------------------------------------------------------ reading

    def read(self, *, after: int = 0, until: int | None = None, types: frozenset[str] | None = None) -> Iterator[Event]:
        """See EventLog."""
        end = self.last_seq() if until is None else min(until, self.last_seq())
        for row in self._stored.rows[max(after, 0) : end]:
            if types is not None and row[3] not in types:
                continue
            detached: list[tuple[Event, dict[str, str]]] = []
            event = codec.decode(row, detached)
            if detached:
                self._payloads.join(detached)
            yield event

    def rows(self, after: int, until: int) -> Iterator[codec.Row]:
        """See StoredRows."""
        self._check()
        yield from self._stored.rows[max(after, 0) : until]

    def payloads(self, after: int, until: int) -> Iterator[Payload]:
        """See StoredPayloads."""
        yield from self._payloads.of(list(self.rows(after, until)))

    def end_before_damage(self) -> None:
        """See SqliteEventLog.end_before_damage."""

    def last_seq(self) -> int:
        """See EventLog."""
        self._check()
        return len(self._stored.rows)

    def wait(self, after: int, timeout: float) -> bool:
        """See EventLog."""
        if self.last_seq() <= after:
            self.commit()
        return self.last_seq() > after

    def _query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """What storage.log.payloads asks the real file."""
        numbers = [int(str(value)) for value in parameters]
        if "FROM payloads" in sql:
            spans = list(zip(numbers[::2], numbers[1::2], strict=True))
            return [
                (key, *value) for key, value in sorted(self._stored.payloads.items())
                if any(start <= key < end for start, end in spans)
            ]  # fmt: skip
        return [row for row in self._stored.rows if row[0] == numbers[0]]
