"""What the whole log says of results by their cache keys: who recorded them, what became of their bytes since.

Folded from the log when a person asks (`refledger why`); everything is read, nothing is written (I13).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from projections.asked import Asked, Build
from projections.fields import BAD_EVENT, malformed, mapping, objects, size, text, texts
from projections.mentions import GIVEN, Mentions, events_at
from projections.steps import provider_name, provider_names
from storage.interfaces.log import Event, EventLog

Json = dict[str, Any]
_KINDS = frozenset(GIVEN) | {
    "CacheRecorded", "BlobCreated", "LayerPulled", "LayerStored", "RemoteCreated", "Exported", "Pruned", "Demoted"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """A CacheRecorded. `build` recorded it, `origin_build` made the result; `resolved`: its key by content, "" when the
    log does not tell."""

    key: str
    ref: str
    layers: tuple[Json, ...]
    build: str
    vertex: str
    origin_build: str
    importer: str
    resolved: str
    seq: int


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Bytes that were let go on purpose: `kind` blob, layer or snapshot; `providers`: who had them then, "" when nobody
    was known to; `policy` that asked for it, `by` whom; `time` UTC ns."""

    kind: str
    name: str
    providers: str
    policy: str
    by: str
    bytes: int
    time: int
    seq: int


@dataclass(slots=True)
class Records:
    """The fold. `first`: the first record of a ref by a build, which is the one that made it if any is; `pulled`: the
    provider or file that blobs came from whole, and what was verified of them, by digest; `packed`: the blobs that a
    snapshot became; `providers`: who was last known to have a blob, by digest; `lent`: what executed steps had beside
    their inputs, by build and vertex."""

    by_key: dict[str, list[Record]] = field(default_factory=dict)
    first: dict[tuple[str, str], Record] = field(default_factory=dict)
    tombstones: dict[str, list[Tombstone]] = field(default_factory=dict)
    packed: dict[str, list[str]] = field(default_factory=dict)
    pulled: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    providers: dict[str, str] = field(default_factory=dict)
    lent: dict[tuple[str, str], list[Event]] = field(default_factory=dict)

    def latest(self, key: str, before: int) -> Record | None:
        """The last record of `key` before event `before`."""
        return next((item for item in reversed(self.by_key.get(key, ())) if item.seq < before), None)

    def of_hit(self, key: str, seq: int) -> Record | None:
        """The record that the hit at event `seq` stands for: one that another cache knew is recorded after it."""
        return self.latest(key, seq) or next(iter(self.by_key.get(key, ())), None)

    def by_content(self, build: Build, vertex: str) -> Asked | None:
        """What a step of `build` asked by content, or could have: the key by content of the result that it had."""
        asked = build.by_content.get(vertex)
        if asked is None and vertex in build.asked:
            known = build.asked[vertex]
            record = self.latest(known.key, build.record.last_seq or known.seq)
            if record and record.resolved:
                asked = replace(known, key=record.resolved, components=record.resolved, by="content")
        return asked

    def execution(self, record: Record) -> tuple[str, str] | None:
        """Build and vertex of the execution that made the result, None when that is not in this log. A result that was
        found by its content is recorded again, for the vertex that it was found for."""
        made = self.first.get((record.ref, record.origin_build))
        return (made.build, made.vertex) if made and not made.importer else None

    def names(self, record: Record) -> list[str]:
        """All names of the bytes of `record`, the top layer's first: snapshots, blobs, diff IDs."""
        return list(dict.fromkeys(name for layer in reversed(record.layers) for name in self.names_of(layer)))

    def names_of(self, layer: Json) -> list[str]:
        """The same of one layer."""
        named = [str(layer[name]) for name in ("snapshot", "digest", "diff_id") if layer.get(name)]
        return named + self.packed.get(str(layer.get("snapshot") or ""), [])

    def let_go(self, record: Record, before: int) -> Tombstone | None:
        """Why bytes of `record` were not here any more at event `before`: those that nobody else had first."""
        found = [
            stone for name in self.names(record) for stone in self.tombstones.get(name, ())
            if record.seq < stone.seq < before
        ]  # fmt: skip
        return min(found, key=lambda stone: bool(stone.providers), default=None)


def read_records(log: EventLog, until: int | None) -> Records:
    """Fold the log up to event `until` (None: all of it). Raises LogError."""
    return _folded(log.read(until=until, types=_KINDS))


def records_of(log: EventLog, mentions: Mentions, keys: Iterable[str], until: int | None) -> Records:
    """The same, but only what is about `keys`: their records, the bytes of these, and the executions that made them;
    reads no other event. Raises LogError."""
    recorded = mentions.seqs(keys, {"CacheRecorded"}, until=until)
    refs, names, vertices = _named(log, recorded)
    recorded |= mentions.seqs(refs, {"CacheRecorded"}, until=until)
    refs, names, vertices = _named(log, recorded)
    packed = mentions.seqs(names, {"BlobCreated"}, until=until)
    names |= {name for event in events_at(log, packed) for name in (event.data.get("digest"),) if isinstance(name, str)}
    about = mentions.seqs(names, {"LayerPulled", "LayerStored", "Pruned", "Demoted"}, until=until)
    about |= mentions.seqs(names, {"Exported", "RemoteCreated"}, until=until, last=1)
    about |= mentions.seqs(vertices, GIVEN, until=until)
    return _folded(events_at(log, recorded | packed | about))


def _named(log: EventLog, recorded: set[int]) -> tuple[set[str], set[str], set[str]]:
    """Refs, names of layers, and vertices of these CacheRecorded events."""
    refs, names, vertices = set(), set(), set()
    for event in events_at(log, recorded):
        try:
            refs.add(text(event.data, "ref"))
            vertices.add(event.vertex or "")
            layers = objects(event.data, "layers")
            names |= {text(layer, key, "") for layer in layers for key in ("snapshot", "digest", "diff_id")}
        except BAD_EVENT as error:
            raise malformed(event, error) from error
    return refs, names - {""}, vertices - {""}


def _folded(events: Iterable[Event]) -> Records:
    found = Records()
    for event in events:
        try:
            _fold(found, event)
        except BAD_EVENT as error:
            raise malformed(event, error) from error
    return found


def _fold(found: Records, event: Event) -> None:
    data = event.data
    match event.type:
        case "CacheRecorded":
            build = event.build or ""
            layers = objects(data, "layers")
            for layer in layers:
                objects(layer, "providers")  # malformed ones are found out here, with the event's number
            record = Record(
                text(data, "key"), text(data, "ref"), tuple(layers), build, event.vertex or "",
                text(data, "origin_build", "") or build, text(data, "importer", ""), text(data, "resolved", ""),
                event.seq,
            )  # fmt: skip
            found.first.setdefault((record.ref, build), record)
            for key in filter(None, dict.fromkeys((record.key, record.resolved))):
                found.by_key.setdefault(key, []).append(record)
        case "BlobCreated":
            if not text(data, "source", ""):  # else an export made it of another blob, which no record is of
                snapshot = text(data, "snapshot", "") or text(data, "ref", "")
                found.packed.setdefault(snapshot, []).append(text(data, "digest"))
        case "LayerPulled":
            who = mapping(data, "provider")
            found.pulled[text(data, "digest")] = provider_name(who), tuple(texts(data, "verified"))
            if not text(who, "mirror_of", ""):  # a mirror serves, and is not known to have anything
                found.providers[text(data, "digest")] = provider_name(who)
        case "LayerStored":
            layer = mapping(data, "layer")
            found.pulled[text(layer, "digest")] = f"file {text(data, 'name', '?')}", ("digest", "diff_id")
        case "Exported" | "RemoteCreated":
            names = provider_names([mapping(data, "provider"), *objects(data, "providers")])
            found.providers |= {text(layer, "digest"): names for layer in objects(data, "layers") if names}
        case _ if event.type in GIVEN:
            found.lent.setdefault((event.build or "", event.vertex or ""), []).append(event)
        case "Pruned" | "Demoted":
            _let_go(found, event)


def _let_go(found: Records, event: Event) -> None:
    data = event.data
    had = provider_names(objects(data, "providers"))
    stone = Tombstone(
        text(data, "kind"), text(data, "name"), had, text(data, "policy", ""), text(data, "by", ""),
        size(data, "bytes"), event.time, event.seq,
    )  # fmt: skip
    for name in filter(None, dict.fromkeys((stone.name, text(data, "digest", "")))):
        found.tombstones.setdefault(name, []).append(stone)
