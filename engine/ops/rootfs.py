"""Access to files below a root directory whose content nobody here trusts.

A symlink in an image may point anywhere; every path given here is resolved as a process with that root directory
would see it, so nothing outside the root can be reached. The kernel does it (openat2(2), RESOLVE_IN_ROOT) where it
can; else the path is walked one component at a time without following links.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

# <linux/openat2.h>; the number is the same on every architecture since the tables were unified (Linux 5.6)
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_MAX_LINKS = 40  # as the kernel's MAXSYMLINKS
_RETRIES = 16

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a walk: entry `name` (maybe missing) of the open directory `directory`, `.` for itself.
    `parents`: the real names that lead to `directory` from the root; `last`: nothing follows in the path."""

    directory: int
    name: bytes
    parents: tuple[bytes, ...]
    last: bool = True

    @property
    def path(self) -> str:
        """The real path inside the root, absolute."""
        names = self.parents if self.name == b"." else (*self.parents, self.name)
        return os.fsdecode(b"/" + b"/".join(names))


class RootDir:
    """A directory that is the `/` of all paths given to its methods; absolute links resolve inside it.

    Methods raise OSError as the system calls they are named after do, with the path inside the root as `filename`.
    Use as a context manager, or `close()`.
    """

    def __init__(self, path: Path | str, *, use_openat2: bool = True) -> None:
        """`use_openat2=False` forces the walk (as on kernels before 5.6)."""
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._kernel = use_openat2

    def close(self) -> None:
        """Let go of the directory. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---------------------------------------------------------------- reading

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """A descriptor (close-on-exec) of `path`; `flags` and `mode` as in open(2), umask applied.

        O_CREAT through a dangling link creates the link's target inside the root. Opening a FIFO or a device has the
        effects it always has: `stat` first, or use `read_bytes`.
        """
        flags |= os.O_CLOEXEC
        name = _encode(path)
        if self._kernel:
            try:
                return self._openat2(name, flags, mode)
            except OSError as error:
                # EAGAIN: a rename raced with ".."; EPERM: a container's seccomp filter that predates openat2
                if error.errno not in {errno.ENOSYS, errno.EAGAIN, errno.EPERM}:
                    raise _named(error, path) from None
                self._kernel = error.errno == errno.EAGAIN
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        try:
            with self._walk(name, follow=not (flags & os.O_NOFOLLOW or exclusive)) as at:
                return os.open(at.name, flags | os.O_NOFOLLOW, mode, dir_fd=at.directory)
        except OSError as error:
            raise _named(error, path) from None

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """Metadata of `path`; of the link itself unless `follow`."""
        with self._handle(path, follow=follow) as fd:
            return os.fstat(fd)

    def readlink(self, path: str) -> str:
        """The text of the link at `path`, as it is stored."""
        with self._handle(path, follow=False) as fd:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
            return os.fsdecode(os.readlink(b"", dir_fd=fd))

    def read_bytes(self, path: str, limit: int) -> bytes:
        """The first `limit` bytes of regular file `path`. Raises OSError(EINVAL) for anything else: a FIFO would block
        and a device may act when it is opened."""
        with self._handle(path, follow=True) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            with Path(f"/proc/self/fd/{fd}").open("rb") as file:
                return file.read(limit)

    def resolve(self, path: str) -> str:
        """The real path inside the root, absolute; the last component need not exist.
        Raises FileNotFoundError when an earlier one is missing. The answer is a name, not a promise."""
        try:
            with self._walk(_encode(path), follow=True) as at:
                return at.path
        except OSError as error:
            raise _named(error, path) from None

    # ---------------------------------------------------------------- writing

    def make_missing(self, path: str, make: Callable[[Position], None]) -> None:
        """Walk `path` through links and have `make` create each component that is missing: a directory unless `last`.
        A trailing `/.` says that the last one is a directory too."""
        try:
            with self._walk(_encode(path), follow=True, make=make):
                return
        except OSError as error:
            raise _named(error, path.removesuffix("/.")) from None

    # ---------------------------------------------------------------- how

    @contextmanager
    def _handle(self, path: str, *, follow: bool) -> Iterator[int]:
        fd = self.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        try:
            yield fd
        finally:
            os.close(fd)

    def _openat2(self, name: bytes, flags: int, mode: int) -> int:
        create = flags & (os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY))
        how = _OpenHow(flags, mode & 0o7777 if create else 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        code = errno.EAGAIN
        for _ in range(_RETRIES):
            fd = _libc.syscall(
                ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(self._fd), ctypes.c_char_p(name),
                ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)),
            )  # fmt: skip
            if fd >= 0:
                return int(fd)
            code = ctypes.get_errno()
            if code not in {errno.EAGAIN, errno.EINTR}:
                break
        raise OSError(code, os.strerror(code))

    @contextmanager
    def _walk(
        self, path: bytes, *, follow: bool, make: Callable[[Position], None] | None = None
    ) -> Iterator[Position]:
        """Follow `path` from the root without ever handing a link to the kernel. The last component may be missing
        and, unless `follow`, is not looked through; `make` is called for every missing one."""
        fds, names = [os.dup(self._fd)], list[bytes]()
        pending = _split(path)
        links = 0
        try:
            while pending:
                part = pending.pop()
                if part in {b".", b".."}:
                    if part == b".." and names:
                        os.close(fds.pop())
                        names.pop()
                    continue
                mode = _mode(part, fds[-1])
                if mode is None and make is not None:
                    make(Position(fds[-1], part, tuple(names), last=not pending))
                elif mode is None and pending:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                if mode is not None and stat.S_ISLNK(mode) and (follow or pending):
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    target = os.readlink(part, dir_fd=fds[-1])
                    if target.startswith(b"/"):
                        while names:
                            os.close(fds.pop())
                            names.pop()
                    pending.extend(_split(target))
                elif pending:
                    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    fds.append(os.open(part, flags, dir_fd=fds[-1]))
                    names.append(part)
                else:
                    yield Position(fds[-1], part, tuple(names))
                    return
            yield Position(fds[-1], b".", tuple(names))
        finally:
            for fd in fds:
                os.close(fd)


def _encode(path: str) -> bytes:
    if "\0" in path:
        raise OSError(errno.EINVAL, "a path cannot hold a NUL byte", path.replace("\0", "\\0"))
    return os.fsencode(path) or b"."


def _split(path: bytes) -> list[bytes]:
    """Components, last first; a trailing slash gives a last `.`, so that what stands before must be a directory."""
    parts = [part for part in path.split(b"/") if part]
    if path.endswith(b"/"):
        parts.append(b".")
    return parts[::-1]


def _mode(name: bytes, directory: int) -> int | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _named(error: OSError, path: str) -> OSError:
    """The same error (and class) that names the path inside the root."""
    return OSError(error.errno, error.strerror, path)
