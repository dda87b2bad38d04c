"""Locks hold between threads and processes and die with their holder."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage import locks as module
from storage.locks import FileLocks

HOLDER = """
import sys, time
from pathlib import Path
from storage.locks import FileLocks
lock = FileLocks(Path(sys.argv[1])).try_acquire(sys.argv[2])
print("held" if lock else "refused", flush=True)
time.sleep(60)
"""


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


def test_I4_a_lock_on_a_file_that_its_last_holder_removes_just_then_is_not_on_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = FileLocks(tmp_path)
    first = locks.try_acquire("layer-1")
    assert first is not None
    lock = module._lock

    def late(fd: int, kind: int) -> bool:
        monkeypatch.setattr(module, "_lock", lock)
        first.release()  # after the second one opened it
        return lock(fd, kind)

    monkeypatch.setattr(module, "_lock", late)
    second = locks.try_acquire("layer-1")
    assert second is not None
    assert locks.held("layer-1")
    assert locks.try_acquire("layer-1") is None
    second.release()
