"""What a layer tar holds, as a tree in memory: the same result as laying it out on a disk, without a disk.

Rules are those of storage/tar/unpack.py, which lays out directories: every parent resolves with the layer's own root as
`/`, last components are never followed, the last member of a name wins, and whiteouts hide entries of lower layers
only, wherever in the tar they stand (image-spec layer.md). Links can only lead to nodes of the tree, so nothing a
hostile layer says can reach anything else. What it holds in memory is bounded by `Budget`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from storage.errors import VerificationError
from storage.layers.erofs.attributes import LONGEST_NAME, Xattrs, taken
from storage.tar.reader import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK, Entry
from storage.tar.rules import (
    AUFS,
    MOST_BYTES,
    OPAQUE_NAME,
    OPAQUE_XATTR,
    ORIGIN_XATTR,
    WHITEOUT,
    Budget,
    clean,
    hidden_by,
    no_target,
    owner,
    show,
)

_TYPES = {
    REGULAR: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK, CHARACTER: stat.S_IFCHR,
    BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO,
}  # fmt: skip
_MAX_LINKS = 40  # as the kernel's MAXSYMLINKS
LONGEST_PATH = 4095
"""Bytes of a path, or of a link's target, that the kernel takes."""
_NODE_COST = 400  # bytes of memory of an entry, beside its name, link and attributes


class Node:
    """An inode. `mode` with the file type; `mtime` in ns; `size` in bytes for files and links; `data` by type: the
    offset of a file's bytes in the tar or its `segments`, a link's target, a device number, a directory's entries.
    `said`: the tar has a member for it; `links`: how many names lead to it. `place` is the encoder's."""

    __slots__ = ("data", "gid", "links", "mode", "mtime", "place", "said", "size", "uid", "xattrs")

    data: int | bytes | dict[bytes, Node] | Segments

    def __init__(self, mode: int, data: int | bytes | dict[bytes, Node] | Segments, size: int = 0) -> None:
        self.mode = mode
        self.data = data
        self.size = size
        self.uid = self.gid = self.mtime = 0
        self.links = 0
        self.xattrs: Xattrs = ()
        self.said = False
        self.place = -1

    @property
    def entries(self) -> dict[bytes, Node]:
        """A directory's entries by name."""
        assert isinstance(self.data, dict)
        return self.data

    @property
    def is_directory(self) -> bool:
        """Is it one?"""
        return type(self.data) is dict


@dataclass(frozen=True, slots=True)
class Segments:
    """A sparse file: its stored bytes lie in the tar from `offset` on, one piece after the other; each piece is
    (offset in the file, length)."""

    offset: int
    pieces: tuple[tuple[int, int], ...]


class LayerTree:
    """The tree as it grows. All methods raise VerificationError for what no file system could hold."""

    def __init__(self, budget: Budget | None = None, *, longest_path: int = LONGEST_PATH) -> None:
        """`longest_path`: in bytes; the kernel's bound for what is named in one call, unless told otherwise."""
        self._longest_path = longest_path
        self.root = _directory()
        self.root.links = 1
        self.bytes = 0
        self.budget = budget or Budget(hint="use --snapshotter directory")
        self._parents: dict[bytes, Node] = {}
        self._whiteouts: list[bytes] = []
        self._opaque: list[bytes] = []
        self._known: dict[Xattrs, Xattrs] = {(): ()}

    # ---------------------------------------------------------------- members

    def add(self, entry: Entry) -> None:
        """Take in one member; a regular file's bytes lie in the tar from `entry.offset` on."""
        try:
            self._add(entry)
        except OSError as error:
            raise VerificationError(f"{show(entry)} cannot be laid out: {error.strerror}") from error
        except OverflowError as error:
            raise VerificationError(f"{show(entry)}: a number out of range: {error}") from error

    def _add(self, entry: Entry) -> None:
        path = clean(entry.name)
        parent_path, _, base = path.rpartition(b"/")
        if not path:
            if entry.type != DIRECTORY:
                raise VerificationError(f"the layer's root is no directory but of type {entry.type!r}")
            self._dress(self.root, entry)
        elif base.startswith(WHITEOUT):
            self._whiteout(parent_path, base)
        elif not path.startswith(AUFS):
            if len(base) > LONGEST_NAME:
                raise _error(errno.ENAMETOOLONG)
            parent = self._parents.get(parent_path) or self._parent(parent_path)
            there = parent.entries.get(base)
            if entry.type == HARD_LINK:
                node = self._target(entry)
                if node is there:
                    return
            elif there is not None and entry.type == DIRECTORY and there.is_directory:
                self._dress(there, entry)
                return
            else:
                node = self._node(entry)
            if there is not None:
                _drop(parent, base)
                self._parents.clear()  # it may have led to them
                parent = self._parent(parent_path)
                if entry.type == HARD_LINK:
                    self._target(entry)  # what was removed may have led there
            node.links += 1
            parent.entries[base] = node
            self.budget.spend(_NODE_COST + len(base))

    def _node(self, entry: Entry) -> Node:
        kind = _TYPES[entry.type]
        if entry.type == REGULAR:
            self.bytes += entry.size
            if self.bytes > MOST_BYTES:
                raise _error(errno.EFBIG)
            sparse = None
            if entry.segments is not None:
                sparse = Segments(entry.offset, tuple(piece for piece in entry.segments if piece[1]))
            if sparse:
                self.budget.spend(100 * len(sparse.pieces))
            node = Node(kind, entry.offset if sparse is None else sparse, entry.size)
        elif entry.type == DIRECTORY:
            node = _directory()
        elif entry.type == SYMLINK:
            if not entry.link:
                raise _error(errno.ENOENT)
            if len(entry.link) > LONGEST_PATH:
                raise _error(errno.ENAMETOOLONG)
            self.budget.spend(len(entry.link))
            node = Node(kind, entry.link, len(entry.link))
        else:
            node = Node(kind, 0 if entry.type == FIFO else _device(*entry.device))
        self._dress(node, entry)
        return node

    def _dress(self, node: Node, entry: Entry) -> None:
        node.said = True
        node.mode = stat.S_IFMT(node.mode) | (entry.mode & 0o7777 if entry.type != SYMLINK else 0o777)
        node.uid, node.gid = owner(entry.uid), owner(entry.gid)
        if not -(1 << 63) <= entry.mtime // 10**9 < 1 << 63:
            raise OverflowError(f"time {entry.mtime // 10**9}")
        node.mtime = entry.mtime
        node.xattrs = self._shared(taken(entry)) if entry.xattrs else ()

    def _shared(self, xattrs: Xattrs) -> Xattrs:
        """One object for equal ones."""
        found = self._known.get(xattrs)
        if found is None:
            self.budget.spend(sum(len(name) + len(value) + 200 for name, value in xattrs))
            found = self._known[xattrs] = xattrs
        return found

    def find(self, path: bytes) -> Node | None:
        """What is called `path`, links on the way followed; None for nothing."""
        parent, _, name = path.rpartition(b"/")
        try:
            return self._resolve(parent).entries.get(name)
        except OSError:
            return None

    def _target(self, entry: Entry) -> Node:
        path = clean(entry.link)
        node = self.find(path) if path else self.root
        if node is None:
            raise no_target(entry)
        if node.is_directory:
            raise VerificationError(f"{show(entry)}: a hard link to a directory")
        return node

    # ---------------------------------------------------------------- whiteouts and the end

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        self.budget.spend(200 + len(parent) + len(base))
        if base == OPAQUE_NAME:
            self._opaque.append(parent)
        elif not base.startswith(AUFS):
            hidden = hidden_by(base)
            self._whiteouts.append(parent + b"/" + hidden if parent else hidden)

    def finish(self) -> set[bytes]:
        """Make whiteouts and opaque marks; returns the paths of directories that the tar only implies."""
        opaque: dict[int, Node] = {}
        holding: dict[int, Node] = {}
        try:
            for path in self._opaque:
                directory = self._parent(path)
                opaque[id(directory)] = directory
            whiteout = Node(stat.S_IFCHR, 0)  # one inode serves them all
            for path in self._whiteouts:
                parent_path, _, base = path.rpartition(b"/")
                if len(base) > LONGEST_NAME:
                    raise _error(errno.ENAMETOOLONG)
                parent = self._parent(parent_path)
                there = parent.entries.get(base)
                if there is None:
                    parent.entries[base] = whiteout
                    whiteout.links += 1
                    holding[id(parent)] = parent
                elif there.is_directory:
                    opaque[id(there)] = there  # the layer has its own: nothing may shine through from below
        except OSError as error:
            raise VerificationError(f"a whiteout in {os.fsdecode(path)!a}: {error.strerror}") from error
        # each once: one directory may have a million whiteouts, and thousands of attributes
        self._mark(opaque.values(), OPAQUE_XATTR, b"y")
        self._mark(holding.values(), ORIGIN_XATTR, b"")
        self._parents.clear()
        return self._implied()

    def _mark(self, directories: Iterable[Node], name: bytes, value: bytes) -> None:
        for node in directories:
            node.xattrs = self._shared(tuple(sorted({**dict(node.xattrs), name: value}.items())))

    def _implied(self) -> set[bytes]:
        found = set() if self.root.said else {b""}
        pending = [(self.root, b"")]
        while pending:
            directory, prefix = pending.pop()
            for name, node in directory.entries.items():
                if node.is_directory:
                    path = prefix + name
                    if not node.said:
                        found.add(path)
                        self.budget.spend(len(path) + 100)
                    pending.append((node, path + b"/"))
        return found

    # ---------------------------------------------------------------- paths

    def _parent(self, path: bytes) -> Node:
        found = self._parents[path] = self._resolve(path, make=True)
        if len(self._parents) > 4096:
            del self._parents[next(iter(self._parents))]
        return found

    def _resolve(self, path: bytes, *, make: bool = False) -> Node:
        """The directory at `path`, links followed inside the tree; `make` what is missing. Raises OSError."""
        if len(path) > self._longest_path:
            raise _error(errno.ENAMETOOLONG)
        way = [self.root]
        pending = path.split(b"/")[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part in {b"", b"."}:
                continue
            if part == b"..":
                if len(way) > 1:
                    way.pop()
                continue
            node = way[-1].entries.get(part) or self._missing(way[-1], part, make)
            if node.is_directory:
                way.append(node)
            elif isinstance(node.data, bytes):
                links += 1
                if links > _MAX_LINKS:
                    raise _error(errno.ELOOP)
                if node.data.startswith(b"/"):
                    del way[1:]
                pending.extend(node.data.split(b"/")[::-1])
            else:
                raise _error(errno.ENOTDIR)
        return way[-1]

    def _missing(self, directory: Node, name: bytes, make: bool) -> Node:
        if not make:
            raise _error(errno.ENOENT)
        if len(name) > LONGEST_NAME:
            raise _error(errno.ENAMETOOLONG)
        node = directory.entries[name] = _directory()
        node.links = 1
        self.budget.spend(_NODE_COST + len(name))
        return node


def _directory() -> Node:
    return Node(stat.S_IFDIR | 0o755, {})


def _drop(parent: Node, base: bytes) -> None:
    """Take a name away, and what hangs on it: a file of several names lives on under the others."""
    pending = [parent.entries.pop(base)]
    while pending:
        node = pending.pop()
        node.links -= 1
        if node.is_directory:
            pending.extend(node.entries.values())


def _device(major: int, minor: int) -> int:
    """As in st_rdev, within what Linux' device numbers hold (12 and 20 bits)."""
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise OverflowError(f"device {major}:{minor}")
    return os.makedev(major, minor)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
