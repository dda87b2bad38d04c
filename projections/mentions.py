"""Which events name a digest, a key, a ref or a step: so that a question about one need not read the whole log."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from projections.fields import mapping, maybe_text, objects, text, texts
from projections.runner import Projection, Views
from storage.interfaces.log import Event, EventLog

SHORT = 20
"""Characters of a name that are kept, without its algorithm: 80 bits of a digest."""
GIVEN: Mapping[str, str] = {
    "CacheMountUsed": "cache", "SecretMounted": "secret", "AgentForwarded": "ssh", "SecurityLifted": "security",
}  # fmt: skip
"""What a step had beside its inputs, and what that is called: found by the vertex."""

READ, GAVE, HOLDS = "Exported, read", "Exported, gave", "LocalCreated, holds"
"""In place of a type, what an event names a digest as: a layer that an export read somewhere, the digest it gave, a
layer or snapshot that a step's result stands on. Many other events only name it."""


class Mentions:
    """Look-ups in views that hold `PROJECTION`. They see what was folded: `Views.catch_up` first."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def naming(self, names: Collection[str], types: Collection[str]) -> list[tuple[int, str, str, str]]:
        """Seq, type, build and name as it is kept, of each event of `types` that names one of `names`, in order."""
        sql = "SELECT seq, type, build, name FROM mentions WHERE name = ? AND type = ?"
        kept = set(map(short, names))
        return sorted(row for name in kept for type_ in types for row in self._views.query(sql, (name, type_)))

    def beginning(self, prefix: str) -> list[str]:
        """The first few names that begin with `prefix`, as they are kept."""
        sql = "SELECT DISTINCT name FROM mentions WHERE name >= ?1 AND name < ?1 || char(1114111) LIMIT 4"
        return [name for (name,) in self._views.query(sql, (short(prefix),))]

    def every(self, name: str) -> list[int]:
        """All events that have a name that is kept so, in order."""
        rows = self._views.query("SELECT DISTINCT seq FROM mentions WHERE name = ? ORDER BY seq", (name,))
        return [seq for (seq,) in rows]

    def seqs(
        self, names: Iterable[str], types: Collection[str], *, until: int | None = None, last: int | None = None
    ) -> set[int]:
        """Events of `types` up to `until` that name one of `names`; only the `last` ones of each type and name."""
        limit = -1 if last is None else last
        sql = "SELECT seq FROM mentions WHERE name = ? AND type = ? AND seq <= ? ORDER BY seq DESC LIMIT ?"
        end = 2**62 if until is None else until
        return {
            row[0] for name in set(map(short, names)) for type_ in types
            for row in self._views.query(sql, (name, type_, end, limit))
        }  # fmt: skip


def short(name: str) -> str:
    """`name` as it is kept."""
    return name.rpartition(":")[2][:SHORT]


def events_at(log: EventLog, seqs: Iterable[int]) -> Iterator[Event]:
    """These events, in order. Raises LogError."""
    for seq in sorted(seqs):
        yield from log.read(after=seq - 1, until=seq)


# ---------------------------------------------------------------- folding


def _keep(names: Callable[[Event], Iterable[str | None]]) -> Callable[[sqlite3.Cursor, Event], None]:
    def handler(cursor: sqlite3.Cursor, event: Event) -> None:
        rows = [(short(name), event.type, event.seq, event.build or "") for name in names(event) if name]
        cursor.executemany("INSERT OR IGNORE INTO mentions VALUES (?, ?, ?, ?)", rows)

    return handler


def _fields(*keys: str) -> Callable[[Event], list[str | None]]:
    return lambda event: [maybe_text(event.data, key) for key in keys]


def _listed(*keys: str) -> Callable[[Event], list[str]]:
    return lambda event: [name for key in keys for name in texts(event.data, key)]


def _unanswered(event: Event) -> list[str]:
    """Requests that went well are told of by what they were made for, and there are many."""
    return [] if maybe_text(event.data, "outcome") == "ok" else [text(event.data, "name")]


def _layers(*keys: str) -> Callable[[Event], list[str | None]]:
    def names(event: Event) -> list[str | None]:
        layers = [text(layer, "digest", "") for layer in objects(event.data, "layers")]
        return [*(maybe_text(event.data, key) for key in keys), *layers]

    return names


def _also(cursor: sqlite3.Cursor, event: Event, role: str, names: Iterable[str]) -> None:
    rows = [(short(name), role, event.seq, event.build or "") for name in names if name]
    cursor.executemany("INSERT OR IGNORE INTO mentions VALUES (?, ?, ?, ?)", rows)


def _exported(cursor: sqlite3.Cursor, event: Event) -> None:
    _keep(_layers("digest"))(cursor, event)
    _also(cursor, event, GAVE, [text(event.data, "digest", "")])
    read = [text(layer, "digest", "") for layer in objects(event.data, "layers") if streamed_from(layer)]
    _also(cursor, event, READ, read)


def streamed_from(layer: Mapping[str, object]) -> str:
    """Who gave the bytes of a layer that an export (Exported.layers) read elsewhere; "" when it read none."""
    moved = layer.get("transport") in {"streamed", "written"}
    return text(layer, "source", "") if moved else ""


def _local_created(cursor: sqlite3.Cursor, event: Event) -> None:
    _keep(_fields("ref"))(cursor, event)
    layers = objects(event.data, "layers")
    _also(cursor, event, HOLDS, [text(layer, key, "") for layer in layers for key in ("digest", "snapshot")])


def _layer_stored(event: Event) -> list[str]:
    return [text(event.data, "ref"), text(mapping(event.data, "layer"), "digest", "")]


def _results(event: Event) -> list[str | None]:
    return [maybe_text(item, key) for item in objects(event.data, "results") for key in ("ref", "digest")]


PROJECTION = Projection(
    name="mentions",
    version=4,
    tables=("mentions",),
    schema=(
        ("CREATE TABLE mentions (name TEXT, type TEXT, seq INTEGER, build TEXT, PRIMARY KEY (name, type, seq))"
         " WITHOUT ROWID"),
    ),
    handlers={
        "BuildStarted": _keep(_fields("definition", "context")),
        "DefinitionRead": _keep(_fields("definition")),
        "ContextScanned": _keep(_fields("listing")),
        "HttpResolved": _keep(_fields("digest")),
        "GitResolved": _keep(_fields("commit")),
        "SourceResolved": _keep(_fields("digest", "manifest", "config")),
        "CacheImported": _keep(_fields("digest")),
        "RemoteCreated": _keep(_layers("ref")),
        "LocalCreated": _local_created,
        "LayerStored": _keep(_layer_stored),
        "CacheQueried": _keep(_fields("ref")),
        "CacheRecorded": _keep(_fields("key", "resolved", "ref")),
        "VertexStarted": _keep(_listed("inputs")),
        "VertexCached": _keep(_listed("outputs")),
        "VertexCompleted": _keep(_listed("outputs")),
        "MaterializationRequested": _keep(_fields("ref")),
        "Materialized": _keep(_fields("ref")),
        "MaterializationFailed": _keep(_fields("ref", "digest")),
        "SourceTried": _keep(_unanswered),
        "PullStarted": _keep(_fields("digest")),
        "PullFailed": _keep(_fields("digest")),
        "LayerPulled": _keep(_fields("digest", "diff_id")),
        "LayerLaidOut": _keep(_fields("digest", "diff_id")),
        "LayerTocRead": _keep(_fields("digest")),
        "FilesFetched": _keep(_fields("digest")),
        "BlobCreated": _keep(_fields("ref", "snapshot", "digest")),
        "Exported": _exported,
        "Demoted": _keep(_fields("name", "digest")),
        "Pruned": _keep(_fields("name")),
        "LayerScanned": _keep(_fields("diff_id")),
        "Attested": _keep(_fields("image", "referrer")),
        "BuildCompleted": _keep(_results),
        **{name: _keep(lambda event: [event.vertex]) for name in GIVEN},
    },
)
