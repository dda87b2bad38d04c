"""RPM's database of installed packages in SQLite, as somebody wrote it who may be nobody's friend.

Each row of its one table that matters is a header: 4 bytes each for the entries of its index and the bytes of its
store, then the index (tag, type, offset in the store, count: 4 bytes each), then the store; big endian, strings end
with a zero byte. Sources: rpm 4.16 to 4.20, lib/backend/sqlite.c, docs/manual/format_header.md and tags.md.
"""

from __future__ import annotations

import os
import re
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO

from engine.attest.databases import Entry

HEADER = 32 << 20
"""Bytes of a header at most; the kernel's, with the names of all its files, have a few million."""
_SCHEMA = 64 << 10
"""Bytes of the definition of one table at most."""
_STEPS, _FEW, _MANY = 1000, 50, 5000
"""Instructions of SQLite's machine between two looks, and how many looks the schema and the packages have: a limit of
time that is the same on each machine. A package takes five instructions, a table about ten."""
_INDEX = struct.Struct(">4I")
_ENTRIES = 0xFFFF
_STRING, _INT32, _I18N = 6, 4, 9
_NAME, _VERSION, _RELEASE, _EPOCH, _LICENSE, _ARCH = 1000, 1001, 1002, 1003, 1014, 1022
_TAGS = frozenset({_NAME, _VERSION, _RELEASE, _EPOCH, _LICENSE, _ARCH})
_VALUE = 1000
"""Bytes of a string that are looked at: more than any that is taken has."""
_DEFINED = re.compile(r"CREATE (?:TABLE|(?:UNIQUE )?INDEX) .*", re.DOTALL)
_PACKAGES = re.compile(
    r"CREATE TABLE ['\"]?Packages['\"]? \( ?hnum INTEGER PRIMARY KEY AUTOINCREMENT, ?blob BLOB NOT NULL ?\)"
)
_DISK = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM})
_ACTIONS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ})


_NONE: Entry = ("", "", "", "")


def rpm_packages(file: BinaryIO) -> Iterator[Entry]:
    """The installed packages, their version as `[epoch:]version-release`. Reads `file`, which has a descriptor, and
    nothing beside it. Raises ValueError for what is no such database, maybe after some packages, and OSError."""
    try:
        for header in _headers(file):
            entry = _entry(header)
            if entry[0] != "gpg-pubkey":  # a key that rpm trusts, without files
                yield entry
    except (sqlite3.Error, UnicodeDecodeError) as error:  # UnicodeDecodeError: of SQLite's message, which quotes
        if (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DISK:
            raise OSError(str(error)) from error
        raise ValueError("no RPM database, or a damaged one") from error


def _headers(file: BinaryIO) -> Iterator[bytes]:
    left = os.fstat(file.fileno()).st_size
    # immutable: no lock, no log of changes and no journal of the stranger's that would be written back
    with closing(sqlite3.connect(f"file:/proc/self/fd/{file.fileno()}?mode=ro&immutable=1", uri=True)) as db:
        db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _SCHEMA)
        db.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _SCHEMA)
        db.text_factory = lambda data: data.decode("utf-8", "replace")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        _look(db, _FEW)
        _check_schema(db)
        db.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ACTIONS else sqlite3.SQLITE_DENY)
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, HEADER)
        _look(db, _MANY)
        for (header,) in db.execute("SELECT blob FROM main.Packages NOT INDEXED ORDER BY hnum"):
            # reason: rows can share their pages, so that a small file has more than anybody can read
            left -= len(header) if isinstance(header, bytes) else 0
            if left < 0:
                raise ValueError("an RPM database of more bytes than its file has")
            yield header if isinstance(header, bytes) else b""


def _look(db: sqlite3.Connection, looks: int) -> None:
    """End what is executed from now on after so many looks at it."""
    counted = iter(range(looks))
    db.set_progress_handler(lambda: next(counted, None) is None, _STEPS)


def _check_schema(db: sqlite3.Connection) -> None:
    """Raises ValueError unless there are only tables and indexes, and the table of packages is as rpm defines it: a
    view, a virtual table or a computed column would run what the stranger wrote."""
    defined = [str(sql) for (sql,) in db.execute("SELECT sql FROM main.sqlite_master WHERE sql IS NOT NULL")]
    if not all(map(_DEFINED.fullmatch, defined)) or not any(map(_PACKAGES.fullmatch, defined)):
        raise ValueError("an SQLite database with other tables than rpm makes")


def _entry(header: bytes) -> Entry:
    found = _values(header)
    version, release = str(found.get(_VERSION, "")), str(found.get(_RELEASE, ""))
    # reason: rpm allows neither sign in them, and both separate: a version that has one would be taken for another
    if not version or not release or re.search("[:-]", version + release):
        return _NONE
    epoch = f"{found[_EPOCH]}:" if _EPOCH in found else ""
    return (
        str(found.get(_NAME, "")), f"{epoch}{version}-{release}", str(found.get(_ARCH, "")),
        str(found.get(_LICENSE, "")),
    )  # fmt: skip


def _values(header: bytes) -> dict[int, str | int]:
    """The first value of each tag that matters; of what is no header none."""
    if len(header) < 8:
        return {}
    entries, store = struct.unpack_from(">2I", header)
    start = 8 + entries * _INDEX.size
    if entries > _ENTRIES or start + store != len(header):
        return {}
    found: dict[int, str | int] = {}
    for tag, kind, offset, count in _INDEX.iter_unpack(memoryview(header)[8:start]):
        if tag not in _TAGS or tag in found or not count or offset >= store:
            continue
        at = start + offset
        if kind in (_STRING, _I18N):  # of a text in several languages the first is in none
            end = header.find(b"\0", at)
            found[tag] = header[at : min(end, at + _VALUE)].decode("utf-8", "replace") if end >= 0 else ""
        elif kind == _INT32 and offset + 4 <= store:
            found[tag] = int.from_bytes(header[at : at + 4], "big")
    return found
