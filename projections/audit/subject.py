"""A digest: which builds made it, and which stand on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from projections.audit.statements import Descendant, Maker
from projections.audit.told import exactly, holds, whole_name
from projections.fields import BAD_EVENT, malformed, mapping, objects, text
from projections.history import BuildRecord, History
from projections.mentions import GAVE, HOLDS, Mentions, events_at, short
from projections.moments import event_at
from projections.runner import Views
from storage.errors import InputError
from storage.interfaces.log import Event, EventLog

MAKERS = 100
"""Builds that are told of one by one, the first and the last ones."""
_MAKES = frozenset({GAVE, "BuildCompleted", "BlobCreated", "LocalCreated"})
_USES = {
    "SourceResolved": "image", "HttpResolved": "file", "GitResolved": "commit", "BuildStarted": "context",
    "DefinitionRead": "definition", "ContextScanned": "context", "LayerStored": "layer", "RemoteCreated": "layer",
    HOLDS: "layer", "VertexStarted": "input", "VertexCached": "cached", "CacheQueried": "cached",
}  # fmt: skip
_CARRIES = frozenset({"RemoteCreated", "LayerStored", HOLDS})
"""Uses whose event names a ref that has the layer in it."""
_HOW = {"BuildCompleted": "result", "BlobCreated": "layer", "LocalCreated": "step"}


def find(log: EventLog, views: Views, name: str) -> tuple[BuildRecord | None, str]:
    """What a person means by `name`: a build by its id or the beginning of one, else a digest, commit or ref that an
    event names, whole or the beginning of it. Raises InputError (nothing is called so, or several things)."""
    if ":" not in name:
        try:
            record = History(views).get(name)
        except InputError as error:
            if "several" in str(error):
                raise
        else:
            return record, record.id
    kept = Mentions(views).beginning(name) if len(short(name)) >= 6 else []
    if len(kept) > 1:
        raise InputError(f"several digests begin with {name[:80]!r}", hint="write more of it")
    for one in kept:
        for event in events_at(log, Mentions(views).every(one)):
            if whole := whole_name([event.data, event.vertex], name):
                return None, whole
    hint = "refledger history lists builds; a digest needs its first 6 characters"
    raise InputError(f"no event of this log names {name[:80]!r}", hint=hint)


def makers(log: EventLog, views: Views, name: str) -> tuple[list[Maker], int]:
    """The builds that made or handed out `name`, in order, one statement for each way, and how many builds there are.
    Raises LogError."""
    rows = Mentions(views).naming({name}, _MAKES)
    builds = list(dict.fromkeys(build for _, _, build, _ in rows if build))
    told = {*builds[: MAKERS // 2], *builds[-MAKERS // 2 :]}
    found: list[Maker] = []
    for event in exactly(log, [row for row in rows if row[2] in told], name):
        if not _made(event, name):
            continue
        try:
            how = text(event.data, "kind", "") if event.type == "Exported" else _HOW[event.type]
            target = text(event.data, "target", "")
        except BAD_EVENT as error:
            raise malformed(event, error) from error
        if how == "result" and any(item.build == event.build and item.target for item in found):
            continue  # it is what was exported
        found.append(_maker(log, views, event.build or "", how, target, event.time, event.seq))
    return found, len(builds)


def _made(event: Event, name: str) -> bool:
    """Does the event say that `name` was made, and not only name it?"""
    data = event.data
    match event.type:
        case "Exported":
            return bool(data.get("digest") == name)  # else it is one of its layers, under the same beginning
        case "LocalCreated":
            return bool(data.get("ref") == name)
        case "BlobCreated":
            return name in (data.get("digest"), data.get("snapshot"), data.get("ref"))
    return True


def _maker(log: EventLog, views: Views, build: str, how: str, target: str, time: int, seq: int) -> Maker:
    try:
        record = History(views).get(build)
    except InputError:  # the log was begun in the midst of it
        return Maker(build, "", "", how, target, "", {}, time, (seq,))
    begun = event_at(log, record.first_seq)
    version, host = text(begun.data, "engine_version", ""), mapping(begun.data, "host")
    seqs = (record.first_seq, seq)
    return Maker(build, record.name, record.status, how, target, version, host, time, seqs)


# ---------------------------------------------------------------- what stands on it


@dataclass(slots=True)
class _Search:
    log: EventLog
    views: Views
    names: dict[str, str] = field(default_factory=dict)
    """What was found so far, whole, by the name as it is kept."""
    seen: set[str] = field(default_factory=set)
    found: list[Descendant] = field(default_factory=list)

    def take(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that are new."""
        new = {name for name in names if name and short(name) not in self.names}
        self.names |= {short(name): name for name in new}
        return new


def built_from(log: EventLog, views: Views, names: Iterable[str], but: Iterable[str] = ()) -> list[Descendant]:
    """Builds that used one of `names` (digests, commits, refs), and those that used what these gave, and so on, but
    for builds `but`; each with the first event that shows it. Raises LogError."""
    search = _Search(log, views, seen=set(but))
    frontier, depth = search.take(names), 1
    while frontier:
        frontier = _next(search, frontier, depth)
        depth += 1
    return search.found


def _next(search: _Search, frontier: set[str], depth: int) -> set[str]:
    """Whoever used names of `frontier`, at once or as part of a ref; returns the names that these builds gave."""
    gave: set[str] = set()
    while frontier:
        rows = Mentions(search.views).naming(frontier, _USES)
        carried = [row for row in rows if row[1] in _CARRIES]
        events = events_at(search.log, {row[0] for row in carried})
        frontier = search.take(str(event.data.get("ref") or "") for event in events)
        for seq, type_, build, name in rows:
            if build and build not in search.seen:
                gave |= _use(search, depth, seq, type_, build, name)
    return search.take(gave)


def _use(search: _Search, depth: int, seq: int, type_: str, build: str, name: str) -> set[str]:
    """Note the first use by `build`; returns what the build gave."""
    whole = search.names[name]
    event = event_at(search.log, seq)
    if not holds(event.data, whole):
        return set()
    search.seen.add(build)
    how = "definition" if type_ == "BuildStarted" and event.data.get("definition") == whole else _USES[type_]
    try:
        record = History(search.views).get(build)
    except InputError:
        search.found.append(Descendant(build, "", "", depth, how, whole, event.time, (), (seq,)))
        return set()
    results = objects({"results": list(record.results)}, "results")
    digests = tuple(dict.fromkeys(text(item, "digest", "") for item in results if item.get("digest")))
    seqs = {record.first_seq, seq, record.last_seq or seq}
    search.found.append(
        Descendant(build, record.name, record.status, depth, how, whole, event.time, digests, tuple(sorted(seqs)))
    )  # fmt: skip
    return {*digests, *(text(item, "ref", "") for item in results)}
