"""Writing the log through the eventsourcing library's SQLite recorder: the only file that knows the library.

Importing it takes about 60 ms, so the log imports it when something is to be written.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from eventsourcing.sqlite import (
    SQLiteApplicationRecorder,
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteCursor,
    SQLiteDatastore,
)

from storage.durable import fsync_directory
from storage.errors import DiskError, LogError
from storage.interfaces.log import Event, Payload
from storage.log import codec
from storage.log.detached import SCHEMA, erased, ids
from storage.log.logfile import (
    APPLICATION,
    EVENTS,
    FORMAT,
    LOCK_TIMEOUT,
    check_files,
    check_format,
    patiently,
    uri,
)

_WRITING = "writing the event log"
_ROWS = 25  # rows a statement
_READERS = 10.0  # seconds that a reader may need to end a query
_STREAMS = 20_000  # streams whose last version is kept in memory

StoredRow = tuple[str, int, str, bytes]  # stream, version, type, state


class LogRecorder(SQLiteApplicationRecorder):
    """The library's recorder on a table of ours.

    AUTOINCREMENT: the stock table reuses the ids of deleted tail rows and renumbers when dumped. The triggers refuse
    what an append-only log never does.
    """

    def __init__(self, path: Path, mode: str) -> None:
        """`mode`: SQLite's `rw` or `rwc`."""
        store = SQLiteDatastore(uri(path, f"mode={mode}"), originator_id_type="text")
        store.pool = _Pool(path, mode)
        super().__init__(store, events_table_name="events")
        self.insert_events_statement = (
            "INSERT INTO events (originator_id, originator_version, topic, state) VALUES (?,?,?,?)"
        )

    def construct_create_table_statements(self) -> list[str]:
        """Table, triggers and format, in one transaction."""
        return [
            *EVENTS,
            *SCHEMA,
            f"PRAGMA application_id = {APPLICATION}",
            f"PRAGMA user_version = {FORMAT}",
        ]

    @contextmanager
    def transaction(self) -> Iterator[SQLiteCursor]:
        """A transaction that holds the write lock from its start (reading first could end in "database is locked")
        and is on disk when the context ends. Raises sqlite3.Error, with nothing written."""
        with self.datastore.get_connection(commit=True) as connection:
            cursor = connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                try:
                    connection.commit()
                except sqlite3.Error:
                    connection.rollback()
                    _write_over(connection)
                    raise
            except BaseException:
                connection.rollback()
                raise

    def insert(self, cursor: SQLiteCursor, rows: Sequence[StoredRow]) -> int:
        """Insert `(stream, version, type, state)` within `transaction`; returns the last seq.

        The library runs one statement a row. Several rows a statement cost half of that, and a third where other
        threads are busy: the interpreter lock changes hands once a statement."""
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            statement = self.insert_events_statement + ",(?,?,?,?)" * (len(some) - 1)
            cursor.execute(statement, [value for row in some for value in row])
        cursor.execute("SELECT last_insert_rowid()")
        return int(cursor.fetchone()[0])

    def insert_payloads(self, cursor: SQLiteCursor, rows: Sequence[tuple[int, bytes, bytes]]) -> None:
        """Insert `(id, salt, data)` within `transaction`, in a log of an older format after making it one of ours."""
        cursor.execute("PRAGMA user_version")
        if cursor.fetchone()[0] < FORMAT:
            for statement in (*SCHEMA, f"PRAGMA user_version = {FORMAT}"):
                cursor.execute(statement)
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            statement = "INSERT INTO payloads VALUES (?,?,?)" + ",(?,?,?)" * (len(some) - 1)
            cursor.execute(statement, [value for row in some for value in row])

    def erase(self, cursor: SQLiteCursor, event: int, payload: Payload) -> None:
        """Write over `payload`, within `transaction`; `event` tells of it. One that is gone stays as it is."""
        cursor.execute("SELECT data FROM payloads WHERE id = ?", (payload.id,))
        row = cursor.fetchone()
        if row is not None and row[0][:1] != b"\0":
            cursor.execute(
                "UPDATE payloads SET salt = ?, data = ? WHERE id = ?", (*erased(row[0], event), payload.id)
            )


def _write_over(connection: SQLiteConnection) -> None:
    """Have nothing of a commit that failed come back. When its flush failed, the `-wal` has all of it, where nobody
    reads on but the recovery after a kill, which would believe it: a commit that changes nothing is put there."""
    # reason for a cursor that is closed: a statement that failed keeps the file open
    with suppress(sqlite3.Error), connection.cursor() as cursor:
        [version] = cursor.execute("PRAGMA user_version").fetchone()
        cursor.execute(f"PRAGMA user_version = {version}")


class _Pool(SQLiteConnectionPool):
    """A pool of one connection (reading goes through LogReader, where a queued writer does not block it), which keeps
    what it commits, and prepares a statement once (the library's keep a single prepared statement)."""

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        super().__init__(db_name=uri(path, f"mode={mode}"), lock_timeout=LOCK_TIMEOUT, pool_size=1, max_overflow=0)

    def _create_connection(self) -> SQLiteConnection:
        """Raises sqlite3.Error, LogError."""
        check_files(self._path)
        connection = sqlite3.connect(
            self.db_name, uri=True, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            journal = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA secure_delete = ON")  # of what is written over and freed, nothing stays
            synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
            if (journal, synchronous) != ("wal", 2):
                raise LogError(
                    f"SQLite cannot keep it safe here (journal_mode {journal}, synchronous {synchronous})",
                    where=str(self._path),
                    hint="set REFLEDGER_ROOT to a local file system",
                )
        except BaseException:
            connection.close()
            raise
        connection.row_factory = sqlite3.Row
        return SQLiteConnection(connection, None)


class LogWriter:
    """Appends groups of submissions, one transaction each. For one thread; opens the file when first used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recorder: LogRecorder | None = None
        self._head = -1  # seq of the last event that the two below account for
        self._time = 0
        self._versions: dict[str, int] = {}

    def commit(self, group: Sequence[tuple[int, Sequence[codec.Encoded]]]) -> list[list[Event]]:
        """Append every submission `(time, events)` of `group`, in order; returns their events once they are durable.
        Raises LogError, DiskError, with nothing written."""
        return patiently(self._path, _WRITING, lambda: self._attempt(group))

    def redact(self, now: int, said: Sequence[tuple[codec.Encoded, Sequence[Payload]]]) -> list[Event]:
        """Append these events at `now` (UTC ns), and erase what each tells of, in one transaction; then see that the
        file has it no more. Raises LogError, DiskError."""
        group = [(now, [event for event, _ in said])]
        gone = [payloads for _, payloads in said]
        try:
            events = patiently(self._path, _WRITING, lambda: self._attempt(group, gone)[0])
            self._truncate()
        finally:
            self.close()
        return events

    def _truncate(self) -> None:
        """Bring the file up to date and empty its `-wal`, where earlier states of pages may lie. A process that dies
        before leaves that to whoever closes the log next, as SQLite does it then."""
        assert self._recorder is not None
        until = time.monotonic() + _READERS
        with self._recorder.datastore.get_connection(commit=False) as connection:
            cursor = connection.cursor()
            while True:
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                if not cursor.fetchone()[0]:
                    break
                if time.monotonic() > until:
                    raise LogError(
                        "erased, but another process reads an earlier state of the file, which keeps that on the disk",
                        where=str(self._path),
                        hint="it is gone when that process has ended and the log is opened again",
                    )
                time.sleep(0.05)
            _flush(Path(f"{self._path}-wal"))

    def close(self) -> None:
        """Let go of the file; `commit` opens it again."""
        self._head = -1
        if self._recorder is not None:
            self._recorder.datastore.close()
            self._recorder = None

    def _attempt(
        self, group: Sequence[tuple[int, Sequence[codec.Encoded]]], gone: Sequence[Sequence[Payload]] = ()
    ) -> list[list[Event]]:
        try:
            return self._commit(group, gone)
        except BaseException:
            # a connection that met a full or failing disk is not to be trusted; and for one that could not be made
            # the library's pool waits to have it returned
            self.close()
            raise

    def _commit(
        self, group: Sequence[tuple[int, Sequence[codec.Encoded]]], gone: Sequence[Sequence[Payload]]
    ) -> list[list[Event]]:
        """`gone`: what the first of the events tell of."""
        if self._recorder is None:
            self._recorder = LogRecorder(self._path, "rw")
        results: list[list[Event]] = []
        rows: list[StoredRow] = []
        apart: list[tuple[int, bytes, bytes]] = []
        with self._recorder.transaction() as cursor:
            self._catch_up(cursor)
            seq, last, versions = self._head, self._time, self._versions
            self._head = -1  # until the transaction has ended well, nothing is known
            for submitted, events in group:
                last = max(last, submitted)
                result: list[Event] = []
                for stream, name, body, state, payloads in events:
                    seq += 1
                    version = (versions.get(stream) or self._version(cursor, stream)) + 1
                    versions[stream] = version
                    rows.append((stream, version, name, codec.stamp(body, last)))
                    result.append(codec.event_of(seq, last, stream, version, name, state))
                    if payloads:
                        apart += [(number, *payload) for number, payload in enumerate(payloads, ids(seq))]
                results.append(result)
            if (stored := self._recorder.insert(cursor, rows)) != seq:
                raise LogError(f"event {stored} would follow event {seq - len(rows)}", where=str(self._path))
            if apart:
                self._recorder.insert_payloads(cursor, apart)
            told = (event for result in results for event in result)
            for event, payload in ((event, one) for event, some in zip(told, gone, strict=False) for one in some):
                self._recorder.erase(cursor, event.seq, payload)
        self._head, self._time = seq, last
        return results

    def _catch_up(self, cursor: SQLiteCursor) -> None:
        """Forget what is cached when another process has written. Holds the write lock, so it stays true."""
        cursor.execute("SELECT rowid, state FROM events ORDER BY rowid DESC LIMIT 1")
        row = cursor.fetchone()
        head = row[0] if row else 0
        if head != self._head or len(self._versions) > _STREAMS:
            self._versions.clear()
            try:
                self._time = codec.time_of(row[1]) if row else 0
            except codec.UNREADABLE as error:
                raise LogError(f"event {head} is damaged", where=str(self._path)) from error
        self._head = head

    def _version(self, cursor: SQLiteCursor, stream: str) -> int:
        cursor.execute(
            "SELECT originator_version FROM events WHERE originator_id = ? ORDER BY originator_version DESC LIMIT 1",
            (stream,),
        )
        row = cursor.fetchone()
        return row[0] if row else 0


def _flush(path: Path) -> None:
    """SQLite does not: after a power loss the file would be as long as it was. Raises DiskError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise DiskError.of(error, "erasing from the event log") from error


def create(path: Path) -> None:
    """Make the log at `path`, durably, unless another process just did. Raises LogError, DiskError."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DiskError.of(error, "creating the event log") from error
    try:
        # The directory is its own lock file: it goes with the process, and nothing is left to sweep.
        fcntl.flock(directory, fcntl.LOCK_EX)
        patiently(path, "creating the event log", lambda: _create(path))
        fsync_directory(path.parent)
    finally:
        os.close(directory)


def _create(path: Path) -> None:
    recorder = LogRecorder(path, "rwc")
    try:
        with recorder.transaction() as cursor:
            if not check_format(cursor.sqlite_cursor.connection, path):
                recorder._create_table(cursor)  # noqa: SLF001  reason: the library's, for its subclasses
    finally:
        recorder.datastore.close()
