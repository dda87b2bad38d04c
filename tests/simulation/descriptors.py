"""System calls of simulated processes on open files."""

from __future__ import annotations

import errno
import io
import itertools
import os as real_os
import stat
from typing import Any

from tests.simulation.inodes import Inode
from tests.simulation.processes import (
    FIRST_FD,
    Open,
    Process,
    crashed,
    descriptors,
    failure,
    locate,
    opened,
    status,
    unlock,
)

_numbers = itertools.count(FIRST_FD)
WRITTEN_OFF = "EIO later"
"""The kind of fault of bytes that can be read, but not be written back: who writes them is not told then."""
Place = tuple[Process, tuple[bytes, ...], Inode | None]


class Descriptors:
    """The part of `os` that is about descriptors; all else is the kernel's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(real_os, name)

    def _place(self, path: Any, dir_fd: int | None) -> Place | None:
        if dir_fd is not None and dir_fd >= FIRST_FD:
            base = opened(dir_fd)
            names = tuple(part for part in real_os.fsencode(path).split(b"/") if part)
            return base.process, base.where + names, base.inode
        found = locate(path) if not isinstance(path, int) else None
        return None if found is None else (*found, None)

    def _find(self, place: Place, dir_fd: int | None, path: Any, *, follow: bool = True) -> Inode:
        process, where, start = place
        if start is not None:
            names = tuple(part for part in real_os.fsencode(path).split(b"/") if part)
            return process.find(names, follow=follow, start=start)
        return process.find(where, follow=follow)

    def _parent(self, place: Place, path: Any) -> tuple[Inode, bytes]:
        process, where, start = place
        if start is not None:
            return process.parent(tuple(part for part in real_os.fsencode(path).split(b"/") if part), start)
        return process.parent(where)

    # ------------------------------------------------------------ open files

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self._place(path, dir_fd)
        if place is None:
            return real_os.open(path, flags, mode, dir_fd=dir_fd)
        process, where, _ = place
        process.pause()
        new = flags & real_os.O_CREAT and flags & real_os.O_EXCL
        try:
            inode = self._find(place, dir_fd, path, follow=not (new or flags & real_os.O_NOFOLLOW))
        except FileNotFoundError:
            if not flags & real_os.O_CREAT:
                raise
            parent, name = self._parent(place, path)
            link = parent.entries.get(name)
            if link is not None and not link.is_link:  # a thread of the operating system made it meanwhile
                return self.open(path, flags, mode, dir_fd=dir_fd)
            if link is not None:  # one that leads to nothing
                target = real_os.fsencode(process.prefix) + b"/" + b"/".join((*where[:-1], bytes(link.data)))
                return self.open(target, flags, mode)
            process.fault("create", where, "ENOSPC")
            inode = Inode(stat.S_IFREG | mode, process.machine.now(), links=0)
            process.machine.files.change((parent, name, inode))
        else:
            if new:
                raise failure(errno.EEXIST, where)
            if inode.is_link:
                raise failure(errno.ELOOP, where)
            if flags & real_os.O_DIRECTORY and not inode.is_directory:
                raise failure(errno.ENOTDIR, where)
            if inode.is_directory and flags & (real_os.O_WRONLY | real_os.O_RDWR):
                raise failure(errno.EISDIR, where)
            process.refuse("open", where, "EMFILE", "EIO")
            if flags & real_os.O_TRUNC:
                process.fault("truncate", where, "EIO")
                inode.data, inode.lost = bytearray(), False
        fd = next(_numbers)
        descriptors[fd] = process.open[fd] = Open(process, inode, flags, where)
        return fd

    def close(self, fd: int) -> None:
        if fd < FIRST_FD:
            real_os.close(fd)
            return
        found = descriptors.pop(fd, None)  # reason for no error: those of a process that died are closed
        if found is not None:
            found.process.open.pop(fd, None)
            unlock(fd, found.inode)

    def dup(self, fd: int) -> int:
        if fd < FIRST_FD:
            return real_os.dup(fd)
        found = opened(fd)
        new = next(_numbers)
        descriptors[new] = found.process.open[new] = Open(found.process, found.inode, found.flags, found.where)
        return new

    def read(self, fd: int, size: int) -> bytes:
        if fd < FIRST_FD:
            return real_os.read(fd, size)
        found = opened(fd)
        data = found.read(found.position, size)
        found.position += len(data)
        return data

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if fd < FIRST_FD:
            return real_os.pread(fd, size, offset)
        return opened(fd).read(offset, size)

    def write(self, fd: int, data: Any) -> int:
        if fd < FIRST_FD:
            return real_os.write(fd, data)
        found = opened(fd)
        if found.flags & real_os.O_APPEND:
            found.position = len(found.inode.data)
        written = self._write(found, bytes(data), found.position)
        found.position += written
        return written

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        if fd < FIRST_FD:
            return real_os.pwrite(fd, data, offset)
        return self._write(opened(fd), bytes(data), offset)

    def _write(self, found: Open, data: bytes, offset: int) -> int:
        process, inode = found.process, found.inode
        process.pause()
        kind = process.fault("write", found.where, "ENOSPC", "short", "torn", "EIO", WRITTEN_OFF)
        if kind in {"short", "torn"}:
            data = data[: max(1, len(data) // 2)]
        if offset > len(inode.data):
            inode.data += bytes(offset - len(inode.data))
        inode.data[offset : offset + len(data)] = data
        inode.mtime = process.machine.now()
        if kind == WRITTEN_OFF:
            process.machine.files.lose(inode)
        if kind == "torn":
            process.die()
            raise crashed(f"{process.name} was killed while it wrote {b'/'.join(found.where)!r}")
        return len(data)

    def lseek(self, fd: int, position: int, how: int) -> int:
        if fd < FIRST_FD:
            return real_os.lseek(fd, position, how)
        found = opened(fd)
        base = {real_os.SEEK_SET: 0, real_os.SEEK_CUR: found.position, real_os.SEEK_END: len(found.inode.data)}[how]
        found.position = base + position
        return found.position

    def ftruncate(self, fd: int, size: int) -> None:
        if fd < FIRST_FD:
            real_os.ftruncate(fd, size)
            return
        found = opened(fd)
        found.process.fault("truncate", found.where, "ENOSPC")
        found.inode.data = (found.inode.data + bytes(max(0, size - len(found.inode.data))))[:size]
        found.inode.mtime = found.process.machine.now()

    def truncate(self, path: Any, size: int) -> None:
        fd = self.open(path, real_os.O_WRONLY)
        try:
            self.ftruncate(fd, size)
        finally:
            self.close(fd)

    def fsync(self, fd: int) -> None:
        if fd < FIRST_FD:
            real_os.fsync(fd)
            return
        found = opened(fd)
        process, inode, files = found.process, found.inode, found.process.machine.files
        process.pause()
        try:
            process.fault("fsync", found.where, "EIO")
        except OSError:
            if inode.synced == inode.data:
                raise
            files.lose(inode)
        if inode.is_directory:
            files.sync_directory(inode)
        else:
            files.sync_file(inode)
            found.report()

    def fstat(self, fd: int) -> real_os.stat_result:
        return real_os.fstat(fd) if fd < FIRST_FD else status(opened(fd).inode)

    def fdopen(self, fd: int, mode: str = "r") -> Any:
        if fd < FIRST_FD:
            return real_os.fdopen(fd, mode)
        raw = Raw(fd)
        buffered: Any = io.BufferedReader(raw) if mode.startswith("r") else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered)


class Raw(io.RawIOBase):
    """As io.open gives it, unbuffered."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._os = Descriptors()
        self.name = real_os.fsdecode(b"/".join(opened(fd).where))

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._os.read(self._fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        return self._os.write(self._fd, data)

    def seek(self, position: int, how: int = 0) -> int:
        return self._os.lseek(self._fd, position, how)

    def tell(self) -> int:
        return self._os.lseek(self._fd, 0, 1)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        self._os.ftruncate(self._fd, size)
        return size

    def close(self) -> None:
        if not self.closed:
            self._os.close(self._fd)
            super().close()
