"""The events of a bundle, as a log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from storage.errors import LogError
from storage.interfaces.log import Event, NewEvent


class BundleLog:
    """Implements the reading half of EventLog over the events of a bundle, with the numbers they had."""

    def __init__(self, path: Path, events: Sequence[Event]) -> None:
        self._path = path
        self._events = events

    def submit(self, events: Sequence[NewEvent]) -> Future[list[Event]]:
        """Raises LogError: a bundle is what it is."""
        raise LogError(f"{len(events)} events for a bundle, which is only read", where=str(self._path))

    def append(self, *events: NewEvent) -> list[Event]:
        """Raises LogError."""
        return self.submit(events).result()

    def read(self, *, after: int = 0, until: int | None = None, types: frozenset[str] | None = None) -> Iterator[Event]:
        """See EventLog."""
        for event in self._events:
            if until is not None and event.seq > until:
                return
            if event.seq > after and (types is None or event.type in types):
                yield event

    def last_seq(self) -> int:
        """See EventLog."""
        return self._events[-1].seq if self._events else 0

    def wait(self, after: int, timeout: float) -> bool:  # noqa: ARG002  # nothing will come
        """See EventLog."""
        return self.last_seq() > after

    def close(self) -> None:
        """See EventLog."""
