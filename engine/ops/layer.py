"""What a layer will hold, planned as a tree over a base that is only read.

Nobody here trusts the base's symlinks: every path is resolved inside the root, through links that are planned and
links of the base alike. Only what is placed becomes part of the layer, and the directories above it, which look as the
base has them: an overlay shows a directory as its topmost layer has it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Self

from engine.errors import InputError
from engine.ops.rootfs import RootDir
from storage.interfaces.layers import Look

Kind = Literal["file", "symlink", "fifo", "char", "block"]
KINDS: dict[int, Kind] = {
    stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
}  # fmt: skip
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40  # as the kernel's MAXSYMLINKS
_KEPT_XATTRS = (b"user.", b"trusted.", b"security.capability", b"system.posix_acl_")  # what a layer carries
_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_ACL = b"system.posix_acl_access"
OPAQUE = b"trusted.overlay.opaque"

_NAME_MAX = 255  # bytes: <linux/limits.h>
_WHITEOUT = ".wh."  # image-spec layer.md, "Whiteouts"


@dataclass(slots=True, eq=False)
class Directory:
    """A directory of the plan. `merged`: the base has it too, and what is in it there is seen. `look` None: as in the
    base. `time` (ns) goes over the look's. `opaque`: what the base has of that name is not seen. `needed`: it is part
    of the layer."""

    parent: Directory | None
    name: str
    merged: bool
    look: Look | None = None
    time: int | None = None
    opaque: bool = False
    needed: bool = False
    children: dict[str, Directory | Inode] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Absolute, inside the root."""
        names = []
        at = self
        while at.parent is not None:
            names.append(at.name)
            at = at.parent
        return "/" + "/".join(reversed(names))

    def is_below(self, other: Directory) -> bool:
        """Is it `other` or inside that?"""
        at: Directory | None = self
        while at is not None and at is not other:
            at = at.parent
        return at is other


@dataclass(slots=True, eq=False)
class Inode:
    """Anything but a directory; hard links are names of one. `origin` knows the content of a file, and the time where
    the look's is not the one to take. `target` of a link, `device` number; `path`: where it was written."""

    kind: Kind
    look: Look
    origin: object = None
    target: str = ""
    device: int = 0
    path: bytes | None = None


@dataclass(frozen=True, slots=True)
class Below:
    """Something of the base that is no directory: `name` in `directory`."""

    directory: Directory
    name: str
    info: os.stat_result


Found = Directory | Inode | Below | None


class Tree:
    """The plan. Methods raise OSError as the system calls they stand for would. A context manager; the base is the
    caller's."""

    def __init__(self, base: RootDir | None) -> None:
        """`base`: what is below the layer; None for nothing."""
        self._base = base
        self._opened: tuple[Directory | None, int] = (None, -1)
        self.root = Directory(None, "", merged=base is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _, fd = self._opened
        self._opened = (None, -1)
        if fd >= 0:
            os.close(fd)

    # ---------------------------------------------------------------- looking

    def find(self, directory: Directory, name: str) -> Found:
        """What is called `name` in `directory`, links not followed."""
        there = directory.children.get(name)
        if there is not None or not directory.merged:
            return there
        try:
            info = os.stat(name, dir_fd=self._fd(directory), follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(info.st_mode):
            return Below(directory, name, info)
        child = directory.children[name] = Directory(directory, name, merged=True)
        return child

    def locate(
        self, path: str, top: Directory | None = None, *, make: Look | None = None
    ) -> tuple[Directory, str, Found]:
        """Where `path` leads when `top` is the root: a directory, the name in it and what has that name; `.` for the
        directory itself. Everything before the last name must be there, or is made to look like `make`."""
        top = at = top or self.root
        pending = _split(path)
        links = 0
        while pending:
            part = pending.pop()
            if part in {".", ".."}:
                if part == ".." and at is not top and at.parent is not None:
                    at = at.parent
                continue
            found = self.find(at, part)
            if found is None and pending:
                if make is None:
                    raise _error(errno.ENOENT, path)
                found = self.new_directory(at, part, make)
            target = self._target(found)
            if target is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise _error(errno.ELOOP, path)
                if target.startswith("/"):
                    at = top
                pending.extend(_split(target))
            elif not pending:
                return at, part, found
            elif isinstance(found, Directory):
                at = found
            else:
                raise _error(errno.ENOTDIR, path)
        return at, ".", at

    def is_directory(self, path: str, top: Directory | None = None) -> bool:
        """Does `path` lead to a directory?"""
        try:
            return isinstance(self.locate(path, top)[2], Directory)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise

    # ---------------------------------------------------------------- placing

    def make(self, path: str, look: Look, top: Directory | None = None) -> Directory:
        """Directory `path`; what is missing of it is made to look like `look`."""
        return self.locate(path + "/.", top, make=look)[0]

    def new_directory(self, at: Directory, name: str, look: Look) -> Directory:
        """A new directory in the place of whatever `at` has there. Raises InputError as `put` does."""
        _check_name(at, name)
        opaque = False
        if at.merged:
            with suppress(FileNotFoundError):
                opaque = stat.S_ISDIR(os.stat(name, dir_fd=self._fd(at), follow_symlinks=False).st_mode)
        made = at.children[name] = Directory(at, name, merged=False, look=look, opaque=opaque)
        need(made)
        return made

    def put(self, at: Directory, name: str, inode: Inode) -> None:
        """Give `inode` a name, in the place of whatever `at` has there. Raises InputError for one that image layers
        use for something else."""
        _check_name(at, name)
        at.children[name] = inode
        need(at)

    def adopt(self, found: Below) -> Inode:
        """Make something of the base part of the layer, so that it can get another name."""
        at, name, info = found.directory, found.name, found.info
        kind = KINDS.get(stat.S_IFMT(info.st_mode))
        if kind is None:
            raise _error(errno.EOPNOTSUPP, f"{at.path}/{name}")
        xattrs = _xattrs(b"/proc/self/fd/%d/%s" % (self._fd(at), os.fsencode(name)))
        look = Look(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, xattrs)
        inode = Inode(kind, look, found, self._target(found) or "", info.st_rdev)
        self.put(at, name, inode)
        return inode

    # ---------------------------------------------------------------- what came of it

    def entries(self) -> Iterator[tuple[bytes, Directory | Inode]]:
        """Paths (relative) and what is there, the root left out: names of one directory sorted by their bytes, each
        directory before what is in it, which follows at once."""
        pending: list[tuple[bytes, Directory | Inode]] = _listing(self.root, b"")
        while pending:
            path, node = pending.pop()
            if isinstance(node, Directory):
                if not node.needed:
                    continue
                pending += _listing(node, path + b"/")
            yield path, node

    def look(self, directory: Directory) -> Look:
        """What `directory` will look like."""
        look = directory.look
        if directory.merged:
            base = self._look_below(directory)
            if look is None:
                look = base
            else:  # its attributes stay, but for what would change the mode
                kept = {key: value for key, value in base.xattrs.items() if key != _ACL}
                look = replace(look, xattrs={**kept, **look.xattrs})
        assert look is not None  # only what the base has can be without one
        if directory.time is not None:
            look = replace(look, mtime=directory.time)
        if directory.opaque:
            look = replace(look, xattrs={**look.xattrs, OPAQUE: b"y"})
        return look

    def open(self, found: Below) -> int:
        """A file of the base."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(found.name, flags, dir_fd=self._fd(found.directory))

    # ---------------------------------------------------------------- the base

    def _fd(self, directory: Directory) -> int:
        """A descriptor of what `directory` is in the base, valid until the next call."""
        known, fd = self._opened
        if known is not directory:
            self._opened = (None, -1)
            if fd >= 0:
                os.close(fd)
            assert self._base is not None  # nothing is merged without one
            fd = self._base.open(directory.path, _DIR_FLAGS)
            self._opened = (directory, fd)
        return fd

    def _look_below(self, directory: Directory) -> Look:
        fd = self._fd(directory)
        info = os.fstat(fd)
        return Look(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, _xattrs(fd))

    def _target(self, found: Found) -> str | None:
        """Of a symbolic link; None for anything else."""
        if isinstance(found, Inode) and found.kind == "symlink":
            return found.target
        if isinstance(found, Below) and stat.S_ISLNK(found.info.st_mode):
            return os.readlink(found.name, dir_fd=self._fd(found.directory))
        return None


def need(directory: Directory) -> None:
    """Make `directory`, and those above it, part of the layer."""
    at: Directory | None = directory
    while at is not None and not at.needed:
        at.needed = True
        at = at.parent


def _listing(directory: Directory, prefix: bytes) -> list[tuple[bytes, Directory | Inode]]:
    """Last first."""
    return sorted(
        ((prefix + os.fsencode(name), node) for name, node in directory.children.items()), key=_first, reverse=True
    )


def _first(item: tuple[bytes, Directory | Inode]) -> bytes:
    return item[0]


def _split(path: str) -> list[str]:
    """Components, last first; a trailing slash gives a last `.`, so that what stands before must be a directory."""
    parts = [part for part in path.split("/") if part]
    if path.endswith("/"):
        parts.append(".")
    return parts[::-1]


def _xattrs(where: int | bytes) -> dict[bytes, bytes]:
    """What a layer carries of them, sorted. Where the file system has none, there are none."""
    follow = isinstance(where, int)
    try:
        names = sorted(os.fsencode(name) for name in os.listxattr(where, follow_symlinks=follow))
        kept = [name for name in names if name.startswith(_KEPT_XATTRS) and not name.startswith(_OVERLAY_XATTRS)]
        return {name: os.getxattr(where, name, follow_symlinks=follow) for name in kept}
    except OSError as error:
        if error.errno in {errno.ENOTSUP, errno.ENODATA}:
            return {}
        raise


def _check_name(at: Directory, name: str) -> None:
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise InputError(f"{name!a} cannot be a file's name", hint="give it another one")
    if len(os.fsencode(name)) > _NAME_MAX:
        raise InputError(f"{name[:80]!a}… cannot be a file's name: it is too long", hint="choose a shorter one")
    if name.startswith(_WHITEOUT):
        raise InputError(
            f"{at.path.rstrip('/')}/{name!a} cannot be in an image: layers say by such names what is deleted",
            hint="rename it, or leave it out (.dockerignore, --exclude)",
        )


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path.removesuffix("/."))
