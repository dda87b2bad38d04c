"""A file system in memory that knows what a power loss would leave of it.

What it promises is what POSIX does, and no more: bytes of a file are durable after fsync of the file, names after fsync
of the directory that they are in, all after syncfs. What was not made durable may be there or not, name by name, and a
file's bytes in part; only that an entry goes from one directory to another in one piece, and that changes of one
directory are lost from the last one on, is certain (as with any journal).

Bytes that could not be written back are lost for good, though everybody reads them until the power goes: the kernel
counts them as written, and no later flush tries again. It tells each descriptor once, and none that was opened after
somebody was told (errseq_t, Linux's Documentation/core-api/errseq.rst).
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.chance import Chance

_numbers = itertools.count(1)


@dataclass(slots=True)
class Errors:
    """How often bytes of a file, or of a file system, could not be written back; `told`: does anybody know of the last
    time?"""

    count: int = 0
    told: bool = True

    def happened(self) -> None:
        """Once more."""
        self.count, self.told = self.count + 1, False

    def seen(self) -> int:
        """What who opens it now need not be told of any more."""
        return self.count if self.told else self.count - 1


@dataclass(eq=False, slots=True)
class Inode:
    """A file, directory, link or device, by the type in `mode`. `data` of a file, or the target of a link; `synced`
    what of it is durable, `lost`: all that ever will be; `entries` and `durable_entries` of a directory, the same of
    names."""

    mode: int
    mtime: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    lost: bool = False
    errors: Errors = field(default_factory=Errors)
    entries: dict[bytes, Inode] = field(default_factory=dict)
    durable_entries: dict[bytes, Inode] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    links: int = 1
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def holds(self, other: Inode) -> bool:
        """Is `other` this one, or below it?"""
        return other is self or any(entry.is_directory and entry.holds(other) for entry in self.entries.values())

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


def directory(mode: int = 0o755, mtime: int = 0) -> Inode:
    """A new, empty one."""
    return Inode(stat.S_IFDIR | mode, mtime)


@dataclass(frozen=True, slots=True)
class _Change:
    """Names that go and come, at once: (directory, name, what is there from now on, None for nothing)."""

    parts: tuple[tuple[Inode, bytes, Inode | None], ...]

    def directories(self) -> set[Inode]:
        return {part[0] for part in self.parts}

    def make_durable(self) -> None:
        for parent, name, found in self.parts:
            if found is None:
                parent.durable_entries.pop(name, None)
            else:
                parent.durable_entries[name] = found


class FileSystem:
    """The inodes below `top`, and the changes of names that are not durable yet, in order."""

    def __init__(self) -> None:
        self.top = directory()
        self.errors = Errors()
        self._pending: list[_Change] = []

    def change(self, *parts: tuple[Inode, bytes, Inode | None]) -> None:
        """Change names, at once."""
        for parent, name, found in parts:
            old = parent.entries.pop(name, None)
            if old is not None:
                old.links -= 1
            if found is not None:
                parent.entries[name] = found
                found.links = found.links + 1 if found.links > 0 else 1
        self._pending.append(_Change(parts))

    def put(self, path: str, data: bytes) -> None:
        """Have a file there, and the directories above it, as if they had always been."""
        *above, name = path.encode().split(b"/")
        inode = self.top
        for part in above:
            if part not in inode.entries:
                inode.entries[part] = inode.durable_entries[part] = directory()
            inode = inode.entries[part]
        file = Inode(stat.S_IFREG | 0o644, data=bytearray(data), synced=data)
        inode.entries[name] = inode.durable_entries[name] = file

    def sync_file(self, inode: Inode) -> None:
        """fsync(2) of a file."""
        if not inode.lost:
            inode.synced = bytes(inode.data)

    def lose(self, inode: Inode) -> None:
        """What was written to a file, and is not durable, cannot be written back."""
        inode.lost = True
        inode.errors.happened()
        self.errors.happened()

    def sync_directory(self, inode: Inode) -> None:
        """fsync(2) of a directory: what was changed in it, and what that depends on."""
        wanted, durable = {inode}, []
        for change in reversed(self._pending):
            if not wanted.isdisjoint(change.directories()):
                wanted |= change.directories()
                durable.append(change)
        for change in reversed(durable):
            change.make_durable()
            self._pending.remove(change)

    def sync(self) -> None:
        """syncfs(2)."""
        for change in self._pending:
            change.make_durable()
        self._pending.clear()
        for inode in self._all(self.top):
            self.sync_file(inode)

    def unwritten(self) -> list[Inode]:
        """Files of which something is not durable."""
        return [inode for inode in self._all(self.top) if inode.synced != inode.data]

    @property
    def undurable(self) -> int:
        """Changes of names, and files, that a power loss could take back."""
        return len(self._pending) + len(self.unwritten())

    def power_loss(self, chance: Chance | None = None) -> None:
        """Forget what is not durable: all of it, or, by `chance`, some."""
        lost: set[Inode] = set()
        for change in self._pending:
            if chance is not None and lost.isdisjoint(change.directories()) and chance.maybe(50):
                change.make_durable()
            else:
                lost |= change.directories()
        self._pending.clear()
        self._restore(self.top, chance, set())

    def _restore(self, inode: Inode, chance: Chance | None, seen: set[Inode]) -> None:
        if inode in seen:
            return
        seen.add(inode)
        if inode.is_file and inode.synced != inode.data:
            inode.data = bytearray(_left(inode.synced, bytes(inode.data), chance))
            inode.synced = bytes(inode.data)
        inode.lost = False
        inode.entries = dict(inode.durable_entries)
        for entry in inode.entries.values():
            self._restore(entry, chance, seen)

    def _all(self, inode: Inode) -> Iterator[Inode]:
        seen, waiting = set(), [inode]
        while waiting:
            found = waiting.pop()
            if found in seen:
                continue
            seen.add(found)
            yield found
            waiting += found.entries.values()


def _left(synced: bytes, data: bytes, chance: Chance | None) -> bytes:
    """What is left of a file of which `synced` is durable and `data` was written: the one, the other, a part of it, or
    its length without its bytes (delayed allocation)."""
    match 0 if chance is None else chance.below(4):
        case 0:
            return synced
        case 1:
            return data
        case 2 if chance is not None and data:
            return data[: chance.below(len(data))]
        case _:
            return synced + bytes(max(0, len(data) - len(synced)))
