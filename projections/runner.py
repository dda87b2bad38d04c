"""Views: tables folded from the log, kept in one SQLite file that anybody may delete (I1).

A projection is a schema and one pure handler per event type. The runner owns everything else: positions, batches,
several processes folding at once, damaged files, read-only roots, dumps and their comparison.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from projections import viewfile
from projections.fields import BAD_EVENT, malformed
from storage.digest import canonical_json
from storage.errors import LogError
from storage.interfaces.log import Event, EventLog

Handler = Callable[[sqlite3.Cursor, Event], None]
Row = tuple[Any, ...]
T = TypeVar("T")

BATCH = 10_000
"""Events a transaction: large enough that the commit vanishes, small enough that others get their turn."""


@dataclass(frozen=True, slots=True)
class Projection:
    """One view. `schema` is DDL that makes `tables`; a change of `version` drops and refolds it."""

    name: str
    version: int
    tables: tuple[str, ...]
    schema: tuple[str, ...]
    handlers: Mapping[str, Handler]


class Views:
    """The projections of one root. Thread-safe; processes may share the file. `path` None keeps them in memory."""

    def __init__(self, path: Path | None, projections: Sequence[Projection]) -> None:
        """Opens or makes the file; one that SQLite cannot use is thrown away. Raises DiskError."""
        self._path = path
        self._projections = tuple(projections)
        self._lock = threading.RLock()
        self._log: EventLog | None = None
        self._anchored = False
        self._source: viewfile.Source | None = None
        """The file that is read as it lies, when it is."""
        self._db = viewfile.open_views(path)

    @classmethod
    def read_only(
        cls, path: Path, log: EventLog, projections: Sequence[Projection], *, until: int | None = None
    ) -> Views:
        """Views of `log` as of event `until` (None: its end): those in the file when they are of that moment, else in
        memory, begun from a copy of the file where that is no later. Writes nothing (I13). Raises LogError."""
        views = cls(None, projections)
        views._begin(path, log, until)
        return views

    def _begin(self, path: Path, log: EventLog, until: int | None) -> None:
        self._log = log
        target = log.last_seq() if until is None else until
        source = viewfile.open_source(path)
        if source is not None:
            if not source.live and self._is_at(source, log, target):
                self._db.close()
                self._db, self._source, self._anchored = source.db, source, True
                return
            self._keep_copy(source)
        self.catch_up(log, until=target)

    def _keep_copy(self, source: viewfile.Source) -> None:
        """Go on in memory from what the file has, if it can be trusted."""
        copy = source.copied()
        source.db.close()
        self._source, self._anchored = None, False
        self._db.close()
        self._db = copy or viewfile.open_views(None)

    def _is_at(self, source: viewfile.Source, log: EventLog, target: int) -> bool:
        """Does the file hold these views of that moment of this log?"""
        try:
            return self._reached(source.db, target) and self._anchors_hold(source.db, log, target)
        except sqlite3.Error:
            return False  # damaged, or no views: the fold will tell

    # ------------------------------------------------------------ folding

    def catch_up(self, log: EventLog, *, until: int | None = None) -> int:
        """Fold what the log has beyond the stored position, up to event `until` (None: its end); returns the number of
        events folded by this call. Views that are later already begin anew when `until` is given.
        Raises LogError (which event is malformed), DiskError."""
        with self._lock:
            self._log = log
            self._anchored = self._anchored and until is None
            return self._guarded(lambda: self._fold(log, log.last_seq() if until is None else until, BATCH))

    def rebuild(self, log: EventLog) -> None:
        """Drop every view and fold it anew, in one transaction: other processes see the old views until then.
        Raises LogError, DiskError."""
        with self._lock:
            self._log = log
            self._guarded(lambda: self._rebuild(log))

    @property
    def position(self) -> int:
        """The `seq` up to which every view is folded."""
        rows = self.query("SELECT name, version, position FROM positions")
        stored = {(name, version): position for name, version, position in rows}
        return min((stored.get((view.name, view.version), 0) for view in self._projections), default=0)

    def _rebuild(self, log: EventLog) -> None:
        with self._transaction() as cursor:
            for (tables,) in cursor.execute("SELECT tables FROM positions").fetchall():
                _drop(cursor, tables.split())
            cursor.execute("DELETE FROM positions")
            self._prepare(cursor)
            self._fold_once(cursor, log, log.last_seq(), None)
        viewfile.checkpoint(self._db)

    def _fold(self, log: EventLog, target: int, batch: int) -> int:
        if not self._anchored:
            self._check_anchor(log, target)
        if self._reached(self._db, target):
            return 0
        if self._source is not None:
            self._keep_copy(self._source)
        folded = 0
        while True:
            with self._transaction() as cursor:
                self._prepare(cursor)
                folded += self._fold_once(cursor, log, target, batch)
            if self._reached(self._db, target):
                viewfile.checkpoint(self._db)
                return folded

    def _reached(self, db: sqlite3.Connection, target: int) -> bool:
        rows = db.execute("SELECT name, version, position FROM positions").fetchall()
        stored = {(name, version) for name, version, position in rows if position >= target}
        return all((view.name, view.version) in stored for view in self._projections)

    def _prepare(self, cursor: sqlite3.Cursor) -> None:
        """Make the tables of views that are new or of another version, and begin them at 0."""
        stored = {row[0]: row[1:] for row in cursor.execute("SELECT name, version, tables FROM positions").fetchall()}
        for view in self._projections:
            version, tables = stored.get(view.name, (None, ""))
            if version == view.version:
                continue
            _drop(cursor, [*tables.split(), *view.tables])
            for statement in view.schema:
                cursor.execute(statement)
            cursor.execute(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, 0, 0, ?)",
                (view.name, view.version, " ".join(view.tables)),
            )

    def _fold_once(self, cursor: sqlite3.Cursor, log: EventLog, target: int, batch: int | None) -> int:
        """Fold one batch into the views that are furthest behind, not beyond those ahead of them."""
        positions = dict(cursor.execute("SELECT name, position FROM positions").fetchall())
        start = min(positions[view.name] for view in self._projections)
        if start >= target:
            return 0
        stop = min((p for view in self._projections if (p := positions[view.name]) > start), default=target)
        stop = min(stop, target)
        behind = [view for view in self._projections if positions[view.name] == start]
        dispatch: dict[str, list[Handler]] = {}
        for view in behind:
            for name, handler in view.handlers.items():
                dispatch.setdefault(name, []).append(handler)
        folded = 0
        last: Event | None = None
        for event in islice(log.read(after=start, until=stop, types=frozenset(dispatch)), batch):
            last = event
            folded += 1
            try:
                for handler in dispatch[event.type]:
                    handler(cursor, event)
            except BAD_EVENT as error:
                raise malformed(event, error) from error
        reached = last if last is not None and folded == batch else _event_at(log, stop)
        cursor.executemany(
            "UPDATE positions SET position = ?, anchor = ? WHERE name = ?",
            [(reached.seq if reached else stop, reached.time if reached else 0, view.name) for view in behind],
        )
        return folded

    def _check_anchor(self, log: EventLog, target: int) -> None:
        """Views of another log (a root put together by hand, a log restored from an older copy) begin anew."""
        if not self._anchors_hold(self._db, log, target):
            self._discard()
        self._anchored = True

    def _anchors_hold(self, db: sqlite3.Connection, log: EventLog, target: int) -> bool:
        anchors = db.execute("SELECT DISTINCT position, anchor FROM positions WHERE position > 0").fetchall()
        for position, anchor in anchors:
            event = _event_at(log, position) if position <= target else None
            if event is None or event.time != anchor:
                return False
        return True

    # ------------------------------------------------------------ reading

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Rows of the views as folded so far. Raises LogError when the file is damaged and no log is at hand."""
        with self._lock:
            while True:
                rows = self._guarded(lambda: self._db.execute(sql, parameters).fetchall())
                if self._source is None or self._source.unchanged:
                    return rows
                self._reopen()

    def dump(self) -> bytes:
        """Every row of every view, sorted, as JSON lines: equal for equal views, whatever way they were folded."""
        with self._lock:
            return self._guarded(lambda: b"".join(self._dump(view) for view in self._projections))

    def check(self, log: EventLog) -> list[str]:
        """Names of the projections whose views differ from a fresh fold of the same events. Raises LogError."""
        with self._lock:
            self.catch_up(log)
            key = os.urandom(16)
            try:
                with self._transaction("BEGIN"):
                    until = self.position
                    here = {view.name: self._sum(view, key) for view in self._projections}
            except sqlite3.Error as error:
                if not viewfile.is_damage(error):
                    raise viewfile.explained(error, self._path) from error
                return [view.name for view in self._projections]
            with Views(None, self._projections) as fresh:
                fresh._db.close()
                fresh._db = viewfile.open_aside()
                fresh.catch_up(log, until=until)
                return [view.name for view in self._projections if fresh._sum(view, key) != here[view.name]]

    def _sum(self, view: Projection, key: bytes) -> int:
        """Equal for equal views, in whatever order their rows are kept, and without holding them. `key`: nobody can
        make other rows of the same sum without it."""
        total = 0
        for table in view.tables:
            name = table.encode()
            for row in self._db.execute(f'SELECT * FROM "{table}"'):  # noqa: S608  # a projection's own table
                total += int.from_bytes(blake2b(name + repr(row).encode(), key=key, digest_size=32).digest(), "big")
        return total

    def _dump(self, view: Projection) -> bytes:
        lines = [canonical_json({"view": view.name, "version": view.version})]
        for table in sorted(view.tables):
            cursor = self._db.execute(f'SELECT * FROM "{table}"')  # noqa: S608  # a projection's own table
            columns = [column[0] for column in cursor.description]
            rows = (canonical_json({"table": table, "row": dict(zip(columns, row, strict=True))}) for row in cursor)
            lines += sorted(rows)
        return b"\n".join(lines) + b"\n"

    # ------------------------------------------------------------ the file

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Cursor]:
        cursor = self._db.cursor()
        cursor.execute(begin)
        try:
            yield cursor
        except BaseException:
            if self._db.in_transaction:
                cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")

    def save(self, path: Path) -> None:
        """Write the views to the new file `path`, which `read_only` can begin from. Raises DiskError."""
        with self._lock:
            try:
                self._db.execute("VACUUM INTO ?", (str(path),))
            except sqlite3.Error as error:
                raise viewfile.explained(error, path) from error

    def _reopen(self) -> None:
        """A writer came, and what was read of the file without a lock is not to be trusted."""
        assert self._source is not None
        assert self._log is not None
        path = self._source.path
        self._discard()
        self._begin(path, self._log, None)

    def _discard(self) -> None:
        self._db.close()
        self._source, self._anchored = None, False
        self._db = viewfile.open_views(self._path, discard=True)

    def _guarded(self, action: Callable[[], T]) -> T:
        """Run `action`; when the file turns out to be damaged, fold a new one and run it again."""
        try:
            return action()
        except sqlite3.Error as error:
            if not viewfile.is_damage(error):
                raise viewfile.explained(error, self._path) from error
        if self._log is None:
            raise LogError("the views are damaged", where=str(self._path or ""), hint="run `refledger rebuild`")
        self._discard()
        try:
            self._fold(self._log, self._log.last_seq(), BATCH)
            return action()
        except sqlite3.Error as error:
            raise viewfile.explained(error, self._path) from error


def _event_at(log: EventLog, seq: int) -> Event | None:
    return next(iter(log.read(after=seq - 1, until=seq)), None)


def _drop(cursor: sqlite3.Cursor, tables: Sequence[str]) -> None:
    for table in dict.fromkeys(tables):
        quoted = table.replace('"', '""')
        cursor.execute(f'DROP TABLE IF EXISTS "{quoted}"')
