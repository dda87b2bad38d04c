"""Builds: when they ran, how they ended, what they cost."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from projections.fields import build_of, integer, mapping, objects, size, text, texts
from projections.mentions import short
from projections.runner import Projection, Row, Views
from projections.viewfile import kept_json
from storage.digest import canonical_json
from storage.errors import InputError
from storage.interfaces.log import Event

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """One build. `status`: running, completed, failed, cancelled or interrupted; times in UTC ns; `last_seq`, `ended`
    and `exit_code` are None without an end in the log. `executed` counts executions, `bytes_pulled` what came over
    the wire for this build, failed attempts included; `bytes_avoided` what did not have to, of layers that a step had
    asked for files of; `results` as in BuildCompleted; `checked`: it only told what would be done (--cache-check)."""

    id: str
    name: str
    filename: str
    tags: tuple[str, ...]
    status: str
    started: int
    ended: int | None
    first_seq: int
    last_seq: int | None
    vertices: int
    cached: int
    executed: int
    bytes_pulled: int
    error: str | None
    results: tuple[Json, ...]
    exit_code: int | None
    bytes_avoided: int = 0
    checked: bool = False

    def to_json(self) -> Json:
        """The fields, by name."""
        return {**asdict(self), "tags": list(self.tags), "results": list(self.results)}


_COLUMNS = (
    "id, name, filename, tags, status, started, ended, first_seq, last_seq, vertices, cached, executed, bytes_pulled,"
    " error, results, exit_code,"
    " (SELECT coalesce(sum(avoided.bytes), 0) FROM avoided WHERE avoided.build = builds.id) AS bytes_avoided,"
    " checked"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which builds: in one of `statuses` (none: any), begun within `since` and `until` (UTC ns), `name`: a pattern with
    * and ? of their name or of a tag, `mentions`: digests and refs, or beginnings of some, that their events name."""

    statuses: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None
    name: str | None = None
    mentions: tuple[str, ...] = ()


class History:
    """Look-ups in views that hold `PROJECTION`, and that of mentions. They see what was folded: `Views.catch_up`
    first."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def list(self, limit: int | None = None, status: str | None = None) -> list[BuildRecord]:
        """Builds, the newest first; at most `limit`; only those in `status` when given."""
        rows = self._views.query(
            f"SELECT {_COLUMNS} FROM builds WHERE ?1 IS NULL OR status = ?1"  # noqa: S608  # a constant
            " ORDER BY first_seq DESC LIMIT ?2",
            (status, -1 if limit is None else limit),
        )
        return [_record(row) for row in rows]

    def find(self, wanted: Wanted, limit: int | None = None) -> Sequence[BuildRecord]:
        """Builds, the newest first; at most `limit`; only those that are `wanted`."""
        tests: list[str] = ["1"]
        values: list[str | int] = []
        if wanted.statuses:
            tests.append("status IN (SELECT value FROM json_each(?))")
            values.append(canonical_json(list(wanted.statuses)).decode())
        for test, value in (("started >= ?", wanted.since), ("started <= ?", wanted.until)):
            if value is not None:
                tests.append(test)
                values.append(value)
        if wanted.name is not None:
            tests.append("(name GLOB ? OR EXISTS (SELECT 1 FROM json_each(tags) WHERE value GLOB ?))")
            values += [wanted.name, wanted.name]
        for name in wanted.mentions:
            tests.append("id IN (SELECT build FROM mentions WHERE name >= ? AND name < ? || char(1114111))")
            values += [short(name), short(name)]
        rows = self._views.query(
            f"SELECT {_COLUMNS} FROM builds WHERE {' AND '.join(tests)}"  # noqa: S608  # constants
            " ORDER BY first_seq DESC LIMIT ?",
            (*values, -1 if limit is None else limit),
        )
        return [_record(row) for row in rows]

    def get(self, build: str) -> BuildRecord:
        """The build whose id is, or alone begins with, `build`. Raises InputError when there is none or several."""
        rows = self._views.query(
            f"SELECT {_COLUMNS} FROM builds WHERE substr(id, 1, length(?1)) = ?1"  # noqa: S608  # a constant
            " ORDER BY id <> ?1, first_seq DESC LIMIT 4",
            (build,),
        )
        if not build or not rows:
            raise InputError(f"no build {build[:80]!r}", hint="`refledger history` lists the builds of this root")
        if len(rows) > 1 and rows[0][0] != build:
            some = ", ".join(row[0] for row in rows)
            raise InputError(f"several builds begin with {build!r}: {some}", hint="give more of the id")
        return _record(rows[0])


def _record(row: Row) -> BuildRecord:
    values = list(row)
    values[3] = tuple(kept_json(row[3]))
    values[14] = tuple(kept_json(row[14]))
    values[17] = bool(row[17])
    return BuildRecord(*values)


def _started(cursor: sqlite3.Cursor, event: Event) -> None:
    data = event.data
    cursor.execute(
        "INSERT OR IGNORE INTO builds VALUES"
        " (?, ?, ?, ?, 'running', ?, NULL, ?, NULL, 0, 0, 0, 0, NULL, '[]', NULL, ?)",
        (
            build_of(event), text(data, "name", ""), text(data, "filename", "Dockerfile"),
            canonical_json(texts(data, "tags")).decode(), event.time, event.seq,
            mapping(data, "options").get("cache_check") is True,
        ),
    )  # fmt: skip


def _graph_defined(cursor: sqlite3.Cursor, event: Event) -> None:
    cursor.execute("UPDATE builds SET vertices = ? WHERE id = ?", (size(event.data, "vertices"), build_of(event)))


def _vertex_cached(cursor: sqlite3.Cursor, event: Event) -> None:
    cursor.execute("UPDATE builds SET cached = cached + 1 WHERE id = ?", (build_of(event),))


def _vertex_executed(cursor: sqlite3.Cursor, event: Event) -> None:
    cursor.execute("UPDATE builds SET executed = executed + 1 WHERE id = ?", (build_of(event),))


def _bytes_came(cursor: sqlite3.Cursor, event: Event) -> None:
    cursor.execute(
        "UPDATE builds SET bytes_pulled = bytes_pulled + ? WHERE id = ?", (size(event.data, "bytes"), build_of(event))
    )


def _layer_came(cursor: sqlite3.Cursor, event: Event) -> None:
    """A whole layer: what an earlier step did without has come after all."""
    _bytes_came(cursor, event)
    digest = text(event.data, "digest", "")
    cursor.execute("DELETE FROM avoided WHERE build = ? AND digest = ?", (build_of(event), digest))


def _materialized(cursor: sqlite3.Cursor, event: Event) -> None:
    """Several steps may do without the same layer; that counts once, as the one that took most of it has it."""
    for layer in objects(event.data, "unfetched"):
        cursor.execute(
            "INSERT INTO avoided VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET bytes = min(bytes, ?3)",
            (event.build or "", text(layer, "digest"), size(layer, "bytes")),
        )


def _completed(cursor: sqlite3.Cursor, event: Event) -> None:
    results = canonical_json(objects(event.data, "results")).decode()
    _end(cursor, event, "completed", None, 0)
    cursor.execute("UPDATE builds SET results = ? WHERE id = ?", (results, build_of(event)))


def _failed(cursor: sqlite3.Cursor, event: Event) -> None:
    _end(cursor, event, "failed", text(event.data, "error", ""), integer(event.data, "exit_code", 1))


def _cancelled(cursor: sqlite3.Cursor, event: Event) -> None:
    _end(cursor, event, "cancelled", text(event.data, "error", "interrupted"), 130)


def _interrupted(cursor: sqlite3.Cursor, event: Event) -> None:
    _end(cursor, event, "interrupted", text(event.data, "error", ""), None)


def _end(cursor: sqlite3.Cursor, event: Event, status: str, error: str | None, exit_code: int | None) -> None:
    cursor.execute(
        "UPDATE builds SET status = ?, ended = ?, last_seq = ?, error = ?, exit_code = ? WHERE id = ?",
        (status, event.time, event.seq, error, exit_code, build_of(event)),
    )


PROJECTION = Projection(
    name="history",
    version=3,
    tables=("builds", "avoided"),
    schema=(
        ("CREATE TABLE builds (id TEXT PRIMARY KEY, name TEXT, filename TEXT, tags TEXT, status TEXT, started INTEGER,"
         " ended INTEGER, first_seq INTEGER, last_seq INTEGER, vertices INTEGER, cached INTEGER, executed INTEGER,"
         " bytes_pulled INTEGER, error TEXT, results TEXT, exit_code INTEGER, checked INTEGER) WITHOUT ROWID"),
         "CREATE INDEX builds_first_seq ON builds (first_seq)",
         "CREATE TABLE avoided (build TEXT, digest TEXT, bytes INTEGER, PRIMARY KEY (build, digest)) WITHOUT ROWID",
    ),
    handlers={
        "BuildStarted": _started,
        "GraphDefined": _graph_defined,
        "VertexCached": _vertex_cached,
        "VertexCompleted": _vertex_executed,
        "VertexFailed": _vertex_executed,
        "LayerPulled": _layer_came,
        "PullFailed": _bytes_came,
        "LayerTocRead": _bytes_came,
        "FilesFetched": _bytes_came,
        "Materialized": _materialized,
        "BuildCompleted": _completed,
        "BuildFailed": _failed,
        "BuildCancelled": _cancelled,
        "BuildInterrupted": _interrupted,
    },
)
