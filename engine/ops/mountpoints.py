"""Mount points that a container needs and its image may lack: made before the run, gone after it.

An OCI runtime would make them itself and leave them behind, as empty files and directories in the step's layer.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.errors import DiskError, InputError
from engine.ops.rootfs import Position, RootDir

_OF_THE_IMAGE = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})


@dataclass(frozen=True, slots=True)
class _Stub:
    """`name` in directory `parent` (real path inside the root); times of `parent` before and after, nanoseconds."""

    parent: str
    name: bytes
    inode: int
    directory: bool
    before: int
    after: int


class MountPoints:
    """Context: `directories` and (empty) `files` exist below `root`; those made for it go at the end, unless the step
    put something there. A parent keeps the modification time it had, or that the step gave it.

    Raises InputError when the image has something else in that place, DiskError when they cannot be made.
    """

    def __init__(self, root: Path, *, directories: tuple[str, ...], files: tuple[str, ...]) -> None:
        self._path = root
        self._wanted = (*((path, True) for path in directories), *((path, False) for path in files))
        self._made: list[_Stub] = []

    def __enter__(self) -> Self:
        try:
            with RootDir(self._path) as root:
                for path, directory in self._wanted:
                    root.make_missing(path + "/." if directory else path, self._make)
                    if not directory and stat.S_ISDIR(root.stat(path).st_mode):
                        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        except OSError as error:
            self._remove()
            if error.errno in _OF_THE_IMAGE:
                what = f"the image has something in the way of {error.filename}: {error.strerror}"
                raise InputError(what, hint="remove it in an earlier step or choose another base image") from None
            raise DiskError.of(error, "preparing the container") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._remove()

    def _make(self, at: Position) -> None:
        before = os.fstat(at.directory).st_mtime_ns
        if at.last:
            os.close(os.open(at.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=at.directory))
        else:
            os.mkdir(at.name, 0o755, dir_fd=at.directory)
            os.chmod(at.name, 0o755, dir_fd=at.directory)  # noqa: S103  # as mkdir, free of the umask
        inode = os.stat(at.name, dir_fd=at.directory, follow_symlinks=False).st_ino
        after = os.fstat(at.directory).st_mtime_ns
        self._made.append(_Stub(Position(-1, b".", at.parents).path, at.name, inode, not at.last, before, after))

    def _remove(self) -> None:
        with RootDir(self._path) as root:
            while self._made:
                stub = self._made.pop()
                try:
                    parent = root.open(stub.parent, os.O_RDONLY | os.O_DIRECTORY)
                except OSError:
                    continue  # the step removed or replaced the directory it was in
                try:
                    _remove_stub(stub, parent)
                finally:
                    os.close(parent)


def _remove_stub(stub: _Stub, parent: int) -> None:
    times = os.fstat(parent)
    try:
        info = os.stat(stub.name, dir_fd=parent, follow_symlinks=False)
        if info.st_ino != stub.inode or stat.S_ISDIR(info.st_mode) != stub.directory:
            return  # the step's own, which may have got the number of what it removed
        if stub.directory:
            os.rmdir(stub.name, dir_fd=parent)
        elif info.st_size == 0:
            os.unlink(stub.name, dir_fd=parent)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}:
            return  # the step removed it, or put something into it and so made it its own
        raise DiskError.of(error, "removing what the container needed") from error
    untouched = times.st_mtime_ns == stub.after
    os.utime(parent, ns=(times.st_atime_ns, stub.before if untouched else times.st_mtime_ns))
