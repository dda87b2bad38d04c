"""A log in a list, and stories to put into it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from engine.events import Fact, to_data
from storage.interfaces.log import Event, NewEvent

SECOND = 1_000_000_000
BEGIN = 1_700_000_000 * SECOND


class ListLog:
    """The EventLog protocol over a list; `step` ns pass between two events."""

    def __init__(self, events: Sequence[Event] = (), *, begin: int = BEGIN, step: int = SECOND // 10) -> None:
        self.events = list(events)
        self._begin = begin
        self._step = step
        self._versions: dict[str, int] = {}
        self._changed = threading.Condition()

    def submit(self, events: Sequence[NewEvent]) -> Future[list[Event]]:
        done: list[Event] = []
        with self._changed:
            for new in events:
                version = self._versions[new.stream] = self._versions.get(new.stream, 0) + 1
                seq = len(self.events) + 1
                done.append(
                    Event(seq, self._begin + seq * self._step, new.stream, version, new.type, new.build, new.vertex,
                          new.cause, new.data)
                )  # fmt: skip
                self.events.append(done[-1])
            self._changed.notify_all()
        future: Future[list[Event]] = Future()
        future.set_result(done)
        return future

    def append(self, *events: NewEvent) -> list[Event]:
        return self.submit(events).result()

    def read(self, *, after: int = 0, until: int | None = None, types: frozenset[str] | None = None) -> Iterator[Event]:
        last = len(self.events) if until is None else min(until, len(self.events))
        for event in self.events[max(after, 0) : last]:
            if types is None or event.type in types:
                yield event

    def last_seq(self) -> int:
        return len(self.events)

    def wait(self, after: int, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.events) > after, timeout)

    def close(self) -> None:
        pass

    def add(
        self, fact: Fact, build: str | None = None, vertex: str | None = None, *, cause: int | None = None
    ) -> Event:
        """Append `fact` as the engine does."""
        data = to_data(fact)
        stream = {"build": f"build/{build}", "ref": f"ref/{data.get('ref')}", "cache": "cache"}[fact.STREAM]
        return self.append(NewEvent(stream, type(fact).__name__, data, build, vertex, cause))[0]

    def add_raw(self, type_: str, data: dict[str, Any], build: str | None = None, vertex: str | None = None) -> Event:
        """Append something that the engine would not."""
        return self.append(NewEvent(f"build/{build}", type_, data, build, vertex))[0]


def digest(name: str | int) -> str:
    """A digest for `name`."""
    import hashlib

    return "sha256:" + hashlib.sha256(str(name).encode()).hexdigest()
