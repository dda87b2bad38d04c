"""The log: its events, and the values that are stored apart from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from storage.interfaces.images import Json

if TYPE_CHECKING:
    from concurrent.futures import Future  # it brings logging along, which a quick start cannot afford


class TooLarge(ValueError):
    """An event of more than 1 MiB, or of more than 64 KiB without its lists."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be appended. `data` holds primitives, lists and string-keyed dicts only, 64 KiB encoded at most, and
    1 MiB with lists in it that are longer: they are stored apart. `detached`: places in it (JSON pointers, RFC 6901,
    through objects only) whose values are stored apart, too, so that they can be erased (see storage.log.detached)."""

    stream: str
    type: str
    data: Json
    build: str | None = None
    vertex: str | None = None
    cause: int | None = None
    detached: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """An event in the log (DESIGN section 4). `seq` is gapless and total, `time` UTC nanoseconds since the epoch."""

    seq: int
    time: int
    stream: str
    version: int
    type: str
    build: str | None
    vertex: str | None
    cause: int | None
    data: Json

    def to_json(self) -> Json:
        """One object with exactly the names of DESIGN section 4; `time` as RFC 3339 with nanoseconds."""
        from datetime import UTC, datetime  # reason: only `events --json` needs it, and starting up must be quick

        whole, ns = divmod(self.time, 1_000_000_000)
        stamp = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ns:09d}Z"
        return {
            "seq": self.seq, "time": stamp, "stream": self.stream, "version": self.version, "type": self.type,
            "build": self.build, "vertex": self.vertex, "cause": self.cause, "data": self.data,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Payload:
    """A detached value of event `seq`: `digest` is what the event has in its place, `salt` and `data` what that is of
    (see storage.log.detached). An erased one has neither, and `erased` is the event that says so, 0 for none. `id` is
    its place in the log's file."""

    id: int
    seq: int
    pointer: str
    digest: str
    salt: bytes = b""
    data: bytes = b""
    erased: int = 0


REDACTED = "$redacted"
"""The only key of what stands for an erased value when its event is read: an object with `digest`, and of the event
that tells of it `seq`, `time` (UTC ns), `by` and `reason`."""


def redacted(value: Any) -> str:
    """What to show for a value of an event that was erased, `[redacted by NAME on DATE: REASON]`; "" for any other."""
    if not isinstance(value, dict) or not isinstance(told := value.get(REDACTED), dict) or len(value) != 1:
        return ""
    time = told.get("time")
    if type(time) is not int or not 0 <= time < 1 << 63:
        return ""  # which no log of ours says: it comes from a stranger
    from datetime import UTC, datetime  # reason: few logs have any, and starting up must be quick

    day = datetime.fromtimestamp(time // 10**9, UTC)
    return f"[redacted by {told.get('by')} on {day:%Y-%m-%d}: {told.get('reason')}]"


def worded(value: Any) -> Any:
    """`value`, in which words stand for what was erased (see `redacted`)."""
    if not isinstance(value, dict):
        return value
    return redacted(value) or {key: worded(item) for key, item in value.items()}


class EventLog(Protocol):
    """The append-only log of one root. Thread-safe; several processes may append to the same log."""

    def submit(self, events: Sequence[NewEvent]) -> Future[list[Event]]:
        """Append all of `events`, in order and adjacent, atomically. The future is done once they are durable.
        Submissions of one process land in the order they were made. The future raises LogError or DiskError."""
        ...

    def append(self, *events: NewEvent) -> list[Event]:
        """`submit(events).result()`: returns when they are durable."""
        ...

    def read(self, *, after: int = 0, until: int | None = None, types: frozenset[str] | None = None) -> Iterator[Event]:
        """Events with `after < seq <= until`, in order, read in pages (memory does not grow with the log)."""
        ...

    def last_seq(self) -> int:
        """The highest `seq`, 0 for an empty log."""
        ...

    def wait(self, after: int, timeout: float) -> bool:
        """Block until there is an event after `after` (of any process) or `timeout` seconds passed: say which."""
        ...

    def close(self) -> None:
        """Write what was submitted and let go of the file."""
        ...


class StoredRows(Protocol):
    """The log as it is stored, for those who check it."""

    def rows(self, after: int, until: int) -> Iterator[tuple[int, str, int, str, bytes]]:
        """Stored events (seq, stream, version, type, state) with `after < seq <= until` in order, read in pages and
        decoded by nobody (see storage.log.codec)."""
        ...

    def last_seq(self) -> int:
        """The highest `seq`, 0 for an empty log."""
        ...


class StoredPayloads(Protocol):
    """The detached values of a log (see storage.log.detached)."""

    def payloads(self, after: int, until: int) -> Iterator[Payload]:
        """Every detached value of the events with `after < seq <= until`, in order, unverified, read in pages: one
        that is not there at all has neither data nor `erased`. Raises LogError."""
        ...

    def redact(self, *said: tuple[NewEvent, Sequence[Payload]]) -> list[Event]:
        """Append every event, and erase the payloads that it tells of, for good and at once: after a crash there is
        both or neither. Raises LogError, DiskError."""
        ...
