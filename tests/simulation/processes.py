"""Simulated processes: what they have open and mounted, how they find files, and how they die.

Paths below `PREFIX` and descriptors from `FIRST_FD` on belong to one, paths below `disk_of` to whoever uses them. A
process that has died does nothing any more: whatever it calls raises Crashed, so no clean-up of a `finally` reaches the
disk.
"""

from __future__ import annotations

import errno
import os as real_os
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.simulation import chance
from tests.simulation.chance import Crashed, Faults
from tests.simulation.inodes import FileSystem, Inode
from tests.simulation.threads import Threads

PREFIX = "/~simulated/"
_ANYBODY = b"-"
READER = "reader"
"""The name of the process that judges."""
FIRST_FD = 1 << 24
_LINKS = 40


class Machine(Protocol):
    """What processes share."""

    files: FileSystem
    faults: Faults
    number: int
    threads: Threads | None
    """Who may be stalled at a call that changes something, if anybody."""

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
    """An open file of a process. `told`, `told_of_all`: errors of the file, of the file system, that it knows of."""

    process: Process
    inode: Inode
    flags: int
    where: tuple[bytes, ...]
    position: int = 0
    was_read: bool = False
    told: int = field(init=False)
    told_of_all: int = field(init=False)

    def __post_init__(self) -> None:
        self.told = self.inode.errors.seen()
        self.told_of_all = self.process.machine.files.errors.seen()

    def read(self, start: int, size: int) -> bytes:
        """Bytes of it. The first time the disk may refuse. Raises OSError."""
        if not self.was_read:
            self.was_read = True
            self.process.refuse("read", self.where, "EIO")
        return bytes(self.inode.data[start : start + size])

    def report(self) -> None:
        """What could not be written back of the file is told once. Raises OSError."""
        if self.told < (errors := self.inode.errors).count:
            self.told, errors.told = errors.count, True
            raise failure(errno.EIO, self.where)

    def report_all(self) -> None:
        """As `report`, of the file system."""
        if self.told_of_all < (errors := self.process.machine.files.errors).count:
            self.told_of_all, errors.told = errors.count, True
            raise failure(errno.EIO, self.where)


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
    reads_only: bool = False
    """Is it one that must change nothing (I13)?"""
    problems: list[str] = field(default_factory=list)
    """What it does all the same."""

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
            unlock(fd, found.inode)
        self.open.clear()
        processes.pop(self.prefix, None)

    def held(self) -> list[str]:
        """What it has open, or mounted."""
        places = [found.where for found in self.open.values()] + [mount.where for mount in self.mounts.values()]
        return [b"/".join(where).decode(errors="replace") for where in places]

    def check(self) -> None:
        """Raises Crashed when it is dead."""
        if not self.alive:
            raise crashed(f"{self.name} is dead")

    def pause(self) -> None:
        """A point where somebody else may go on."""
        self.check()
        self.machine.pause()
        self.check()

    def change(self, call: str, where: tuple[bytes, ...] = ()) -> None:
        """Something is about to be changed. Raises Crashed, OSError."""
        self.check()
        if self.reads_only:
            self.problems.append(f"I13 {self.name} only looks, and calls {call} of {b'/'.join(where)!r}")
            raise failure(errno.EROFS, where)

    def fault(self, call: str, where: tuple[bytes, ...], *kinds: str) -> str:
        """The fault that strikes a call that changes something; raises what it is, but for those that are told."""
        self.change(call, where)
        if call not in {"mount", "fsync", "syncfs"} and self._is_read_only(where):
            raise failure(errno.EROFS, where)
        threads = self.machine.threads
        if threads is not None and threads.current is not None:
            kinds = (*kinds, "stalled")
        kind = self.machine.faults.at(_named(call, where), *kinds, "crash")
        if kind == "stalled" and threads is not None:
            threads.stall()
            return ""
        if kind == "crash":
            self.die()
            raise crashed(f"{self.name} was killed at {call} {b'/'.join(where)!r}")
        if kind in {"ENOSPC", "EIO"}:
            raise failure(getattr(errno, kind), where)
        return kind

    def refuse(self, call: str, where: tuple[bytes, ...], *kinds: str) -> None:
        """A call that changes nothing, which the disk or the kernel may refuse, but not to whoever judges. Raises
        OSError."""
        if self.name != READER and (kind := self.machine.faults.at(_named(call, where), *kinds)):
            raise failure(getattr(errno, kind), where)

    def linger(self, call: str, where: tuple[bytes, ...]) -> None:
        """A point where somebody else may go on, also for long, though nothing is changed."""
        threads = self.machine.threads
        able = threads is not None and threads.current is not None
        if threads is not None and able and self.machine.faults.at(_named(call, where), "stalled"):
            threads.stall()
        self.pause()

    # ------------------------------------------------------------ names

    def find(self, where: tuple[bytes, ...], *, follow: bool = True, start: Inode | None = None) -> Inode:
        """The inode at a path, from the root or from `start` on. Raises OSError."""
        self.check()
        inode = self.mounted(start or self.machine.files.top)
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
                raise failure(errno.ENOTDIR, where)
            found = inode.entries.get(name)
            if found is None:
                raise failure(errno.ENOENT, where)
            found = self.mounted(found)
            if found.is_link and (follow or waiting):
                links += 1
                if links > _LINKS:
                    raise failure(errno.ELOOP, where)
                target = bytes(found.data)
                if target.startswith(b"/"):
                    raise failure(errno.ENOENT, where)  # out of the disk
                waiting += reversed(target.split(b"/"))
                continue
            inode = found
            trail.append(inode)
        return inode

    def parent(self, where: tuple[bytes, ...], start: Inode | None = None) -> tuple[Inode, bytes]:
        """The directory that a path's last name is in, and that name. Raises OSError."""
        if not where:
            raise failure(errno.EBUSY, where)
        found = self.find(where[:-1], start=start)
        if not found.is_directory:
            raise failure(errno.ENOTDIR, where)
        return found, where[-1]

    def _is_read_only(self, where: tuple[bytes, ...]) -> bool:
        points = [mount for mount in self.mounts.values() if where[: len(mount.where)] == mount.where]
        return bool(points) and max(points, key=lambda mount: len(mount.where)).read_only

    def mounted(self, inode: Inode) -> Inode:
        while (mount := self.mounts.get(inode)) is not None:
            inode = mount.top
        return inode


def _named(call: str, where: tuple[bytes, ...]) -> str:
    """The name of the point that a call at `where` is."""
    top = where[1].decode("ascii", "replace") if len(where) > 1 else ""
    return f"{call} {top}".strip()


@dataclass(slots=True)
class Mounted:
    """Something that is mounted: its `top`; `leave` is called when it is unmounted. `where`: the mount point."""

    top: Inode
    where: tuple[bytes, ...]
    read_only: bool = True
    leave: Callable[[], None] = lambda: None


def crashed(what: str) -> Crashed:
    """Without ending whoever happens to run: files are closed, and say so, when the interpreter finds them unused."""
    return Context().run(Crashed, what)


processes: dict[str, Process] = {}
"""By prefix."""
descriptors: dict[int, Open] = {}


def disk_of(machine: int) -> str:
    """Where each process of a machine finds its disk: for paths that outlive the process, as those in a log do."""
    return f"{PREFIX}{machine}/{_ANYBODY.decode()}"


def locate(path: Any) -> tuple[Process, tuple[bytes, ...]] | None:
    """Whose path this is, and the names in it; None for one of the real file system."""
    text = real_os.fspath(path)
    raw = real_os.fsencode(text)
    if not raw.startswith(PREFIX.encode()):
        return None
    parts = raw[len(PREFIX) :].split(b"/")
    here = chance.process()
    if parts[1:2] == [_ANYBODY] and here is not None:
        parts[1] = here.name.encode()
    process = processes.get(PREFIX + real_os.fsdecode(b"/".join(parts[:2])))
    if process is None:
        raise crashed(f"{text!r} is of a process that is gone")
    return process, tuple(part for part in parts[2:] if part)


def opened(fd: int) -> Open:
    """The open file behind a descriptor. Raises OSError, Crashed."""
    found = descriptors.get(fd)
    if found is None:
        raise failure(errno.EBADF, ())
    found.process.check()
    return found


def failure(number: int, where: tuple[bytes, ...]) -> OSError:
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


# ---------------------------------------------------------------- locks


locks: dict[Inode, dict[int, int]] = {}
"""Who holds open file description locks (F_OFD_SETLK), by descriptor: the kind."""


def holders(inode: Inode) -> dict[int, int]:
    """Who holds it: those that died do not."""
    held = locks.get(inode, {})
    return {fd: kind for fd, kind in held.items() if (found := descriptors.get(fd)) is not None and found.process.alive}


def unlock(fd: int, inode: Inode) -> None:
    held = locks.get(inode, {})
    held.pop(fd, None)
    if not held:
        locks.pop(inode, None)
