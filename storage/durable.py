"""Making files durable: what a crash may not take back, and how several writers share one flush."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import stat
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_libc = ctypes.CDLL(None, use_errno=True)
_LONGEST_STEM = 255 - len("..01234567.part")
"""Bytes of a name (NAME_MAX) without what is put around it."""


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` where the file `fd` stands: os.write may take less. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


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
    while not path.exists():  # a file in the way is told of by whoever wants to make something below it
        missing.append(path)
        path = path.parent
    if not path.is_mount():
        with suppress(PermissionError):  # reason: what is there may lie where one may not look
            fsync_directory(path.parent)  # whoever made it may have died before its name was durable
    for directory in reversed(missing):
        directory.mkdir(mode if directory == missing[0] else 0o777, exist_ok=True)
        fsync_directory(directory.parent)


class Unfinished:
    """A new `file` beside `dest`, hidden and named after it, that takes the place of `dest` when it is committed.

    It is locked for as long as it is open: what one left that was killed is told apart by that, and removed by whoever
    writes to `dest` next. `mode`: of the file, by default that of what it replaces.
    """

    def __init__(self, dest: Path, mode: int | None = None) -> None:
        """Raises OSError."""
        self._dest = dest
        _remove_unlocked(dest)
        self._path, fd = _new_neighbour(dest, 0o666 if mode is None else mode)
        self.file = os.fdopen(fd, "wb")
        with suppress(FileNotFoundError):
            before = dest.lstat()
            if stat.S_ISREG(before.st_mode):
                with suppress(PermissionError):
                    os.fchown(fd, before.st_uid, before.st_gid)  # reason: root may write for somebody
                if mode is None:
                    os.fchmod(fd, stat.S_IMODE(before.st_mode) & 0o777)

    def commit(self, *, replace: bool = True) -> None:
        """Be at `dest`, durably. Raises OSError (FileExistsError where nothing is to be replaced); then `abort` is
        left."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if replace:
            self._path.replace(self._dest)
        else:
            os.link(self._path, self._dest)
            self._path.unlink()
        fsync_directory(self._dest.parent)
        self.file.close()

    def abort(self) -> None:
        """Be gone, unless it was committed. Raises no OSError."""
        with suppress(OSError):
            if not self.file.closed:
                self._path.unlink(missing_ok=True)
        with suppress(OSError):  # reason: what could not be written before cannot be now
            self.file.close()


def replace_file(path: Path, data: bytes, mode: int | None = None, *, named: bool = False) -> None:
    """Have `data` at `path`: durable, and whole or not at all. With `named`, somebody said where: a link keeps leading
    where it does, and what is no regular file (a pipe, a device) is written to; else, whatever stands there is
    replaced. `mode` as in Unfinished. Raises OSError."""
    if named:
        place = named_place(path)
        if place is None:
            path.write_bytes(data)
            return
        path = place
    new = Unfinished(path, mode)
    try:
        new.file.write(data)
        new.commit()
    finally:
        new.abort()


def named_place(path: Path) -> Path | None:
    """Where a file is to be made that somebody called `path`: a link keeps leading where it does. None: what stands
    there is no regular file (a pipe, a device), and is written to under the name it was given, as that which /dev/fd
    leads to may have no other. Raises OSError, as for a directory."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return path.resolve()
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.resolve() if stat.S_ISREG(kind) else None


def try_place(path: Path) -> None:
    """Find out what would keep `replace_file` from having something at the named `path`, and leave nothing there.
    Raises OSError."""
    place = named_place(path)
    if place is not None:
        Unfinished(place).abort()
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _new_neighbour(dest: Path, mode: int) -> tuple[Path, int]:
    while True:
        path = dest.with_name(f".{_stem(dest)}.{secrets.token_hex(4)}.part")
        if (fd := create_held(path, mode)) is not None:
            return path, fd


def _stem(dest: Path) -> str:
    """What the names of unfinished files begin with: that of `dest`, but for what would not fit one more suffix."""
    return os.fsdecode(os.fsencode(dest.name)[:_LONGEST_STEM])


def create_held(path: Path, mode: int) -> int | None:
    """A new file, locked for as long as it is open, so that what a dead process left is told apart; None when somebody
    took it for that before it was locked, and removes it. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():
            return fd
    except BlockingIOError:
        pass
    except OSError:
        return fd  # where files cannot be locked, what is left stays
    os.close(fd)
    return None


def _remove_unlocked(dest: Path) -> None:
    for path in dest.parent.glob(f".{glob.escape(_stem(dest))}.????????.part"):
        with suppress(OSError):  # reason: somebody else's, or gone
            remove_unheld(path)


def remove_unheld(path: Path) -> None:
    """Remove what `create_held` made, and a dead process left. Raises OSError: BlockingIOError while it is held,
    FileNotFoundError when it is gone."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(fd)


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
        self._fd, self._holders = -1, 0
        self.flushes = 0

    def watched(self) -> Watch:
        """What will be written from now on, to be closed: begin before the first byte. Raises OSError."""
        with self._state:
            if not self._holders:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._holders += 1
            return Watch(self, self._finished)

    def let_go(self) -> None:
        """One watch less."""
        with self._state:
            self._holders -= 1
            if not self._holders:
                os.close(self._fd)

    def wait(self, since: int) -> None:
        """Return once everything written before the call is durable. Raises OSError, also for flushes that failed after
        flush `since`. With a watch open."""
        with self._state:
            mine = self._started + 1
            while self._finished < mine:
                if self._started > self._finished:
                    self._state.wait()
                    continue
                self._started = number = self._finished + 1
                self._flush(number)
            # a later flush's failure may be news of the same broken disk: better one error too many
            if self._failed and self._failed[0] > since:
                raise self._failed[1]

    def _flush(self, number: int) -> None:
        self._state.release()
        error = None
        try:
            flush_file_system(self._fd)
        except OSError as caught:
            error = OSError(caught.errno, caught.strerror, str(self._path))
        finally:
            self._state.acquire()
            self._finished = number
            self.flushes += 1
            if error:
                self._failed = (number, error)
            self._state.notify_all()


class Watch:
    """What is written to the file system of `sync` until this is closed. Called, it returns once all of that is
    durable, and raises OSError also for what the kernel failed to write back by itself meanwhile, whoever's flush heard
    of it: syncfs(2) tells each descriptor once, and only of errors since that was opened."""

    def __init__(self, sync: FileSystemSync, since: int) -> None:
        self._sync: FileSystemSync | None = sync
        self._since = since

    def __call__(self) -> None:
        """See above. With the watch open."""
        assert self._sync is not None, "it is closed"
        self._sync.wait(self._since)

    def close(self) -> None:
        """May be called twice."""
        sync, self._sync = self._sync, None
        if sync is not None:
            sync.let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def flush_file_system(fd: int) -> None:
    """Return once everything written to the file system that holds `fd` is durable (syncfs(2)). Raises OSError."""
    if _libc.syncfs(fd):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
