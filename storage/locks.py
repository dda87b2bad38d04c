"""Named locks between threads and processes, as files.

Open file description locks (fcntl(2), F_OFD_SETLK): like flock(2) they belong to the open file and so hold between
threads too, die with the process, and unlike flock they can be tested without being taken for a moment.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from storage.errors import DiskError

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
_LONGEST = 200
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # whatever stands there, in a root of a stranger


class FileLocks:
    """Implements Locks with one file a name in `directory`; files of free locks are removed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def try_acquire(self, name: str, *, shared: bool = False) -> HeldLock | None:
        """See Locks.try_acquire. Raises DiskError."""
        try:
            return self._take(self._path(name), fcntl.F_RDLCK if shared else fcntl.F_WRLCK)
        except OSError as error:
            raise DiskError.of(error, "taking a lock") from error

    def sweep(self) -> None:
        """Remove the files of locks that nobody holds, which processes that died left. Whoever wants one just then
        finds it held for a moment. Raises DiskError."""
        try:
            for path in self._directory.iterdir() if self._directory.is_dir() else ():
                if (lock := self._take(path, fcntl.F_WRLCK)) is not None:
                    lock.release()
        except OSError as error:
            raise DiskError.of(error, "removing locks of builds that died") from error

    def held(self, name: str) -> bool:
        """Does anybody, this process included, hold the lock now? Never disturbs. Raises DiskError."""
        try:
            fd = os.open(self._path(name), os.O_RDONLY | _FLAGS)  # also on a read-only disk
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DiskError.of(error, "testing a lock") from error
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
        finally:
            os.close(fd)

    def _take(self, path: Path, kind: int) -> HeldLock | None:
        while True:
            fd = self._open(path)
            if not _lock(fd, kind):
                os.close(fd)
                return None
            # the last holder may have removed the file between open and lock: a lock on a nameless file is none
            if _is_at(fd, path):
                return HeldLock(fd, path)
            os.close(fd)

    def _open(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | _FLAGS
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            self._directory.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o600)

    def _path(self, name: str) -> Path:
        safe = quote(name, safe=":@+=,")
        if len(safe) > _LONGEST or safe.startswith(".") or not safe:
            safe = "%" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        return self._directory / safe


class HeldLock:
    """A lock that is held from `try_acquire` to the end of the context, or to `release()`."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def release(self) -> None:
        """Let go. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):  # on a full or vanished disk an empty file stays, which is no lock
                if _lock(fd):  # others that share it need its name; who holds it alone has it already
                    self._path.unlink()
            os.close(fd)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def _lock(fd: int, kind: int = fcntl.F_WRLCK) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
