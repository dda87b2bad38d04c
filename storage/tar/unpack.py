"""Laying a layer tar out as a directory tree that serves as overlay lower.

Layers are hostile until proven otherwise: every parent is resolved by the kernel with the layer's own tree as root
(openat2(2), RESOLVE_IN_ROOT), and last components are never followed. Whiteouts hide entries of lower layers only,
wherever in the tar they stand (image-spec layer.md), so they are made last. Directories get their owner, mode,
attributes and time at the end: their set-group-ID bit and default ACL would pass on to what is made in them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from storage.durable import write_all
from storage.errors import VerificationError
from storage.scratch import remove_tree
from storage.tar.directories import Directories
from storage.tar.reader import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK, Entry
from storage.tar.rules import (
    AUFS,
    IGNORED_XATTRS,
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

_NODES = {CHARACTER: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO}
_FAULTS_OF_THE_LAYER = {
    errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EEXIST, errno.ENOENT,
    errno.EXDEV, errno.EFBIG, errno.EMLINK, errno.E2BIG, errno.ERANGE, errno.EOVERFLOW,
}  # fmt: skip

class Members(Protocol):
    """Members of a layer, one after the other, as TarReader gives them."""

    def __iter__(self) -> Iterator[Entry]:
        """The members."""
        ...

    def data(self) -> Iterator[memoryview]:
        """The stored bytes of the member that iteration is at, in pieces that are valid until the next one."""
        ...


def unpack_tree(tar: Members, root: Path, budget: Budget | None = None) -> tuple[int, set[bytes]]:
    """Lay the members of `tar` out in the empty directory `root`; returns the bytes of the regular files among them,
    and the paths of implied directories: parents that the tar lacks, and a root that it lacks (the empty path). They
    are root's, mode 0755, of time 0. `budget`: for what is to be known until the end. Raises VerificationError for what
    cannot be laid out, OSError when the disk refuses; the tree is unfinished then."""
    tree = _Tree(root, budget or Budget())
    entry = None
    try:
        for entry in tar:
            tree.add(entry, tar)
        tree.finish()
    except OverflowError as error:
        raise VerificationError(f"{show(entry)}: a number out of range: {error}") from error
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_LAYER:
            raise
        raise VerificationError(f"{show(entry)} cannot be laid out: {error.strerror}") from error
    finally:
        tree.close()
    return tree.bytes, tree.implied


class _Tree:
    """The tree as it grows. Paths are relative to its root, without `.`, `..` or double slashes."""

    def __init__(self, root: Path, budget: Budget) -> None:
        self.bytes = 0
        self._budget = budget
        self.implied: set[bytes] = set()
        self._directories = Directories(root, lambda fd, path: self._promise(fd, path, None))
        self._told: dict[bytes, tuple[int, Entry | None]] = {}  # path of a directory → inode, what the tar says
        self._whiteouts: list[bytes] = []
        self._opaque: list[bytes] = []
        self._umask = umask()
        self._promise(self._directories.root, b"", None)

    def close(self) -> None:
        """Let go of all descriptors."""
        self._directories.close()

    # ---------------------------------------------------------------- members

    def add(self, entry: Entry, tar: Members) -> None:
        """Lay out one member."""
        path = clean(entry.name)
        parent_path, _, base = path.rpartition(b"/")
        if not path:
            if entry.type != DIRECTORY:
                raise VerificationError(f"the layer's root is no directory but of type {entry.type!r}")
            self._promise(self._directories.root, b"", entry)
        elif base.startswith(WHITEOUT):
            self._whiteout(parent_path, base)
        elif not path.startswith(AUFS):
            parent = self._directories.ensure(parent_path)
            try:
                self._make(entry, tar, parent, base, path)
            except FileExistsError:
                if entry.type == HARD_LINK and self._links_itself(entry, parent, base):
                    return
                self._remove(parent, base)
                # what was removed may have been a link on the way to the parent
                self._make(entry, tar, self._directories.ensure(parent_path), base, path)

    def _make(self, entry: Entry, tar: Members, parent: int, base: bytes, path: bytes) -> None:
        if entry.type == REGULAR:
            self._file(entry, tar, parent, base)
        elif entry.type == DIRECTORY:
            self._make_directory(entry, parent, base, path)
        elif entry.type == HARD_LINK:
            self._hard_link(entry, parent, base)
        elif entry.type == SYMLINK:
            os.symlink(entry.link, base, dir_fd=parent)
            _dress_by_name(entry, parent, base)
        else:
            os.mknod(base, _NODES[entry.type] | 0o600, os.makedev(*entry.device), dir_fd=parent)
            _dress_by_name(entry, parent, base)

    def _file(self, entry: Entry, tar: Members, parent: int, base: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(base, flags, entry.mode & 0o777, dir_fd=parent)
        try:
            if entry.segments is not None:
                _write_sparse(fd, entry, tar)
            else:
                for piece in tar.data():
                    write_all(fd, piece)
            if entry.uid or entry.gid:
                os.fchown(fd, owner(entry.uid), owner(entry.gid))
            if entry.mode & (self._umask | 0o7000):
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                _set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)
        self.bytes += entry.size
        if self.bytes > MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    def _make_directory(self, entry: Entry, parent: int, base: bytes, path: bytes) -> None:
        try:
            os.mkdir(base, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode):
                raise
        self._promise(self._directories.open(path), path, entry)

    def _hard_link(self, entry: Entry, parent: int, base: bytes) -> None:
        target_parent, target = self._target(entry)
        try:
            os.link(target, base, src_dir_fd=target_parent, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise no_target(entry) from None
        except PermissionError:
            raise VerificationError(f"{show(entry)}: a hard link to a directory") from None

    def _links_itself(self, entry: Entry, parent: int, base: bytes) -> bool:
        target_parent, target = self._target(entry)
        there = os.stat(target, dir_fd=target_parent, follow_symlinks=False)
        return os.path.samestat(there, os.stat(base, dir_fd=parent, follow_symlinks=False))

    def _target(self, entry: Entry) -> tuple[int, bytes]:
        target_parent, _, target = clean(entry.link).rpartition(b"/")
        try:
            return self._directories.open(target_parent), target or b"."
        except OSError:
            raise no_target(entry) from None

    def _remove(self, parent: int, base: bytes) -> None:
        """Make room for a later member of the same name."""
        here = Path(f"/proc/self/fd/{parent}").readlink()
        self._directories.forget()  # it may have led to directories that are open
        remove_tree(here / os.fsdecode(base))

    # ---------------------------------------------------------------- whiteouts and the end

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        self._budget.spend(200 + len(parent) + len(base))
        if base == OPAQUE_NAME:
            self._opaque.append(parent)
        elif not base.startswith(AUFS):
            hidden = hidden_by(base)
            self._whiteouts.append(parent + b"/" + hidden if parent else hidden)

    def finish(self) -> None:
        """Make whiteouts and opaque marks, then dress the directories."""
        for path in self._opaque:
            os.setxattr(self._directories.ensure(path), OPAQUE_XATTR, b"y")
        for path in self._whiteouts:
            parent_path, _, base = path.rpartition(b"/")
            parent = self._directories.ensure(parent_path)
            try:
                os.mknod(base, stat.S_IFCHR, 0, dir_fd=parent)
                os.setxattr(parent, ORIGIN_XATTR, b"")
            except FileExistsError:
                # the layer has its own, which stays; if that is a directory, nothing may shine through from below
                if stat.S_ISDIR(os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode):
                    os.setxattr(self._directories.open(path), OPAQUE_XATTR, b"y")
        implied: dict[int, bytes] = {}
        for path, (inode, said) in self._told.items():
            with suppress(FileNotFoundError, NotADirectoryError):  # a later member took its place
                fd = self._directories.open(path)
                if os.fstat(fd).st_ino == inode:
                    if said:
                        implied.pop(inode, None)  # was implied by way of a link
                    else:
                        implied[inode] = self._directories.place(fd, path)
                    _dress_directory(fd, said or _PLAIN_DIRECTORY)
        self.implied = set(implied.values())

    def _promise(self, fd: int, path: bytes, entry: Entry | None) -> None:
        xattrs = entry.xattrs if entry else {}
        self._budget.spend(600 + len(path) + sum(len(name) + len(value) + 200 for name, value in xattrs.items()))
        self._told.pop(path, None)  # the last member wins, also over one that named it by way of a link
        self._told[path] = (os.fstat(fd).st_ino, entry)

# ---------------------------------------------------------------- parts


_PLAIN_DIRECTORY = Entry(name=b"", type=DIRECTORY, mode=0o755, uid=0, gid=0, size=0, mtime=0)


def _dress_directory(fd: int, entry: Entry) -> None:
    os.fchown(fd, owner(entry.uid), owner(entry.gid))
    os.fchmod(fd, entry.mode)
    _set_xattrs(fd, entry)
    os.utime(fd, ns=(entry.mtime, entry.mtime))


def _write_sparse(fd: int, entry: Entry, tar: Members) -> None:
    os.ftruncate(fd, entry.size)
    segments = iter(entry.segments or ())
    left = 0
    for whole in tar.data():
        piece = whole
        while piece:
            while not left:
                offset, left = next(segments)
                os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, piece[:left])
            piece, left = piece[left:], left - min(left, len(piece))


def _dress_by_name(entry: Entry, parent: int, base: bytes) -> None:
    """Owner, mode, attributes and time of what must not be opened: links and devices."""
    os.chown(base, owner(entry.uid), owner(entry.gid), dir_fd=parent, follow_symlinks=False)
    if entry.type != SYMLINK:
        os.chmod(base, entry.mode, dir_fd=parent)
    for name, value in entry.xattrs.items():
        if not name.startswith((*IGNORED_XATTRS, b"user.")):  # Linux has user.* on files and directories only
            _set_xattr(b"/proc/self/fd/%d/%s" % (parent, base), name, value)
    os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)


def _set_xattrs(fd: int, entry: Entry) -> None:
    for name, value in entry.xattrs.items():
        if not name.startswith(IGNORED_XATTRS):
            _set_xattr(fd, name, value)


def _set_xattr(where: int | bytes, name: bytes, value: bytes) -> None:
    try:
        if isinstance(where, int):
            os.setxattr(where, name, value)
        else:
            os.setxattr(where, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EACCES:  # reason: root may set all of them, but for a directory's on something else
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from error
        if error.errno != errno.ENOTSUP:  # an attribute of another system or file system
            raise


def umask() -> int:
    """This process's umask. Read, not set and put back: other threads make files meanwhile."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), 0o777)
