"""System calls of simulated processes: the real stores of storage/, unchanged, on a disk in memory.

Paths below `PREFIX` and descriptors from `FIRST_FD` on belong to a simulated process; what is anything else goes to the
kernel. Each call that changes something is a point where a fault may strike, called `<call> <directory of the root>`. A
process that has died does nothing any more: whatever it calls raises Crashed, so no clean-up of a `finally` reaches the
disk.
"""

from __future__ import annotations

import errno
import fcntl as real_fcntl
import io
import itertools
import os as real_os
import stat
import struct
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.simulation import chance
from tests.simulation.chance import Crashed, Faults
from tests.simulation.inodes import FileSystem, Inode, directory

PREFIX = "/~simulated/"
FIRST_FD = 1 << 24
_FLOCK = struct.Struct("@hhqqi4x")
_LINKS = 40
_numbers = itertools.count(FIRST_FD)


class Machine(Protocol):
    """What processes share."""

    files: FileSystem
    faults: Faults
    number: int

    def now(self) -> int:
        """UTC, ns."""
        ...

    def pause(self) -> None:
        """Somebody else may go on here (see threads.Threads.pause)."""
        ...

    def wait(self) -> None:
        """Somebody else has to go on here."""
        ...


@dataclass(eq=False, slots=True)
class Open:
    """An open file of a process."""

    process: Process
    inode: Inode
    flags: int
    where: tuple[bytes, ...]
    position: int = 0


@dataclass(eq=False)
class Process:
    """A simulated process as its system calls see it; it lives as long as `owner`. `mounts`: directories that something
    is mounted at, with what that is; they die with the process (its mount namespace)."""

    machine: Machine
    name: str
    owner: chance.Process
    open: dict[int, Open] = field(default_factory=dict)
    mounts: dict[Inode, Mounted] = field(default_factory=dict)
    log: Callable[[], Any] = lambda: None
    """Gives the event log of its root, open."""

    @property
    def prefix(self) -> str:
        return f"{PREFIX}{self.machine.number}/{self.name}"

    @property
    def alive(self) -> bool:
        """Did nobody kill it yet?"""
        return self.owner.alive

    def die(self) -> None:
        """kill -9. Its descriptors stay known, so that whoever uses one learns that the process is dead."""
        self.owner.alive = False

    def forget(self) -> None:
        """Nobody uses it any more."""
        for fd, found in self.open.items():
            descriptors.pop(fd, None)
            _unlock(fd, found.inode)
        self.open.clear()
        processes.pop(self.prefix, None)

    def check(self) -> None:
        """Raises Crashed when it is dead."""
        if not self.alive:
            raise _crashed(f"{self.name} is dead")

    def pause(self) -> None:
        """A point where somebody else may go on."""
        self.check()
        self.machine.pause()
        self.check()

    def fault(self, call: str, where: tuple[bytes, ...], *kinds: str) -> str:
        """The fault that strikes a call that changes something; raises what it is, but for those that are told."""
        self.check()
        if call not in {"mount", "fsync", "syncfs"} and self._is_read_only(where):
            raise _error(errno.EROFS, where)
        top = where[1].decode("ascii", "replace") if len(where) > 1 else ""
        kind = self.machine.faults.at(f"{call} {top}".strip(), *kinds, "crash")
        if kind == "crash":
            self.die()
            raise _crashed(f"{self.name} was killed at {call} {b'/'.join(where)!r}")
        if kind in {"ENOSPC", "EIO", "EMFILE"}:
            number = getattr(errno, kind)
            raise _error(number, where)
        return kind

    # ------------------------------------------------------------ names

    def find(self, where: tuple[bytes, ...], *, follow: bool = True, start: Inode | None = None) -> Inode:
        """The inode at a path, from the root or from `start` on. Raises OSError."""
        self.check()
        inode = self._mounted(start or self.machine.files.top)
        waiting, links = list(reversed(where)), 0
        trail = [inode]
        while waiting:
            name = waiting.pop()
            if name in {b"", b"."}:
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                inode = trail[-1]
                continue
            if not inode.is_directory:
                raise _error(errno.ENOTDIR, where)
            found = inode.entries.get(name)
            if found is None:
                raise _error(errno.ENOENT, where)
            found = self._mounted(found)
            if found.is_link and (follow or waiting):
                links += 1
                if links > _LINKS:
                    raise _error(errno.ELOOP, where)
                target = bytes(found.data)
                if target.startswith(b"/"):
                    raise _error(errno.ENOENT, where)  # out of the disk
                waiting += reversed(target.split(b"/"))
                continue
            inode = found
            trail.append(inode)
        return inode

    def parent(self, where: tuple[bytes, ...], start: Inode | None = None) -> tuple[Inode, bytes]:
        """The directory that a path's last name is in, and that name. Raises OSError."""
        if not where:
            raise _error(errno.EBUSY, where)
        found = self.find(where[:-1], start=start)
        if not found.is_directory:
            raise _error(errno.ENOTDIR, where)
        return found, where[-1]

    def _is_read_only(self, where: tuple[bytes, ...]) -> bool:
        points = [mount for mount in self.mounts.values() if where[: len(mount.where)] == mount.where]
        return bool(points) and max(points, key=lambda mount: len(mount.where)).read_only

    def _mounted(self, inode: Inode) -> Inode:
        while (mount := self.mounts.get(inode)) is not None:
            inode = mount.top
        return inode


@dataclass(slots=True)
class Mounted:
    """Something that is mounted: its `top`; `leave` is called when it is unmounted. `where`: the mount point."""

    top: Inode
    where: tuple[bytes, ...]
    read_only: bool = True
    leave: Callable[[], None] = lambda: None


def _crashed(what: str) -> Crashed:
    """Without ending whoever happens to run: files are closed, and say so, when the interpreter finds them unused."""
    return Context().run(Crashed, what)


processes: dict[str, Process] = {}
"""By prefix."""
descriptors: dict[int, Open] = {}


def locate(path: Any) -> tuple[Process, tuple[bytes, ...]] | None:
    """Whose path this is, and the names in it; None for one of the real file system."""
    text = real_os.fspath(path)
    raw = real_os.fsencode(text)
    if not raw.startswith(PREFIX.encode()):
        return None
    parts = raw[len(PREFIX) :].split(b"/")
    process = processes.get(PREFIX + real_os.fsdecode(b"/".join(parts[:2])))
    if process is None:
        raise _crashed(f"{text!r} is of a process that is gone")
    return process, tuple(part for part in parts[2:] if part)


def opened(fd: int) -> Open:
    """The open file behind a descriptor. Raises OSError, Crashed."""
    found = descriptors.get(fd)
    if found is None:
        raise _error(errno.EBADF, ())
    found.process.check()
    return found


def _error(number: int, where: tuple[bytes, ...]) -> OSError:
    return OSError(number, real_os.strerror(number), b"/".join(where).decode(errors="replace"))


def status(inode: Inode) -> real_os.stat_result:
    """As stat(2) has it."""
    size = len(inode.data) if not inode.is_directory else 4096
    seconds = inode.mtime // 10**9
    return real_os.stat_result((
        inode.mode, inode.number, 0x51, max(inode.links, 0) or 1, inode.uid, inode.gid, size, seconds, seconds, seconds,
        inode.mtime / 1e9, inode.mtime / 1e9, inode.mtime / 1e9, inode.mtime, inode.mtime, inode.mtime,
        4096, -(-size // 512), inode.rdev,
    ))  # fmt: skip


# ---------------------------------------------------------------- os


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

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Entry]:
        return self._entries


Place = tuple[Process, tuple[bytes, ...], Inode | None]


class Os:
    """What modules of storage/ get as `os`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(real_os, name)

    @property
    def path(self) -> OsPath:
        return OsPath()

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
        try:
            inode = self._find(place, dir_fd, path, follow=not flags & real_os.O_NOFOLLOW)
        except FileNotFoundError:
            if not flags & real_os.O_CREAT:
                raise
            parent, name = self._parent(place, path)
            process.fault("create", where, "ENOSPC")
            inode = Inode(stat.S_IFREG | mode, process.machine.now(), links=0)
            process.machine.files.change((parent, name, inode))
        else:
            if flags & real_os.O_CREAT and flags & real_os.O_EXCL:
                raise _error(errno.EEXIST, where)
            if inode.is_link:
                raise _error(errno.ELOOP, where)
            if flags & real_os.O_DIRECTORY and not inode.is_directory:
                raise _error(errno.ENOTDIR, where)
            if inode.is_directory and flags & (real_os.O_WRONLY | real_os.O_RDWR):
                raise _error(errno.EISDIR, where)
            if flags & real_os.O_TRUNC:
                process.fault("truncate", where, "EIO")
                inode.data = bytearray()
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
            _unlock(fd, found.inode)

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
        data = bytes(found.inode.data[found.position : found.position + size])
        found.position += len(data)
        return data

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if fd < FIRST_FD:
            return real_os.pread(fd, size, offset)
        return bytes(opened(fd).inode.data[offset : offset + size])

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
        kind = process.fault("write", found.where, "ENOSPC", "short", "torn", "EIO")
        if kind:
            data = data[: max(1, len(data) // 2)]
        if offset > len(inode.data):
            inode.data += bytes(offset - len(inode.data))
        inode.data[offset : offset + len(data)] = data
        inode.mtime = process.machine.now()
        if kind == "torn":
            process.die()
            raise _crashed(f"{process.name} was killed while it wrote {b'/'.join(found.where)!r}")
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
        found.process.pause()
        found.process.fault("fsync", found.where, "EIO")
        files = found.process.machine.files
        if found.inode.is_directory:
            files.sync_directory(found.inode)
        else:
            files.sync_file(found.inode)

    def fstat(self, fd: int) -> real_os.stat_result:
        return real_os.fstat(fd) if fd < FIRST_FD else status(opened(fd).inode)

    def fdopen(self, fd: int, mode: str = "r") -> Any:
        if fd < FIRST_FD:
            return real_os.fdopen(fd, mode)
        raw = Raw(fd)
        buffered: Any = io.BufferedReader(raw) if mode.startswith("r") else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered)

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
            raise _error(errno.EINVAL, place[1])
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
        text = isinstance(path, int) or not isinstance(path, bytes)
        entries = []
        for name, entry in inode.entries.items():
            shown = real_os.fsdecode(name) if text else name
            top = "" if isinstance(path, int) else real_os.fspath(path)
            full = shown if isinstance(path, int) else (f"{top}/{shown}" if text else top + b"/" + shown)
            entries.append(Entry(shown, full, process._mounted(entry), process))
        return Scan(entries)

    def _directory(self, path: Any) -> tuple[Process, Inode] | None:
        if isinstance(path, int):
            if path < FIRST_FD:
                return None
            found = opened(path)
            return found.process, found.inode
        place = locate(path)
        if place is None:
            return None
        inode = place[0].find(place[1])
        if not inode.is_directory:
            raise _error(errno.ENOTDIR, place[1])
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
            raise _error(errno.EEXIST, where)
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
            raise _error(errno.EEXIST, where)
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
        inode = old.entries.get(old_name)
        if inode is None:
            raise _error(errno.ENOENT, other[1])
        new, name = process.parent(where)
        there = new.entries.get(name)
        if there is inode:
            return
        if inode in process.mounts or there in process.mounts:
            raise _error(errno.EBUSY, where)
        if there is not None:
            if inode.is_directory and not there.is_directory:
                raise _error(errno.ENOTDIR, where)
            if there.is_directory and not inode.is_directory:
                raise _error(errno.EISDIR, where)
            if there.is_directory and there.entries:
                raise _error(errno.ENOTEMPTY, where)
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
            raise _error(errno.ENOENT, where)
        if call == "unlink" and inode.is_directory:
            raise _error(errno.EISDIR, where)
        if call == "rmdir":
            if not inode.is_directory:
                raise _error(errno.ENOTDIR, where)
            if inode in process.mounts:
                raise _error(errno.EBUSY, where)
            if inode.entries:
                raise _error(errno.ENOTEMPTY, where)
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
            raise _error(errno.ENODATA, ())
        return found[1].xattrs[real_os.fsencode(name)]

    def setxattr(self, path: Any, name: Any, value: bytes, *, follow_symlinks: bool = True) -> None:
        found = self._inode(path, follow=follow_symlinks)
        if found is None:
            real_os.setxattr(path, name, value, follow_symlinks=follow_symlinks)
            return
        found[1].xattrs[real_os.fsencode(name)] = bytes(value)

    def removexattr(self, path: Any, name: Any, *, follow_symlinks: bool = True) -> None:
        found = self._inode(path, follow=follow_symlinks)
        if found is None:
            real_os.removexattr(path, name, follow_symlinks=follow_symlinks)
            return
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


class Raw(io.RawIOBase):
    """As io.open gives it, unbuffered."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._os = Os()
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


# ---------------------------------------------------------------- locks, and what goes by way of libc

_locks: dict[Inode, dict[int, int]] = {}
"""Who holds open file description locks (F_OFD_SETLK), by descriptor: the kind."""


class Fcntl:
    """What modules of storage/ get as `fcntl`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(real_fcntl, name)

    def fcntl(self, fd: int, command: int, argument: Any = 0) -> Any:
        if fd < FIRST_FD:
            return real_fcntl.fcntl(fd, command, argument)
        found = descriptors.get(fd)
        if found is None or not found.process.alive:
            raise _error(errno.EBADF, ())  # also of a process that died: its locks went with it
        found.process.pause()
        kind = _FLOCK.unpack(argument)[0]
        held = _held(found.inode)
        alone = kind == real_fcntl.F_WRLCK
        in_the_way = [other for other, how in held.items() if other != fd and (alone or how == real_fcntl.F_WRLCK)]
        if command == real_fcntl.F_OFD_GETLK:
            free = real_fcntl.F_UNLCK
            return _FLOCK.pack(held[in_the_way[0]] if in_the_way else free, 0, 0, 0, -1)
        if command != real_fcntl.F_OFD_SETLK:
            raise NotImplementedError(f"fcntl {command}")
        if in_the_way:
            raise _error(errno.EAGAIN, found.where)
        _locks.setdefault(found.inode, {})[fd] = kind
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


def _held(inode: Inode) -> dict[int, int]:
    """Who holds it: those that died do not."""
    held = _locks.get(inode, {})
    return {fd: kind for fd, kind in held.items() if (found := descriptors.get(fd)) is not None and found.process.alive}


def _unlock(fd: int, inode: Inode) -> None:
    held = _locks.get(inode, {})
    held.pop(fd, None)
    if not held:
        _locks.pop(inode, None)


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
        found.process.pause()
        found.process.fault("syncfs", (), "EIO")
        found.process.machine.files.sync()
        return 0

    def sync_file_range(self, fd: int, *arguments: Any) -> int:
        return 0 if fd < FIRST_FD else int(self._real.sync_file_range(fd, *arguments))
