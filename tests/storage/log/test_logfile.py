"""The log's file: read without a trace, refused when it is not what it should be, in one clear line."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from storage.errors import DiskError, HostError, LogError, LogTooNew
from storage.interfaces.log import NewEvent
from storage.log.eventlog import SqliteEventLog
from storage.log.logfile import patiently
from tests.state import state_of

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


def new(**data: object) -> NewEvent:
    return NewEvent("cache", "T", data)


def written(path: Path, count: int = 10) -> Path:
    """A log with `count` events, closed."""
    log = SqliteEventLog(path)
    log.append(*(new(number=number, text="x" * 100) for number in range(count)))
    log.close()
    return path


def left_open(directory: Path, *, count: int = 10, shm: bool = True) -> Path:
    """The files of a log whose writer was killed: all events are in `-wal`."""
    source = directory.with_name("source")
    log = SqliteEventLog(source / "log.db")
    for number in range(count):
        log.append(new(number=number, text="x" * 100))
    directory.mkdir()
    for name in ("log.db", "log.db-wal", *(["log.db-shm"] if shm else [])):
        shutil.copy(source / name, directory / name)
    log.close()
    assert (directory / "log.db-wal").stat().st_size > 0
    return directory / "log.db"


def one_line(error: HostError) -> str:
    assert "\n" not in str(error)
    assert "Error" not in str(error)
    return str(error)


# ---------------------------------------------------------------- reading only

KINDS: dict[str, Callable[[Path], Path]] = {
    "closed": lambda directory: written(directory / "log.db"),
    "killed": left_open,
    "killed, without -shm": lambda directory: left_open(directory, shm=False),
}


@pytest.fixture
def read_only_mount(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    mounted: list[Path] = []

    def mount(directory: Path) -> Path:
        target = tmp_path / "read-only"
        target.mkdir()
        subprocess.run(["mount", "--bind", directory, target], check=True)
        mounted.append(target)
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        return target

    yield mount
    for target in mounted:
        subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_I13_reading_leaves_the_directory_as_it_was(tmp_path: Path, kind: str) -> None:
    path = KINDS[kind](tmp_path / "root")
    before = state_of(path.parent)
    log = SqliteEventLog(path, read_only=True)
    assert [event.data["number"] for event in log.read()] == list(range(10))
    assert (log.last_seq(), log.wait(9, 0), log.wait(10, 0)) == (10, True, False)
    assert state_of(path.parent) == before
    with pytest.raises(LogError, match="reading only"):
        log.append(new())
    log.close()
    assert state_of(path.parent) == before


@needs_root
@pytest.mark.parametrize("kind", KINDS)
def test_I13_a_root_in_a_read_only_directory_can_be_read(
    tmp_path: Path, kind: str, read_only_mount: Callable[[Path], Path]
) -> None:
    path = KINDS[kind](tmp_path / "root")
    before = state_of(path.parent)
    mounted = read_only_mount(path.parent) / "log.db"
    log = SqliteEventLog(mounted, read_only=True)
    assert [event.seq for event in log.read()] == list(range(1, 11))
    log.close()
    assert state_of(path.parent) == before
    with pytest.raises(DiskError, match="Read-only file system") as caught:
        SqliteEventLog(mounted)
    assert one_line(caught.value).startswith(f"{mounted}: opening the event log: ")


def test_a_reader_of_a_closed_log_sees_the_writer_that_comes_later(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db")
    reader = SqliteEventLog(path, read_only=True)
    assert reader.last_seq() == 10
    for round_ in range(3):
        writer = SqliteEventLog(path)
        writer.append(new())
        assert reader.last_seq() == 11 + 2 * round_
        writer.append(new())
        assert len(list(reader.read())) == 12 + 2 * round_
        writer.close()
        assert reader.last_seq() == 12 + 2 * round_
    reader.close()


def test_there_is_nothing_to_read_where_nothing_was_built(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="there is no event log"):
        SqliteEventLog(tmp_path / "no" / "log.db", read_only=True)
    (tmp_path / "log.db").touch()
    with pytest.raises(LogError, match="there is no event log"):
        SqliteEventLog(tmp_path / "log.db", read_only=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.db"]


# ---------------------------------------------------------------- append-only, formats


@pytest.mark.parametrize("statement", ["UPDATE events SET state = x'00' WHERE rowid = 2", "DELETE FROM events"])
def test_I10_the_file_refuses_update_and_delete(tmp_path: Path, statement: str) -> None:
    path = written(tmp_path / "log.db")
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    log = SqliteEventLog(path)
    assert len(list(log.read())) == 10
    log.close()


def test_a_seq_is_never_given_twice(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TRIGGER events_no_delete; DELETE FROM events WHERE rowid = 10")
    log = SqliteEventLog(path)
    with pytest.raises(LogError, match="event 11 would follow event 9"):
        log.append(new())
    assert log.last_seq() == 9
    log.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_log_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path, read_only: bool) -> None:
    path = written(tmp_path / "log.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(LogTooNew, match="has format 99") as caught:
        SqliteEventLog(path, read_only=read_only)
    assert "newer Refledger" in one_line(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("theirs", ["CREATE TABLE theirs (x)", "PRAGMA user_version = 7", "PRAGMA application_id = 7"])
@pytest.mark.parametrize("read_only", [False, True])
def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path, read_only: bool, theirs: str) -> None:
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(theirs)
    before = path.read_bytes()
    with pytest.raises(LogError, match="is not an event log"):
        SqliteEventLog(path, read_only=read_only)
    assert path.read_bytes() == before


# ---------------------------------------------------------------- damage


def read_all(path: Path, *, read_only: bool) -> int:
    log = SqliteEventLog(path, read_only=read_only)
    try:
        return len(list(log.read()))
    finally:
        log.close()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"no database at all " * 1000,
        lambda data: data[:5000],
        lambda data: data[: len(data) // 2],
        lambda data: data[:8192] + b"\xaa" * (len(data) - 8192),
        lambda data: b"\0" * 4096 + data[4096:],
        lambda data: data.replace(b"CREATE TABLE events", b"CREATE \xa0ABLE events"),
    ],
    ids=["not SQLite", "torn in page 2", "half", "overwritten", "first page zero", "a schema that is no text"],
)
def test_a_damaged_file_is_an_error_in_one_line(
    tmp_path: Path, damage: Callable[[bytes], bytes], read_only: bool
) -> None:
    path = written(tmp_path / "log.db", 2000)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LogError) as caught:
        read_all(path, read_only=read_only)
    assert one_line(caught.value).startswith(f"{path}: ")


def test_a_damaged_file_refuses_appending_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db", 2000)
    data = path.read_bytes()
    path.write_bytes(data[:8192] + b"\xaa" * (len(data) - 8192))
    log = SqliteEventLog(path)
    with pytest.raises(LogError) as caught:
        log.append(new())
    assert one_line(caught.value).startswith(f"{path}: writing the event log: ")
    log.close()


def test_a_damaged_event_and_a_gap_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("DROP TRIGGER events_no_delete")
        connection.execute("UPDATE events SET state = x'7b7d' WHERE rowid = 7")
    with pytest.raises(LogError, match="event 7 is damaged"):
        read_all(path, read_only=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM events WHERE rowid = 7")
    with pytest.raises(LogError, match="events are missing after event 6"):
        read_all(path, read_only=True)


def test_I12_a_torn_tail_of_the_wal_costs_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    path = left_open(tmp_path / "root", count=20)
    wal = path.with_name("log.db-wal")
    data = wal.read_bytes()
    wal.write_bytes(data[:-1000] + b"\xff" * 1000)  # the last commit did not get to the disk whole
    log = SqliteEventLog(path)
    assert [event.data["number"] for event in log.read()] == list(range(19))
    assert log.append(new())[0].seq == 20
    log.close()


# ---------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "small"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", target], check=True)
    yield target
    subprocess.run(["umount", target], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return filler


@needs_root
def test_a_full_disk_is_said_and_forgotten_when_there_is_space_again(small_disk: Path) -> None:
    log = SqliteEventLog(small_disk / "log.db")
    kept = log.append(new(), new())
    filler = fill(small_disk)
    submission = [new(number=number, text="x" * 1000) for number in range(1000)]
    for _ in range(3):
        with pytest.raises(DiskError, match="No space left on device") as caught:
            log.append(*submission)
        assert "free some space" in one_line(caught.value)
    assert list(log.read()) == kept
    filler.unlink()
    kept += log.append(*(new(number=number) for number in range(100)))
    assert list(log.read()) == kept
    assert [event.version for event in kept] == list(range(1, 103))
    log.close()
    log = SqliteEventLog(small_disk / "log.db")
    assert list(log.read()) == kept
    log.close()


@needs_root
def test_a_log_on_a_disk_that_is_full_already_is_refused_until_there_is_space(small_disk: Path) -> None:
    filler = fill(small_disk)
    with pytest.raises(DiskError, match="No space left on device"):
        SqliteEventLog(small_disk / "root" / "log.db").append(new())
    filler.unlink()
    log = SqliteEventLog(small_disk / "root" / "log.db")
    assert log.append(new())[0].seq == 1
    log.close()
    filler = fill(small_disk)
    log = SqliteEventLog(small_disk / "root" / "log.db", read_only=True)  # reading needs no space
    assert log.last_seq() == 1
    log.close()


def test_reading_ends_quietly_before_a_gap_for_who_asks_for_the_damage(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db", 5)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TRIGGER events_no_delete")
        db.execute("DELETE FROM events WHERE rowid = 3")
    with closing(SqliteEventLog(path, read_only=True)) as log:
        log.end_before_damage()
        assert [event.seq for event in log.read()] == [1, 2]
        assert log.damage is not None
        assert log.damage.sound == 2
        assert [event.seq for event in log.read()] == [1, 2]


def test_what_is_apart_of_events_that_are_damaged_or_not_there(tmp_path: Path) -> None:
    path = written(tmp_path / "log.db", 2)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TRIGGER events_no_update")
        db.execute("UPDATE events SET state = ? WHERE rowid = 2", (b'{"t":1,"x":{',))
    with closing(SqliteEventLog(path, read_only=True)) as log:
        assert list(log.payloads(7, 9)) == []
        with pytest.raises(LogError, match="an event between 0 and 3 is damaged"):
            list(log.payloads(0, 2))


def test_a_log_that_somebody_takes_away_is_said(tmp_path: Path) -> None:
    with closing(SqliteEventLog(written(tmp_path / "log.db"), read_only=True)) as log:
        (tmp_path / "log.db").unlink()
        with pytest.raises(DiskError, match="opening the event log"):
            list(log.read())


def test_a_lock_that_others_were_quicker_at_is_tried_again(tmp_path: Path) -> None:
    """As was seen once when a log was opened whose writer had just been killed."""
    lost = sqlite3.OperationalError("locking protocol")
    lost.sqlite_errorcode = sqlite3.SQLITE_PROTOCOL
    tries = iter([lost, lost, None])

    def action() -> str:
        if error := next(tries):
            raise error
        return "done"

    assert patiently(tmp_path / "log.db", "reading the event log", action) == "done"
