"""The log's SQLite file as readers see it: how it is opened, its format, its failures in words.

The eventsourcing library is not imported here: a command that only reads the log must start quickly.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote_from_bytes

from storage.errors import DiskError, LogDamaged, LogError, LogTooNew, RefledgerError
from storage.log.detached import SCHEMA as PAYLOADS
from storage.regular import check_database

if TYPE_CHECKING:
    from storage.temporary import TemporaryPlace

FORMAT = 2  # PRAGMA user_version: raise it when older versions could no longer read what is written; 2: payloads
APPLICATION = 0x52464C47  # PRAGMA application_id ("RFLG"): tells a log from any other SQLite file
LOCK_TIMEOUT = 5  # seconds that SQLite itself waits for a lock
LARGEST = 256 * 1024  # bytes of a row that is an event at most: four times what its state may have
PATIENCE = 180.0  # seconds after which a held lock is an error; a commit takes milliseconds, so its holder is stuck
KEEP = "keep it for analysis; restore a backup, or use another root"

EVENTS = (
    ("CREATE TABLE events (rowid INTEGER PRIMARY KEY AUTOINCREMENT, originator_id TEXT NOT NULL, "
    "originator_version INTEGER NOT NULL, topic TEXT NOT NULL, state BLOB NOT NULL, "
    "UNIQUE (originator_id, originator_version))"),
    ("CREATE TRIGGER events_no_update BEFORE UPDATE ON events "
    "BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END"),
    ("CREATE TRIGGER events_no_delete BEFORE DELETE ON events "
    "BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END"),
)
_OURS = frozenset({*EVENTS, *PAYLOADS, "CREATE TABLE sqlite_sequence(name,seq)", None})
"""All that the schema of a log may say; None is what an index that belongs to a table says."""

T = TypeVar("T")


def uri(path: Path, query: str) -> str:
    """`path` as SQLite's URI, every special character quoted."""
    return f"file:{quote_from_bytes(os.fsencode(path.absolute()))}?{query}"


_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
"""Codes of errors that pass. SQLITE_PROTOCOL: others were always quicker, as when one of them was killed just now."""


def patiently(path: Path, doing: str, action: Callable[[], T]) -> T:
    """`action()`, again while another process holds the lock. Its sqlite3 errors become LogError or DiskError.
    `action` must leave no transaction behind when it raises."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return action()
        except sqlite3.Error as error:
            if _code(error) not in _LOCKED or time.monotonic() > deadline:
                raise explain(error, path, doing) from error
            time.sleep(0.02)


def explain(error: sqlite3.Error, path: Path, doing: str) -> RefledgerError:
    """What `error` means for a person; `doing` names the action, as in "writing the event log"."""
    code, where = _code(error), str(path)
    if not code and str(error).startswith("Could not decode"):  # sqlite3's own, which quotes what it cannot
        code = sqlite3.SQLITE_CORRUPT
    if number := _errno(code, path):
        return DiskError.of(OSError(number, os.strerror(number), where), doing)
    locked = ("another process has kept it locked for minutes", f"see which one: fuser -v {where}")
    words = {
        **dict.fromkeys(_LOCKED, locked),
        sqlite3.SQLITE_CORRUPT: ("the file is damaged", KEEP),
        sqlite3.SQLITE_TOOBIG: ("the file is damaged: there is more in it than an event may have", KEEP),
        sqlite3.SQLITE_NOTADB: ("the file is not an event log", "restore a backup, or use another root"),
        sqlite3.SQLITE_READONLY: ("it may only be read", "set REFLEDGER_ROOT to a writable place"),
        sqlite3.SQLITE_PERM: ("permission denied", "set REFLEDGER_ROOT to a place you may write"),
        sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "check that its directory exists and may be used"),
        sqlite3.SQLITE_IOERR: (f"the disk failed ({name(error)})", "see the kernel's messages; check the disk"),
    }
    what, hint = words.get(code, (str(error), ""))
    kind = LogDamaged if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_TOOBIG} else LogError
    return kind(f"{doing}: {what}", where=where, hint=hint)


def name(error: sqlite3.Error) -> str:
    """SQLite's name of the error, such as SQLITE_IOERR_WRITE."""
    return str(getattr(error, "sqlite_errorname", None) or error)


def check_format(connection: sqlite3.Connection, path: Path) -> bool:
    """Is this a log (True), or a file with nothing in it yet? Raises LogTooNew, LogError for anything else."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == APPLICATION and version > FORMAT:
        raise LogTooNew(
            f"this event log has format {version}, and this Refledger knows formats up to {FORMAT}",
            where=str(path),
            hint="it was written by a newer Refledger: use that one",
        )
    if application == APPLICATION and version > 0:
        # reason: a view or a trigger in a log from elsewhere would run in the place of what it stands for, for ever
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_schema"):
            if sql not in _OURS:
                what = f"there is a {kind!s:.20} in this event log, {name!s:.80}, that no Refledger made"
                raise LogError(what, where=str(path), hint="it was changed by hand: restore a backup")
        return True
    if application == 0 and version == 0 and not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
        return False
    raise LogError("this SQLite file is not an event log", where=str(path), hint="set REFLEDGER_ROOT to another place")


class LogReader:
    """Queries on the log through a connection of its own, so that no writer is in the way. Thread-safe.

    `read_only` writes nothing beside the log either, neither `-wal` nor `-shm`:
    - no `-wal`: nobody has the log open, the file is all there is (`immutable`); whether that stayed so is checked
      after every query, since SQLite takes no lock then
    - `-wal` and `-shm`: the shared index is mapped for reading only, whether its writer lives or was killed
    - `-wal` alone: SQLite would have to make the index, so the two files are read from a private copy
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._copy: TemporaryPlace | None = None
        self._manner: tuple[Any, ...] = ()
        self._closed = False
        self._tolerant = False

    def tolerate(self) -> None:
        """Read what there is of a file that is shorter than it says: SQLite refuses all of it otherwise."""
        with self._lock:
            self._disconnect()
            self._tolerant = True

    def query(self, sql: str, parameters: Sequence[Any] = (), largest: int = LARGEST) -> list[tuple[Any, ...]]:
        """All rows, of which none may have more than `largest` bytes. Raises LogError, DiskError."""

        def act(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            # reason: rows of a log from elsewhere can share their pages, so that a small file has more than any memory
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, largest)
            return connection.execute(sql, parameters).fetchall()

        return self._run("reading the event log", act)

    def is_empty_file(self) -> bool:
        """Is there nothing in the file yet, not even the table? Raises LogTooNew, LogError."""
        return not self._run("opening the event log", lambda connection: check_format(connection, self._path))

    def close(self) -> None:
        """Let go of the file. Queries raise LogError from now on."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _run(self, doing: str, action: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                return patiently(self._path, doing, lambda: self._attempt(action))
            except UnicodeDecodeError as error:  # SQLite's message has bytes of the file in it, as of a broken schema
                raise LogDamaged(f"{doing}: the file is damaged", where=str(self._path), hint=KEEP) from error

    def _attempt(self, action: Callable[[sqlite3.Connection], T]) -> T:
        while True:
            if self._closed:
                raise LogError("the event log is closed", where=str(self._path))
            manner = self._look()
            try:
                result = action(self._connect(manner))
            except (sqlite3.Error, UnicodeDecodeError):
                self._disconnect()
                if self._look() == manner:
                    raise
            else:
                if self._look() == manner:
                    return result
            # A writer came or went under a reader that takes no lock: what was read is not to be trusted.

    def _look(self) -> tuple[Any, ...]:
        """How the file is to be opened now, and what must not change while it is read without a lock."""
        try:
            main = self._path.stat()
        except OSError as error:
            raise DiskError.of(error, "opening the event log") from error
        if not self._read_only:
            return "shared", main.st_ino
        state = (main.st_ino, main.st_size, main.st_mtime_ns)
        try:
            wal = self._path.with_name(self._path.name + "-wal").stat()
        except OSError:
            return "immutable", *state
        if wal.st_size == 0:
            return "immutable", *state
        if self._path.with_name(self._path.name + "-shm").exists():
            return "mapped", main.st_ino
        return "copied", *state, wal.st_size, wal.st_mtime_ns

    def _connect(self, manner: tuple[Any, ...]) -> sqlite3.Connection:
        if self._connection is not None and self._manner == manner:
            return self._connection
        self._disconnect()
        check_files(self._path)
        query = {"shared": "mode=rw", "mapped": "mode=ro&readonly_shm=1", "immutable": "mode=ro&immutable=1"}
        path, how = self._path, query.get(manner[0], "mode=rw")
        if manner[0] == "copied":
            path = self._copied()
        connection = sqlite3.connect(
            uri(path, how), uri=True, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
        connection.execute("PRAGMA query_only = 1")
        connection.execute("PRAGMA trusted_schema = OFF")
        if self._tolerant:
            connection.execute("PRAGMA writable_schema = 1")  # which nothing is written through: see the line above
        self._connection, self._manner = connection, manner
        return connection

    def _copied(self) -> Path:
        import shutil  # reason: slow to import, and this is rare

        from storage.temporary import TemporaryPlace

        try:
            size = sum(path.stat().st_size for path in (self._path, self._path.with_name(self._path.name + "-wal")))
            self._copy = TemporaryPlace()
            if size > shutil.disk_usage(self._copy.path).free // 2:  # a sparse file has any size
                raise OSError(errno.ENOSPC, f"no room to copy {size} bytes", str(self._copy.path))
            path = self._copy.path / "log.db"
            shutil.copyfile(self._path, path)
            shutil.copyfile(self._path.with_name(self._path.name + "-wal"), path.with_name("log.db-wal"))
        except OSError as error:
            raise DiskError.of(error, "reading the event log") from error
        return path

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._copy is not None:
            self._copy.remove()
            self._copy = None


def check_files(path: Path) -> None:
    """Raises LogError where SQLite would wait for ever, for what is no file."""
    try:
        check_database(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise DiskError.of(error, "opening the event log") from error
        hint = "restore a backup, or use another root"
        raise LogError("this is no file", where=str(error.filename), hint=hint) from error


def check_writable(path: Path) -> None:
    """Raises DiskError when the log could only be read: SQLite would open it all the same, and say so at the first
    append."""
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        number = _errno(sqlite3.SQLITE_READONLY, path) or errno.EACCES
        raise DiskError.of(OSError(number, os.strerror(number), str(path)), "opening the event log")


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 when the error is the sqlite3 module's own."""
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _errno(code: int, path: Path) -> int:
    """Why the file system refused, which SQLite's code does not say; 0 when it is not the file system."""
    if code == sqlite3.SQLITE_FULL:
        return errno.ENOSPC
    if code not in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return 0
    if path.exists() and not os.access(path, os.R_OK):
        return errno.EACCES
    try:
        disk = os.statvfs(path.parent)
    except OSError as error:
        return error.errno or 0
    if disk.f_flag & os.ST_RDONLY:
        return errno.EROFS
    if disk.f_bavail * disk.f_frsize < 256 * 1024:
        return errno.ENOSPC
    return 0 if os.access(path.parent, os.W_OK) else errno.EACCES
