"""What modules of storage/ get as `fcntl` and as their C library, for descriptors of simulated processes."""

from __future__ import annotations

import errno
import fcntl as real_fcntl
import struct
from typing import Any

from tests.simulation.processes import FIRST_FD, descriptors, failure, holders, locks, opened

_FLOCK = struct.Struct("@hhqqi4x")


class Fcntl:
    """What modules of storage/ get as `fcntl`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(real_fcntl, name)

    def fcntl(self, fd: int, command: int, argument: Any = 0) -> Any:
        if fd < FIRST_FD:
            return real_fcntl.fcntl(fd, command, argument)
        found = descriptors.get(fd)
        if found is None or not found.process.alive:
            raise failure(errno.EBADF, ())  # also of a process that died: its locks went with it
        if command == real_fcntl.F_OFD_SETLK:
            found.process.linger("lock", found.where)
        else:
            found.process.pause()
        kind = _FLOCK.unpack(argument)[0]
        held = holders(found.inode)
        alone = kind == real_fcntl.F_WRLCK
        in_the_way = [other for other, how in held.items() if other != fd and (alone or how == real_fcntl.F_WRLCK)]
        if command == real_fcntl.F_OFD_GETLK:
            free = real_fcntl.F_UNLCK
            return _FLOCK.pack(held[in_the_way[0]] if in_the_way else free, 0, 0, 0, -1)
        if command != real_fcntl.F_OFD_SETLK:
            raise NotImplementedError(f"fcntl {command}")
        if in_the_way:
            raise failure(errno.EAGAIN, found.where)
        locks.setdefault(found.inode, {})[fd] = kind
        return b""

    def flock(self, fd: int, operation: int) -> None:
        if fd < FIRST_FD:
            real_fcntl.flock(fd, operation)
            return
        kind = real_fcntl.F_RDLCK if operation & real_fcntl.LOCK_SH else real_fcntl.F_WRLCK
        while True:
            try:
                self.fcntl(fd, real_fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, 0, 0, 0))
            except BlockingIOError:
                if operation & real_fcntl.LOCK_NB:
                    raise
                opened(fd).process.machine.wait()
            else:
                return


class Libc:
    """What modules of storage/ get as their C library: syncfs and sync_file_range."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def syncfs(self, fd: int) -> int:
        if fd < FIRST_FD:
            return int(self._real.syncfs(fd))
        found = opened(fd)
        files = found.process.machine.files
        found.process.pause()
        try:
            found.process.fault("syncfs", (), "EIO")
        except OSError:
            if not (unwritten := files.unwritten()):
                raise
            for inode in unwritten:
                files.lose(inode)
        files.sync()
        found.report_all()
        return 0

    def sync_file_range(self, fd: int, *arguments: Any) -> int:
        return 0 if fd < FIRST_FD else int(self._real.sync_file_range(fd, *arguments))
