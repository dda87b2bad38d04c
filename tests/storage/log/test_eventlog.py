"""The log keeps what it acknowledged, in one gapless order, whoever writes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.errors import DiskError, LogError
from storage.interfaces.log import Event, NewEvent
from storage.log import logfile, recorder
from storage.log.eventlog import SqliteEventLog
from tests.waiting import PATIENCE
from tests.writeback import watch_flushes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteEventLog]:
    log = SqliteEventLog(tmp_path / "root" / "log.db")
    yield log
    log.close()


def new(stream: str = "cache", name: str = "T", **data: Any) -> NewEvent:
    return NewEvent(stream, name, data)


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.storage.log.log_worker", str(path), *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def check_order(events: list[Event]) -> None:
    """Gapless seq, gapless versions in each stream, times that never go back."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    versions: dict[str, list[int]] = defaultdict(list)
    for event in events:
        versions[event.stream].append(event.version)
    assert all(found == list(range(1, len(found) + 1)) for found in versions.values())
    assert [event.time for event in events] == sorted(event.time for event in events)


# ---------------------------------------------------------------- appending


def test_processes_that_create_and_write_one_log_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fresh" / "log.db"
    workers = [start(path, "append", str(number), "3", "30") for number in range(4)]
    for worker in workers:
        assert worker.stdout and worker.stdout.readline() == "ready\n"
    for worker in workers:  # all at the same moment: creation is raced, too
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert [worker.communicate()[0] for worker in workers] == [""] * 4
    assert [worker.returncode for worker in workers] == [0] * 4
    log = SqliteEventLog(path)
    events = list(log.read())
    log.close()
    assert len(events) == 4 * 3 * 30 * 3
    check_order(events)
    assert all(events[i].data == events[i + 1].data == events[i + 2].data for i in range(0, len(events), 3))
    numbers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for event in events[::3]:
        numbers[event.data["process"], event.data["thread"]].append(event.data["number"])
    assert sorted(numbers) == [(str(p), t) for p in range(4) for t in range(3)]
    assert all(found == list(range(30)) for found in numbers.values())
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["log.db"]


def test_kill_9_of_a_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    for _ in range(3):
        worker = start(path, "acknowledge")
        assert worker.stdout
        acknowledged = [int(worker.stdout.readline()) for _ in range(101)]
        worker.kill()
        acknowledged += [int(line) for line in worker.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        worker.wait()
        log = SqliteEventLog(path)
        events = list(log.read())
        check_order(events)
        assert len(events) % 2 == 0  # submissions are there whole
        assert {event.seq for event in events} >= set(acknowledged)
        assert log.append(new(), new())[0].seq == len(events) + 1
        log.close()


def test_I6_the_name_of_a_new_log_is_durable_before_anything_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.db"
    flushes = watch_flushes(monkeypatch, path.exists)
    SqliteEventLog(path).close()
    assert flushes == [(True, str(tmp_path))]


def test_closing_leaves_one_file(tmp_path: Path) -> None:
    log = SqliteEventLog(tmp_path / "log.db")
    log.append(new())
    log.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.db"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_told_to_open_the_log_itself(log: SqliteEventLog) -> None:
    log.append(new())
    child = os.fork()
    if child == 0:
        try:
            log.submit([new()])
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---------------------------------------------------------------- locks


def hold_lock(path: Path) -> sqlite3.Connection:
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    return holder


def test_a_lock_held_longer_than_sqlite_waits_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "LOCK_TIMEOUT", 0.05)
    log = SqliteEventLog(tmp_path / "log.db")
    log.append(new())
    holder = hold_lock(tmp_path / "log.db")
    future = log.submit([new()])
    time.sleep(0.5)
    assert not future.done()
    assert [event.seq for event in log.read()] == [1]  # readers do not wait
    holder.rollback()
    assert future.result()[0].seq == 2
    holder.close()
    log.close()


def test_a_lock_that_is_met_when_the_file_is_opened_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "LOCK_TIMEOUT", 0.01)
    path = tmp_path / "log.db"
    SqliteEventLog(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA journal_mode = DELETE")  # going back from that needs all of the file
    log = SqliteEventLog(path)
    holder.execute("BEGIN")
    holder.execute("SELECT count(*) FROM events").fetchone()
    future = log.submit([new()])
    time.sleep(0.2)
    assert not future.done()
    holder.close()
    assert future.result()[0].seq == 1
    log.close()


def test_a_lock_held_for_ever_is_an_error_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "LOCK_TIMEOUT", 0.05)
    monkeypatch.setattr(logfile, "PATIENCE", 0.2)
    log = SqliteEventLog(tmp_path / "log.db")
    log.append(new())
    holder = hold_lock(tmp_path / "log.db")
    with pytest.raises(LogError, match="another process has kept it locked") as caught:
        log.append(new())
    assert "database is locked" not in str(caught.value)
    holder.rollback()
    holder.close()
    assert log.append(new())[0].seq == 2
    log.close()


# ---------------------------------------------------------------- reading


def test_waiting_ends_with_an_event_of_this_process(log: SqliteEventLog) -> None:
    threading.Timer(0.1, lambda: log.append(new())).start()
    assert log.wait(0, PATIENCE)


@pytest.mark.parametrize("command", ["show", "show-read-only"])
def test_following_sees_what_other_processes_append(log: SqliteEventLog, tmp_path: Path, command: str) -> None:
    log.append(new(name="First"))
    follower = start(tmp_path / "root" / "log.db", command)
    assert follower.stdout and follower.stdout.readline() == "1 First\n"
    for seq in range(2, 6):
        log.append(new(name="More"))
        assert follower.stdout.readline() == f"{seq} More\n"
    log.append(new(name="Stop"))
    assert follower.communicate(timeout=PATIENCE)[0] == "6 Stop\n"
    assert follower.returncode == 0


# ---------------------------------------------------------------- opening


def test_a_path_may_hold_anything(tmp_path: Path) -> None:
    log = SqliteEventLog(tmp_path / "new:memory: ?#%" / "log.db")
    assert log.append(new())[0].seq == 1
    log.close()
    assert (tmp_path / "new:memory: ?#%" / "log.db").is_file()


def test_a_reading_command_does_not_import_the_library(log: SqliteEventLog, tmp_path: Path) -> None:
    log.append(new())
    code = (
        "import sys, pathlib; from storage.log.eventlog import SqliteEventLog; "
        "log = SqliteEventLog(pathlib.Path(sys.argv[1]), read_only=True); "
        "assert len(list(log.read())) == 1; assert not [name for name in sys.modules if 'eventsourcing' in name]"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "root" / "log.db"], cwd=ROOT, check=True)


def test_nothing_is_written_behind_an_event_that_is_damaged(log: SqliteEventLog, tmp_path: Path) -> None:
    log.append(new())
    with sqlite3.connect(tmp_path / "root/log.db") as other:
        other.execute("DROP TRIGGER events_no_update")
        other.execute("UPDATE events SET state = 'not json', rowid = 2")
    with pytest.raises(LogError, match="event 2 is damaged"):
        log.append(new())


def test_I6_what_was_submitted_behind_a_failed_append_fails_with_it(
    log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, fail, commit = threading.Event(), threading.Event(), recorder.LogWriter.commit

    def full_at_first(writer: recorder.LogWriter, group: Any) -> list[list[Event]]:
        if fail.is_set():
            return commit(writer, group)
        begun.set()
        fail.wait()
        raise DiskError("writing the event log: No space left on device")

    monkeypatch.setattr(recorder.LogWriter, "commit", full_at_first)
    futures = [log.submit([new()])]
    begun.wait()
    futures += [log.submit([new(behind=number)]) for number in range(2)]
    fail.set()
    assert [str(future.exception()) for future in futures] == ["writing the event log: No space left on device"] * 3
    assert log.append(new())[0].seq == 1
