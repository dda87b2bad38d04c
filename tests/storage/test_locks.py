"""Locks hold between threads and processes and die with their holder."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from storage.errors import DiskError
from storage.locks import FileLocks

HOLDER = """
import sys, time
from pathlib import Path
from storage.locks import FileLocks
lock = FileLocks(Path(sys.argv[1])).try_acquire(sys.argv[2])
print("held" if lock else "refused", flush=True)
time.sleep(60)
"""


def test_a_lock_is_exclusive_until_its_context_ends(tmp_path: Path) -> None:
    locks, others = FileLocks(tmp_path / "locks"), FileLocks(tmp_path / "locks")
    lock = locks.try_acquire("sha256:aa")
    assert lock is not None
    with lock:
        assert locks.try_acquire("sha256:aa") is None
        assert others.try_acquire("sha256:aa") is None
        assert others.held("sha256:aa")
        other = others.try_acquire("sha256:bb")
        assert other is not None
        other.release()
    again = others.try_acquire("sha256:aa")
    assert again is not None
    again.release()


def test_a_shared_lock_admits_who_shares_it_until_the_last_one_lets_go(tmp_path: Path) -> None:
    locks, others = FileLocks(tmp_path), FileLocks(tmp_path)
    first, second = locks.try_acquire("x", shared=True), others.try_acquire("x", shared=True)
    assert first
    assert second
    assert locks.try_acquire("x") is None
    first.release()
    assert locks.held("x")
    assert locks.try_acquire("x") is None
    third = locks.try_acquire("x", shared=True)
    assert third
    second.release()
    third.release()
    assert list(tmp_path.iterdir()) == []
    alone = locks.try_acquire("x")
    assert alone
    assert others.try_acquire("x", shared=True) is None
    alone.release()


def test_testing_a_lock_neither_takes_nor_makes_it(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path / "locks")
    assert not locks.held("x")
    assert not (tmp_path / "locks").exists()


def test_free_locks_leave_no_file(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    for name in ("a", "b/c", "../up", ".", "", "x" * 5000, "ü", "sha256:ab"):
        lock = locks.try_acquire(name)
        assert lock is not None
        assert locks.held(name)
        assert len(list(tmp_path.iterdir())) == 1
        lock.release()
        assert list(tmp_path.iterdir()) == []
    assert not (tmp_path.parent / "up").exists()


def test_names_that_only_look_alike_are_different_locks(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    held = [locks.try_acquire(name) for name in ("a/b", "a%2Fb", "a:b")]
    assert None not in held
    assert len(list(tmp_path.iterdir())) == 3


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path, "build-1"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        assert locks.held("build-1")
        assert locks.try_acquire("build-1") is None
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert not locks.held("build-1")
    lock = locks.try_acquire("build-1")
    assert lock is not None
    lock.release()


def test_never_two_holders_while_files_come_and_go(tmp_path: Path) -> None:
    inside: list[int] = []
    overlaps: list[int] = []
    taken = threading.Semaphore(0)

    def work(number: int) -> None:
        locks = FileLocks(tmp_path)
        for _ in range(300):
            lock = locks.try_acquire("one")
            if lock is None:
                continue
            with lock:
                inside.append(number)
                if len(inside) > 1:
                    overlaps.append(number)
                inside.remove(number)
            taken.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert taken.acquire(blocking=False)


def test_a_lock_that_nobody_refers_to_is_free(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path)
    lock = locks.try_acquire("x")
    assert lock is not None
    del lock
    assert not locks.held("x")


def test_I12_what_dead_holders_left_is_swept_and_what_is_held_stays(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path / "locks")
    locks.sweep()
    alone, shared = locks.try_acquire("alone"), locks.try_acquire("shared", shared=True)
    assert alone is not None
    assert shared is not None
    (tmp_path / "locks/build-dead").touch()
    locks.sweep()
    assert sorted(path.name for path in (tmp_path / "locks").iterdir()) == ["alone", "shared"]
    alone.release()
    shared.release()
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_place_without_locks_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        FileLocks(tmp_path / "file").try_acquire("x")
