"""System calls of simulated processes: the real stores of storage/, unchanged, on a disk in memory.

Paths below `PREFIX` and descriptors from `FIRST_FD` on belong to a simulated process; what is anything else goes to the
kernel. Each call that changes something is a point where a fault may strike, called `<call> <directory of the root>`. A
process that has died does nothing any more: whatever it calls raises Crashed, so no clean-up of a `finally` reaches the
disk.
"""

from __future__ import annotations

import errno
import os as real_os
import stat
from collections.abc import Callable, Iterator
from typing import Any, Self

from tests.simulation.descriptors import Descriptors
from tests.simulation.inodes import Inode, directory
from tests.simulation.processes import FIRST_FD, Process, failure, locate, opened, status


class Entry:
    """As os.scandir gives them."""

    def __init__(self, name: Any, path: Any, inode: Inode, process: Process) -> None:
        self.name = name
        self.path = path
        self._inode = inode
        self._process = process

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._inode.is_directory

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._inode.is_file

    def is_symlink(self) -> bool:
        return self._inode.is_link

    def stat(self, *, follow_symlinks: bool = True) -> real_os.stat_result:
        self._process.check()
        return status(self._inode)


class Scan:
    """As os.scandir gives it."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = iter(entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Entry]:
        return self._entries


class Os(Descriptors):
    """What modules of storage/ get as `os`."""

    @property
    def path(self) -> OsPath:
        return OsPath()

    # ------------------------------------------------------------ names

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> real_os.stat_result:
        if isinstance(path, int):
            return self.fstat(path)
        place = self._place(path, dir_fd)
        if place is None:
            return real_os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        return status(self._find(place, dir_fd, path, follow=follow_symlinks))

    def lstat(self, path: Any, *, dir_fd: int | None = None) -> real_os.stat_result:
        return self.stat(path, dir_fd=dir_fd, follow_symlinks=False)

    def readlink(self, path: Any, *, dir_fd: int | None = None) -> Any:
        place = self._place(path, dir_fd)
        if place is None:
            return real_os.readlink(path, dir_fd=dir_fd)
        inode = self._find(place, dir_fd, path, follow=False)
        if not inode.is_link:
            raise failure(errno.EINVAL, place[1])
        return bytes(inode.data) if isinstance(path, bytes) else real_os.fsdecode(bytes(inode.data))

    def listdir(self, path: Any) -> list[Any]:
        found = self._directory(path)
        if found is None:
            return real_os.listdir(path)  # noqa: PTH208
        names = list(found[1].entries)
        return names if isinstance(path, bytes) else [real_os.fsdecode(name) for name in names]

    def scandir(self, path: Any) -> Any:
        found = self._directory(path)
        if found is None:
            return real_os.scandir(path)
        process, inode = found
        given: Any = real_os.fsdecode if not isinstance(path, bytes) else bytes
        top = b"" if isinstance(path, int) else real_os.fsencode(path) + b"/"
        return Scan([
            Entry(given(name), given(top + name), process.mounted(entry), process)
            for name, entry in inode.entries.items()
        ])

    def _directory(self, path: Any) -> tuple[Process, Inode] | None:
        if isinstance(path, int):
            if path < FIRST_FD:
                return None
            found = opened(path)
            found.process.refuse("list", found.where, "EIO")
            return found.process, found.inode
        place = locate(path)
        if place is None:
            return None
        inode = place[0].find(place[1])
        if not inode.is_directory:
            raise failure(errno.ENOTDIR, place[1])
        place[0].refuse("list", place[1], "EIO")
        return place[0], inode

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._make(path, dir_fd, lambda now: directory(mode, now), lambda: real_os.mkdir(path, mode, dir_fd=dir_fd))

    def symlink(self, target: Any, path: Any, *, dir_fd: int | None = None) -> None:
        data = bytearray(real_os.fsencode(target))
        self._make(
            path, dir_fd, lambda now: Inode(stat.S_IFLNK | 0o777, now, data=data, synced=bytes(data), links=0),
            lambda: real_os.symlink(target, path, dir_fd=dir_fd),
        )  # fmt: skip

    def mknod(self, path: Any, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None) -> None:
        self._make(
            path, dir_fd, lambda now: Inode(mode, now, rdev=device, links=0),
            lambda: real_os.mknod(path, mode, device, dir_fd=dir_fd),
        )  # fmt: skip

    def _make(self, path: Any, dir_fd: int | None, new: Callable[[int], Inode], real: Callable[[], None]) -> None:
        place = self._place(path, dir_fd)
        if place is None:
            real()
            return
        process, where, _ = place
        process.pause()
        parent, name = self._parent(place, path)
        if name in parent.entries:
            raise failure(errno.EEXIST, where)
        process.fault("create", where, "ENOSPC")
        process.machine.files.change((parent, name, new(process.machine.now())))
        parent.mtime = process.machine.now()

    def link(
        self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:  # fmt: skip
        place, other = self._place(target, dst_dir_fd), self._place(source, src_dir_fd)
        if place is None or other is None:
            real_os.link(
                source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks
            )
            return
        process, where, _ = place
        process.pause()
        inode = self._find(other, src_dir_fd, source, follow=False)
        parent, name = self._parent(place, target)
        if name in parent.entries:
            raise failure(errno.EEXIST, where)
        if inode.is_directory:
            raise failure(errno.EPERM, where)
        process.fault("link", where, "ENOSPC")
        process.machine.files.change((parent, name, inode))

    def rename(self, source: Any, target: Any, *_: Any, **options: Any) -> None:
        place, other = self._place(target, None), self._place(source, None)
        if place is None or other is None:
            real_os.rename(source, target, **options)  # noqa: PTH104
            return
        process, where, _start = place
        process.pause()
        old, old_name = process.parent(other[1])
        new, name = process.parent(where)
        inode = old.entries.get(old_name)
        if inode is None:
            raise failure(errno.ENOENT, other[1])
        there = new.entries.get(name)
        if there is inode:
            return
        if inode in process.mounts or there in process.mounts:
            raise failure(errno.EBUSY, where)
        if inode.holds(new):
            raise failure(errno.EINVAL, where)
        if there is not None and there.holds(old):
            raise failure(errno.ENOTEMPTY, where)
        if there is not None:
            if inode.is_directory and not there.is_directory:
                raise failure(errno.ENOTDIR, where)
            if there.is_directory and not inode.is_directory:
                raise failure(errno.EISDIR, where)
            if there.is_directory and there.entries:
                raise failure(errno.ENOTEMPTY, where)
        process.fault("rename", where, "ENOSPC", "EIO")
        process.machine.files.change((old, old_name, None), (new, name, inode))
        old.mtime = new.mtime = process.machine.now()

    def replace(self, source: Any, target: Any) -> None:
        if locate(target) is None:
            real_os.replace(source, target)  # noqa: PTH105
        else:
            self.rename(source, target)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove(path, dir_fd, "unlink", lambda: real_os.unlink(path, dir_fd=dir_fd))

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove(path, dir_fd, "rmdir", lambda: real_os.rmdir(path, dir_fd=dir_fd))

    def _remove(self, path: Any, dir_fd: int | None, call: str, real: Callable[[], None]) -> None:
        place = self._place(path, dir_fd)
        if place is None:
            real()
            return
        process, where, _ = place
        process.pause()
        parent, name = self._parent(place, path)
        inode = parent.entries.get(name)
        if inode is None:
            raise failure(errno.ENOENT, where)
        if call == "unlink" and inode.is_directory:
            raise failure(errno.EISDIR, where)
        if call == "rmdir":
            if not inode.is_directory:
                raise failure(errno.ENOTDIR, where)
            if inode in process.mounts:
                raise failure(errno.EBUSY, where)
            if inode.entries:
                raise failure(errno.ENOTEMPTY, where)
        process.fault(call, where, "EIO")
        process.machine.files.change((parent, name, None))
        parent.mtime = process.machine.now()

    # ------------------------------------------------------------ looks

    def _inode(self, path: Any, dir_fd: int | None = None, *, follow: bool = True) -> tuple[Process, Inode] | None:
        if isinstance(path, int):
            if path < FIRST_FD:
                return None
            found = opened(path)
            return found.process, found.inode
        raw = real_os.fsencode(path)
        if raw.startswith(b"/proc/self/fd/"):
            number, _, rest = raw.removeprefix(b"/proc/self/fd/").partition(b"/")
            if int(number) < FIRST_FD:
                return None
            found = opened(int(number))
            return found.process, found.process.find((rest,), follow=follow, start=found.inode)
        place = self._place(path, dir_fd)
        return None if place is None else (place[0], self._find(place, dir_fd, path, follow=follow))

    def chmod(self, path: Any, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        found = self._inode(path, dir_fd, follow=follow_symlinks)
        if found is None:
            real_os.chmod(path, mode, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
            return
        found[0].change("chmod")
        found[1].mode = stat.S_IFMT(found[1].mode) | mode

    def fchmod(self, fd: int, mode: int) -> None:
        self.chmod(fd, mode)

    def chown(
        self, path: Any, uid: int, gid: int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        found = self._inode(path, dir_fd, follow=follow_symlinks)
        if found is None:
            real_os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
            return
        found[0].change("chown")
        found[1].uid, found[1].gid = uid, gid

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        self.chown(fd, uid, gid)

    def utime(
        self, path: Any, times: Any = None, *, ns: Any = None, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        found = self._inode(path, dir_fd, follow=follow_symlinks)
        if found is None:
            given = {"ns": ns} if ns is not None else {"times": times}
            real_os.utime(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks, **given)
            return
        found[0].change("utime")
        if ns is not None:
            found[1].mtime = ns[1]
        else:
            found[1].mtime = round(times[1] * 1e9) if times else found[0].machine.now()

    def listxattr(self, path: Any, *, follow_symlinks: bool = True) -> list[str]:
        found = self._inode(path, follow=follow_symlinks)
        if found is None:
            return real_os.listxattr(path, follow_symlinks=follow_symlinks)
        return [real_os.fsdecode(name) for name in found[1].xattrs]

    def getxattr(self, path: Any, name: Any, *, follow_symlinks: bool = True) -> bytes:
        found = self._inode(path, follow=follow_symlinks)
        if found is None:
            return real_os.getxattr(path, name, follow_symlinks=follow_symlinks)
        if real_os.fsencode(name) not in found[1].xattrs:
            raise failure(errno.ENODATA, ())
        return found[1].xattrs[real_os.fsencode(name)]

    def setxattr(self, path: Any, name: Any, value: bytes, *, follow_symlinks: bool = True) -> None:
        found = self._inode(path, follow=follow_symlinks)
        if found is None:
            real_os.setxattr(path, name, value, follow_symlinks=follow_symlinks)
            return
        found[0].change("setxattr")
        found[1].xattrs[real_os.fsencode(name)] = bytes(value)

    def removexattr(self, path: Any, name: Any, *, follow_symlinks: bool = True) -> None:
        found = self._inode(path, follow=follow_symlinks)
        if found is None:
            real_os.removexattr(path, name, follow_symlinks=follow_symlinks)
            return
        found[0].change("removexattr")
        found[1].xattrs.pop(real_os.fsencode(name), None)


class OsPath:
    """What they get as `os.path`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(real_os.path, name)

    def lexists(self, path: Any) -> bool:
        place = locate(path)
        if place is None:
            return real_os.path.lexists(path)
        try:
            place[0].find(place[1], follow=False)
        except OSError:
            return False
        return True
