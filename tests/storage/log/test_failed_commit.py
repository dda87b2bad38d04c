"""A commit that failed is never there: not for whoever reads, and not for the recovery after a kill."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from eventsourcing.sqlite import SQLiteConnection

from storage.errors import LogError
from storage.interfaces.log import NewEvent
from storage.log.eventlog import SqliteEventLog

HEADERS = 96
"""Bytes of `-shm` that say, twice, up to where the `-wal` counts (SQLite's walformat.html, "WAL-Index Header")."""


def killed(path: Path) -> list[str]:
    """The types of the events that are there when all who use the log have been killed."""
    after = path.parent / "after/log.db"
    after.parent.mkdir()
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{after}{end}")
    log = SqliteEventLog(after)
    try:
        return [event.type for event in log.read()]
    finally:
        log.close()


def test_I6_what_could_not_be_flushed_does_not_come_back_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.db"
    log = SqliteEventLog(path)
    log.append(NewEvent("cache", "First", {}))
    assert log.last_seq() == 1  # from now on somebody reads, and the `-wal` stays when the writer lets go of it
    shared, real = Path(f"{path}-shm"), SQLiteConnection.commit

    def commit(connection: SQLiteConnection) -> None:
        """What SQLite leaves when fsync(2) of the `-wal` fails: all is written, and nobody is told of it."""
        before = shared.read_bytes()[:HEADERS]
        real(connection)
        with shared.open("r+b") as file:
            file.write(before)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteConnection, "commit", commit)
        with pytest.raises(LogError):
            log.append(NewEvent("cache", "Lost", {}))
    assert [event.type for event in log.read()] == ["First"]
    assert killed(path) == ["First"]
    log.append(NewEvent("cache", "Second", {}))
    assert [event.type for event in log.read()] == ["First", "Second"]
    log.close()
