"""Reading what is copied: files of a tree that something else may write to meanwhile, by descriptors."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.ops.rootfs import RootDir
from engine.ops.selection import CHUNK, Entry, changed
from storage.digest import Digest

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # never waits on what became a FIFO
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Origin:
    """The tree that selected entries come from; the directory that was used last stays open. Methods raise
    InputError for an entry that is not what it was, and OSError. A context manager."""

    def __init__(self, tree: Path) -> None:
        self._root = RootDir(tree)
        self._opened = ("", -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._opened[1] >= 0:
            os.close(self._opened[1])
        self._root.close()

    def time(self, entry: Entry) -> int:
        """Modification time of `entry` itself, in ns."""
        try:
            if entry.type == "dir":
                return os.fstat(self._directory(entry, entry.source)).st_mtime_ns
            name = posixpath.basename(entry.source)
            return os.stat(name, dir_fd=self._parent(entry), follow_symlinks=False).st_mtime_ns
        except OSError as error:
            raise _vanished(error, entry) from error

    def open(self, entry: Entry) -> tuple[int, os.stat_result]:
        """A descriptor of the regular file `entry`, and what there is to know of it."""
        try:
            fd = os.open(posixpath.basename(entry.source), _READ_FLAGS, dir_fd=self._parent(entry))
        except OSError as error:
            raise _vanished(error, entry) from error
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            raise changed(entry.path)
        return fd, info

    def _parent(self, entry: Entry) -> int:
        return self._directory(entry, posixpath.dirname(entry.source))

    def _directory(self, entry: Entry, path: str) -> int:
        known, fd = self._opened
        if known != path or fd < 0:
            self._opened = ("", -1)
            if fd >= 0:
                os.close(fd)
            try:
                fd = self._root.open(path, _DIR_FLAGS)
            except OSError as error:
                raise _vanished(error, entry) from error
            self._opened = (path, fd)
        return fd


def content(fd: int, size: int, entry: Entry | None = None) -> Iterable[bytes]:
    """The `size` bytes of the open file `fd`, in pieces of at most CHUNK; a small file is read at once.

    Raises InputError, at once or from the iterator, when the file is shorter, or when it is not what the digest of
    `entry` promises; without a digest, what has grown is cut off.
    """
    if size < CHUNK:
        data = os.read(fd, size + 1)
        if entry is not None and entry.digest is not None:
            if len(data) != size or Digest("sha256:" + hashlib.sha256(data).hexdigest()) != entry.digest:
                raise changed(entry.path)
        elif len(data) < size:
            raise changed(entry.path if entry else "")
        return (data[:size],) if size else ()
    return _pieces(fd, size, entry)


def _pieces(fd: int, size: int, entry: Entry | None) -> Iterator[bytes]:
    digest = entry.digest if entry else None
    seen = hashlib.sha256() if digest else None
    left = size
    while left:
        data = os.read(fd, min(left, CHUNK))
        if not data:
            raise changed(entry.path if entry else "")
        if seen:
            seen.update(data)
        left -= len(data)
        yield data
    if seen and entry and (os.read(fd, 1) or Digest("sha256:" + seen.hexdigest()) != digest):
        raise changed(entry.path)


def _vanished(error: OSError, entry: Entry) -> Exception:
    return changed(entry.path) if error.errno in _GONE else error
