"""Logs that a disk, or somebody, damaged: as far as they can be read they are, and one line says the rest."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.errors import DiskError, LogDamaged, LogError
from storage.interfaces.log import Event
from storage.log import codec, recorder
from storage.log.eventlog import SqliteEventLog
from storage.log.logfile import explain
from tests.storage.log.test_logfile import left_open, new, written
from tests.storage.test_refused import refusing

PAGE = 4096


def _renumber(path: Path, event: int, number: int) -> None:
    """Have event `event` of a small log say that it is `number`, as no SQLite would write it: below 128 each."""
    data = bytearray(path.read_bytes())
    for start in range(0, len(data), PAGE):
        page = data[start : start + PAGE]
        if page[0] != 13:  # the leaf of a table (SQLite's file format, 1.6)
            continue
        cells = [int.from_bytes(page[8 + 2 * at : 10 + 2 * at]) for at in range(int.from_bytes(page[3:5]))]
        rows = [cell + (2 if page[cell] & 0x80 else 1) for cell in cells]  # behind the size of the cell
        if len(cells) > 2 and [page[row] for row in rows] == list(range(1, len(cells) + 1)):
            data[start + rows[event - 1]] = number
            path.write_bytes(data)
            return
    raise AssertionError("no such page")


def test_what_lies_behind_a_page_that_is_none_is_left_out_and_said(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db", 2000)
    data = bytearray(path.read_bytes())
    pages = [start for start in range(0, len(data), PAGE) if data[start] == 13]
    data[pages[len(pages) // 2]] = 77
    path.write_bytes(data)
    with closing(SqliteEventLog(path, read_only=True)) as log:
        assert log.last_seq() == 2000, "the end of the file is as it was"
        seen: list[Event] = []
        with pytest.raises(LogDamaged, match="the file is damaged: events after event") as caught:
            seen.extend(log.read())
        assert 100 < caught.value.sound < 1900
        assert [event.seq for event in seen] != []
        assert [event.seq for event in log.read(until=10)] == list(range(1, 11))
        assert log.last_seq() == caught.value.sound
    with closing(SqliteEventLog(path, read_only=True)) as log:
        log.end_before_damage()
        assert [event.seq for event in log.read()] == list(range(1, caught.value.sound + 1))
    with closing(SqliteEventLog(path)) as log, pytest.raises(LogDamaged, match="reading the event log"):
        list(log.read())


def test_events_that_are_found_where_none_of_their_number_can_be_end_the_log(tmp_path: Path) -> None:
    """A search in a page whose rows are out of order finds other ones than reading it from its start."""
    path = written(tmp_path / "log.db", 10)
    _renumber(path, 5, 2)
    with closing(SqliteEventLog(path, read_only=True)) as log:
        log.end_before_damage()
        assert [event.seq for event in log.read()] == [1, 2, 3, 4]
        assert [event.seq for event in log.read(after=3)] == []
        assert log.damage is not None


def test_rows_that_go_in_circles_are_no_endless_log(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db", 10)
    _renumber(path, 10, 2)
    with closing(SqliteEventLog(path, read_only=True)) as log, pytest.raises(LogError, match="events are out of order"):
        list(log.rows(0, 10))


def test_reading_ends_quietly_before_an_event_that_is_none(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db", 5)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TRIGGER events_no_update")
        db.execute("UPDATE events SET state = x'7b7d' WHERE rowid = 4")
    with closing(SqliteEventLog(path, read_only=True)) as log:
        log.end_before_damage()
        assert [event.seq for event in log.read()] == [1, 2, 3]
        assert log.damage is not None
        assert log.damage.sound == 3
        kind = next(log.read()).type
        assert [len(list(log.read(types=frozenset({name})))) for name in (kind, "Other")] == [3, 0]


@pytest.mark.parametrize(
    "state", [b'{"t":"now","d":{}}', b'{"t":1,"d":[]}', b'{"t":1,"b":2,"d":{}}', b'{"t":1,"c":"x","d":{}}',
              b'{"t":-1,"d":{}}', b'{"t":1,"v":{},"d":{}}'],
)  # fmt: skip
def test_a_state_of_other_types_is_none(state: bytes) -> None:
    with pytest.raises(TypeError, match="it is no event"):
        codec.decode((1, "cache", 1, "T", state))


def test_what_a_payload_is_not_made_of_is_named_behind_what_it_is_made_of() -> None:
    with pytest.raises(ValueError, match=r"\.bad is 'tuple' \(1,\)"):
        codec.encode(new(good={"a": [1]}, bad=(1,)))


# ---------------------------------------------------------------- files and disks


def test_what_stands_in_the_place_of_a_log_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "log.db")
    for read_only in (True, False):
        with pytest.raises(LogError, match="this is no file"):
            SqliteEventLog(tmp_path / "log.db", read_only=read_only)
    (tmp_path / "log.db").unlink()
    path = written(tmp_path / "log.db")
    monkeypatch.setattr("storage.log.logfile.check_database", refusing(errno.EACCES))
    with pytest.raises(DiskError, match="opening the event log: Permission denied"):
        SqliteEventLog(path, read_only=True)


def test_a_log_that_there_is_no_room_to_copy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_open(tmp_path / "root", shm=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(DiskError, match="reading the event log: no room to copy"):
        SqliteEventLog(path, read_only=True)
    monkeypatch.undo()
    with closing(SqliteEventLog(path, read_only=True)) as log:
        assert log.last_seq() == 10


def test_a_database_that_cannot_be_kept_safe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that gives no shared memory."""
    connect = sqlite3.connect
    monkeypatch.setattr("storage.log.recorder.sqlite3.connect", lambda name, **more: connect(":memory:"))
    with pytest.raises(LogError, match=r"SQLite cannot keep it safe here \(journal_mode memory"):
        recorder.create(tmp_path / "log.db")


def test_a_log_that_is_there_is_not_made_again_and_erasing_needs_its_file(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db")
    before = path.read_bytes()
    recorder.create(path)
    assert path.read_bytes() == before
    with pytest.raises(DiskError, match="erasing from the event log"):
        recorder._flush(tmp_path / "none")


def failure(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode, error.sqlite_errorname = code, "SQLITE_IOERR_WRITE"
    return error


DISKS: dict[str, tuple[dict[str, Any], str]] = {
    "read-only": ({"f_flag": os.ST_RDONLY, "f_bavail": 10**6, "f_frsize": 4096}, "Read-only file system"),
    "full": ({"f_flag": 0, "f_bavail": 10, "f_frsize": 4096}, "No space left on device"),
    "failing": ({"f_flag": 0, "f_bavail": 10**6, "f_frsize": 4096}, r"the disk failed \(SQLITE_IOERR_WRITE\)"),
}


@pytest.mark.parametrize("disk", DISKS)
def test_why_a_disk_refused_is_asked_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str) -> None:
    status, said = DISKS[disk]
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**status))
    error = explain(failure(sqlite3.SQLITE_IOERR | 3 << 8), tmp_path / "log.db", "writing the event log")
    with pytest.raises(type(error), match=f"writing the event log: {said}"):
        raise error


def test_a_disk_that_does_not_answer_and_a_file_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.db"
    monkeypatch.setattr(os, "statvfs", refusing(errno.EIO))
    assert "Input/output error" in str(explain(failure(sqlite3.SQLITE_CANTOPEN), path, "x"))
    path.touch()
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert "Permission denied" in str(explain(failure(sqlite3.SQLITE_CANTOPEN), path, "x"))
    assert "No space left" in str(explain(failure(sqlite3.SQLITE_FULL), path, "x"))
    assert str(explain(sqlite3.ProgrammingError("odd"), path, "x")) == f"{path}: x: odd"
