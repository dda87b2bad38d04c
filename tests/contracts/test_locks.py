"""What Locks promise, within a process."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from storage.errors import DiskError
from storage.locks import FileLocks


def test_a_lock_is_exclusive_until_its_context_ends(place: Path) -> None:
    locks, others = FileLocks(place / "locks"), FileLocks(place / "locks")
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


def test_a_shared_lock_admits_who_shares_it_until_the_last_one_lets_go(place: Path) -> None:
    locks, others = FileLocks(place), FileLocks(place)
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
    assert list(place.iterdir()) == []
    alone = locks.try_acquire("x")
    assert alone
    assert others.try_acquire("x", shared=True) is None
    alone.release()


def test_testing_a_lock_neither_takes_nor_makes_it(place: Path) -> None:
    locks = FileLocks(place / "locks")
    assert not locks.held("x")
    assert not (place / "locks").exists()


def test_free_locks_leave_no_file(place: Path) -> None:
    locks = FileLocks(place)
    for name in ("a", "b/c", "../up", ".", "", "x" * 5000, "ü", "sha256:ab"):
        lock = locks.try_acquire(name)
        assert lock is not None
        assert locks.held(name)
        assert len(list(place.iterdir())) == 1
        lock.release()
        assert list(place.iterdir()) == []
    assert not (place.parent / "up").exists()


def test_names_that_only_look_alike_are_different_locks(place: Path) -> None:
    locks = FileLocks(place)
    held = [locks.try_acquire(name) for name in ("a/b", "a%2Fb", "a:b")]
    assert None not in held
    assert len(list(place.iterdir())) == 3


def test_never_two_holders_while_files_come_and_go(tmp_path: Path) -> None:  # simulated disks: simulation/test_races.py
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


def test_a_lock_that_nobody_refers_to_is_free(place: Path) -> None:
    locks = FileLocks(place)
    lock = locks.try_acquire("x")
    assert lock is not None
    del lock
    assert not locks.held("x")


def test_a_place_without_locks_is_a_disk_error(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(DiskError):
        FileLocks(place / "file").try_acquire("x")


def test_what_holders_that_died_left_is_swept_and_what_is_held_stays(place: Path) -> None:
    locks = FileLocks(place / "locks")
    locks.sweep()
    held, shared = locks.try_acquire("held"), locks.try_acquire("shared", shared=True)
    assert held is not None
    assert shared is not None
    (place / "locks/build-dead").write_text("")
    FileLocks(place / "locks").sweep()
    assert {path.name for path in (place / "locks").iterdir()} == {"held", "shared"}
    assert locks.try_acquire("held") is None
    held.release()
    shared.release()
    assert list((place / "locks").iterdir()) == []
