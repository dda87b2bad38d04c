"""The SQLite file behind the views: opening, throwing away, copying, and what its errors mean.

Durability is not wanted here: what a crash loses is folded again from the log. But it must not be torn, as nobody
would notice: so SQLite keeps its order of writing (synchronous NORMAL), which costs two flushes where a process ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storage.errors import DiskError, HostError, RefledgerError

WAIT = 60.0
"""Seconds to wait for another process's transaction before saying so: a rebuild holds the file in one piece."""

_DISK = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}
_ANEW = "run `refledger rebuild`"
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_POSITIONS = """CREATE TABLE IF NOT EXISTS positions (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, position INTEGER NOT NULL, anchor INTEGER NOT NULL,
    tables TEXT NOT NULL) WITHOUT ROWID"""


def open_views(path: Path | None, *, discard: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode with the table of positions. An unusable file, or with `discard` any, is
    replaced by an empty one. Raises DiskError."""
    if path is None:
        return _connect(":memory:")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if discard or not _is_own(path):
                _remove(path)
            try:
                return _connect(str(path))
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                _remove(path)
                return _connect(str(path))
    except OSError as error:
        raise DiskError.of(error, "opening the views") from error
    except sqlite3.Error as error:
        raise explained(error, path) from error


def open_aside() -> sqlite3.Connection:
    """A connection to a file that has no name, which goes with it: for views that may be too large for memory."""
    return _connect("")


class Source:
    """The file as a reader takes it, touching nothing; `db` allows no writing.

    - without a filled write-ahead log it is read as it lies (`immutable`): SQLite takes no lock then, and the file
      changes only by checkpoints, so the same look before and after means that what was read is whole
    - with one, and its index, that is mapped for reading: copies are of one moment
    """

    def __init__(self, path: Path, look: tuple[int, int, int], *, live: bool) -> None:
        self.path = path
        self._look = look
        self.live = live
        how = "mode=ro&readonly_shm=1" if live else "mode=ro&immutable=1"
        self.db = sqlite3.connect(
            f"{path.resolve().as_uri()}?{how}", uri=True, isolation_level=None, check_same_thread=False
        )
        with _legible():
            self.db.execute("PRAGMA trusted_schema=OFF")  # reason: the file may come with a root from elsewhere
            self.db.execute("PRAGMA query_only=1")
            _check_plain(self.db)

    @property
    def unchanged(self) -> bool:
        """Is the file as it was when it was opened?"""
        return self.live or _look(self.path) == (self._look, False)

    def copied(self) -> sqlite3.Connection | None:
        """The content in memory, to go on with; None when it cannot be trusted."""
        copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            self.db.backup(copy)
            _prepare(copy)
            if self.unchanged:
                return copy
        except sqlite3.Error:
            pass  # reason: a damaged file is folded again
        copy.close()
        return None


def open_source(path: Path) -> Source | None:
    """The file, to be read only; None when there is none, or none that can be read without writing beside it."""
    look, live = _look(path)
    if look is None or (live and not path.with_name(path.name + "-shm").is_file()):
        return None
    if live and os.path.lexists(journal := path.with_name(path.name + "-journal")) and not journal.is_file():
        return None  # reason: SQLite would wait for a FIFO for ever
    try:
        return Source(path, look, live=live)
    except sqlite3.Error:
        return None


def checkpoint(db: sqlite3.Connection) -> None:
    """Empty the write-ahead log, so that readers of a read-only root need the main file only."""
    with suppress(sqlite3.OperationalError):  # reason: somebody reads just now; the next one does it
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def is_damage(error: sqlite3.Error) -> bool:
    """Is the file's content at fault (then it is folded again), rather than the disk or another process?"""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return False
    return code == sqlite3.SQLITE_READONLY_DBMOVED or (code & 0xFF) not in {*_DISK, *_BUSY, sqlite3.SQLITE_NOMEM}


def explained(error: sqlite3.Error, path: Path | None) -> RefledgerError:
    """The error a person can act on."""
    where = str(path) if path else ""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in _DISK:
        number = _DISK[code]
        return DiskError.of(OSError(number, os.strerror(number), where or None), "folding the views")
    if code in _BUSY:
        return HostError(
            "another process holds the views", where=where, hint="wait for `refledger rebuild` to end, then try again"
        )
    return HostError(f"the views cannot be used: {error}", where=where, hint=_ANEW)


def kept_json(text: str) -> Any:
    """The value that a view keeps as JSON. Raises HostError where it is none: SQLite has no checksums of its pages."""
    try:
        return json.loads(text)
    except (ValueError, TypeError) as error:
        raise HostError(f"the views are damaged: {error}", hint=_ANEW) from error


def _connect(target: str) -> sqlite3.Connection:
    db = sqlite3.connect(target, isolation_level=None, check_same_thread=False, timeout=WAIT)
    try:
        with _legible():
            # reason: with OFF, a power loss could leave old pages among new ones, and nothing would notice; what it
            # takes back with NORMAL are whole transactions, which are folded again
            db.execute("PRAGMA synchronous=NORMAL")
            if target not in {"", ":memory:"}:
                db.execute("PRAGMA journal_mode=WAL")
            _prepare(db)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA trusted_schema=OFF")  # reason: the file may come with a root from elsewhere
    _check_plain(db)
    db.execute("PRAGMA temp_store=MEMORY")
    db.execute(_POSITIONS)


def _check_plain(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError for what is more than tables and indexes: a view or a trigger would run in the place
    of what it stands for, a computed column whenever it is read, maybe forever."""
    found = db.execute(
        "SELECT count(*) FROM sqlite_schema WHERE type NOT IN ('table', 'index')"
        " OR sql LIKE '%virtual%' OR sql LIKE '% as%(%'"
    ).fetchone()
    if found[0]:
        raise _none_of_ours()


def _none_of_ours() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("its schema is none of ours")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


@contextmanager
def _legible() -> Iterator[None]:
    """Raises sqlite3.DatabaseError where SQLite's message cannot be read: of a broken schema it has the bytes."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _none_of_ours() from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time opens or replaces the file: its parts (main, -wal, -shm) must be of one make."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC  # in a root of a stranger it may be a link
    descriptor = os.open(path.with_name(path.name + ".lock"), flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    for part in _parts(path):
        part.unlink(missing_ok=True)


def _parts(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-journal")]


def _is_own(path: Path) -> bool:
    """Are all parts files, as far as they are there? SQLite would write where a link leads, and wait for a FIFO for
    ever."""
    return all(stat.S_ISREG(part.lstat().st_mode) for part in _parts(path) if os.path.lexists(part))


def _look(path: Path) -> tuple[tuple[int, int, int] | None, bool]:
    """What tells one state of the file from another, None when it is missing; is there an unfinished log beside it?"""
    try:
        wal = path.with_name(path.name + "-wal")
        live = wal.exists() and wal.stat().st_size > 0
        found = path.stat()
    except OSError:
        return None, False
    if not stat.S_ISREG(found.st_mode):
        return None, False  # to open a FIFO waits for ever
    return (found.st_ino, found.st_size, found.st_mtime_ns), live
