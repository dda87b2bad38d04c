"""One build's events, read once and kept by type and by step, for all that is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from projections.fields import BAD_EVENT, malformed, objects, size, texts
from projections.history import BuildRecord, History
from projections.mentions import Mentions, events_at
from projections.runner import Views
from projections.verdict import Why
from storage.interfaces.log import Event, EventLog

Json = dict[str, Any]
_BULK = frozenset({"PullProgressed", "ExportProgressed", "VertexOutput"})
"""Many, and proof of nothing but what was dropped."""


@dataclass(slots=True)
class Told:
    """The events of `record`, but for output and progress. `dropped`: events that say output was left out, by vertex;
    `log`, `views`: where more can be asked."""

    log: EventLog
    views: Views
    record: BuildRecord
    why: Why
    events: list[Event] = field(default_factory=list)
    dropped: dict[str, list[Event]] = field(default_factory=dict)
    _types: dict[str, list[Event]] = field(default_factory=dict)
    _vertices: dict[str, list[Event]] = field(default_factory=dict)

    @property
    def mentions(self) -> Mentions:
        """Which events name what."""
        return Mentions(self.views)

    @property
    def history(self) -> History:
        """The builds of this log."""
        return History(self.views)

    def all(self, *types: str) -> list[Event]:
        """The build's events of `types`, in order."""
        found = [event for type_ in types for event in self._types.get(type_, ())]
        return sorted(found, key=lambda event: event.seq)

    def of(self, vertex: str, *types: str) -> list[Event]:
        """Those of one step."""
        return [event for event in self._vertices.get(vertex, ()) if event.type in types]

    def number(self, vertex: str | None) -> int:
        """The number of a step, 0 for none."""
        step = self.why.build.steps.get(vertex or "")
        return step.number if step else 0

    def add(self, event: Event) -> None:
        """Take in one event of the build."""
        if event.type in _BULK:
            if event.type == "VertexOutput" and size(event.data, "dropped"):
                self.dropped.setdefault(event.vertex or "", []).append(event)
            return
        self.events.append(event)
        self._types.setdefault(event.type, []).append(event)
        if event.vertex:
            self._vertices.setdefault(event.vertex, []).append(event)


def read_told(log: EventLog, views: Views, record: BuildRecord, why: Why) -> Told:
    """Read the events of `record`. Raises LogError."""
    told = Told(log, views, record, why)
    for event in log.read(after=record.first_seq - 1, until=record.last_seq):
        if event.build == record.id:
            try:
                told.add(event)
            except BAD_EVENT as error:
                raise malformed(event, error) from error
    return told


def ref_event(told: Told, ref: str) -> Event | None:
    """What says of which layers `ref` is made, as this build could know it: its creation, else a record of it."""
    until = told.record.last_seq
    for types in ({"LocalCreated", "RemoteCreated", "LayerStored"}, {"CacheRecorded"}):
        seqs = told.mentions.seqs({ref}, types, until=until, last=4)
        for event in reversed(list(events_at(told.log, seqs))):
            if event.data.get("ref") == ref:
                return event
    return None


def layers_of(event: Event) -> list[Json]:
    """The descriptors that a ref's event names. Raises LogError."""
    try:
        if event.type == "LayerStored":
            return objects({"layers": [event.data.get("layer")]}, "layers")
        return objects(event.data, "layers")
    except BAD_EVENT as error:
        raise malformed(event, error) from error


def refs_used(told: Told) -> list[str]:
    """Ids of the refs that steps of the build gave, in order."""
    ends = told.all("VertexCached", "VertexCompleted")
    return list(dict.fromkeys(ref for event in ends for ref in texts(event.data, "outputs")))


def exactly(log: EventLog, rows: list[tuple[int, str, str, str]], name: str) -> Iterator[Event]:
    """The events of `rows` (Mentions.naming) that have `name` whole: the index keeps the beginning only."""
    for event in events_at(log, {row[0] for row in rows}):
        if holds(event.data, name):
            yield event


def holds(value: object, name: str) -> bool:
    """Is `name` among the texts of this plain data?"""
    if isinstance(value, str):
        return value == name
    if isinstance(value, dict):
        return any(holds(item, name) for item in value.values())
    return isinstance(value, (list, tuple)) and any(holds(item, name) for item in value)


def whole_name(value: object, prefix: str) -> str | None:
    """The first text of this plain data that `prefix` is the beginning of, as digests are typed."""
    if isinstance(value, str):
        return value if value.rpartition(":")[2].startswith(prefix.rpartition(":")[2]) else None
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((found for item in items if (found := whole_name(item, prefix)) is not None), None)
