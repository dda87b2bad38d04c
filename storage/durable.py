"""Making files durable: what a crash may not take back, and how several writers share one flush."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def fsync_directory(path: Path) -> None:
    """Make the names in directory `path` durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(path: Path, mode: int = 0o777) -> None:
    """Like `mkdir -p`, and durable: a published file must not lose the directory it lies in. `mode` of `path` itself.
    Raises OSError."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(mode if directory == missing[0] else 0o777, exist_ok=True)
        fsync_directory(directory.parent)


class FileSystemSync:
    """Flushes the file system that holds `path` (syncfs(2)), one flush for all threads that wait at the same time.

    A caller joins the next flush to *start*, never the running one: that one may have passed its files already.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = threading.Condition()
        self._started = 0
        self._finished = 0
        self._failed: tuple[int, OSError] | None = None
        self.flushes = 0

    def __call__(self) -> None:
        """Return once everything written to the file system before the call is durable. Raises OSError."""
        with self._state:
            mine = self._started + 1
            while self._finished < mine:
                if self._started > self._finished:
                    self._state.wait()
                    continue
                self._started = number = self._finished + 1
                self._flush(number)
            # a later flush's failure may be news of the same broken disk: better one error too many
            if self._failed and self._failed[0] >= mine:
                raise self._failed[1]

    def _flush(self, number: int) -> None:
        self._state.release()
        error = None
        try:
            _syncfs(self._path)
        except OSError as caught:
            error = caught
        finally:
            self._state.acquire()
            self._finished = number
            self.flushes += 1
            if error:
                self._failed = (number, error)
            self._state.notify_all()


def _syncfs(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
    finally:
        os.close(fd)
