"""Layers written entry by entry into a directory: no overlay is mounted, nothing is walked again.

Small files are what there are most of, so a file costs no system call that its look does not need. Directories are
dressed at the end: their set-group-ID bit and default ACL would pass on to what is made in them, and their time would
change with it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from storage.durable import write_all
from storage.errors import DiskError
from storage.interfaces.layers import Look
from storage.layers.unpublished import ROOT_CHANGED, UnpublishedTree
from storage.tar.unpack import umask

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {"fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "block": stat.S_IFBLK}
_KEPT_OPEN = 64  # recently used directories
_ZEROS = bytes(1 << 20)
_ROOT = b""


class TreeWriter:
    """Implements LayerWriter in an existing directory. Links in it are never followed; where something of the same
    name is there already, directories are merged and anything else gives way, unless it is a directory: DiskError."""

    def __init__(self, root: Path, *, empty: bool = False, latest: int | None = None) -> None:
        """`empty`: `root` is new, root's own, and nobody else writes to it; `latest`: no time is later, in ns since the
        epoch. Raises DiskError."""
        self._empty = empty
        self._latest = latest
        self._root = _open_root(root)
        self._open: dict[bytes, int] = {}
        self._looks: dict[bytes, Look] = {}  # of directories, until they get them
        self._forced = 0o7000 | umask()  # mode bits that creating a file does not give
        self._bytes = 0

    # ---------------------------------------------------------------- entries

    def directory(self, path: bytes, look: Look) -> None:
        """See LayerWriter.directory."""
        self._looks[path] = look
        if path == _ROOT:
            return
        try:
            parent, name = self._place(path)
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=parent)
                    os.mkdir(name, 0o700, dir_fd=parent)
        except OSError as error:
            raise _failed(error, path) from error

    def file(self, path: bytes, look: Look, size: int, content: Iterable[bytes | memoryview]) -> None:
        """See LayerWriter.file. What `content` raises, an OSError too, comes through as it is."""
        fd = self._create(path, look.mode)
        try:
            written = hole = 0
            for piece in content:
                written += len(piece)
                if written > size:
                    break
                hole = self._append(fd, piece, path)
            if written != size:
                raise ValueError(f"{os.fsdecode(path)!a}: {written} bytes or more, not {size}")
            try:
                if hole:
                    os.ftruncate(fd, size)
                self._dress(fd, look)
            except OSError as error:
                raise _failed(error, path) from error
        finally:
            os.close(fd)
        self._bytes += size

    def node(
        self, path: bytes, look: Look, kind: Literal["symlink", "fifo", "char", "block"], target: bytes, device: int
    ) -> None:
        """See LayerWriter.node."""
        try:
            parent, name = self._place(path)

            def make() -> None:
                if kind == "symlink":
                    os.symlink(target, name, dir_fd=parent)
                else:
                    os.mknod(name, _KINDS[kind] | 0o600, device, dir_fd=parent)

            _in_place(make, parent, name)
            os.chown(name, look.uid, look.gid, dir_fd=parent, follow_symlinks=False)
            if kind != "symlink":
                _change_mode(parent, name, look.mode, _KINDS[kind])
            for key, value in look.xattrs.items():  # by way of its directory: it cannot be opened itself
                os.setxattr(b"/proc/self/fd/%d/%s" % (parent, name), key, value, follow_symlinks=False)
            os.utime(name, ns=self._times(look), dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            raise _failed(error, path) from error

    def link(self, path: bytes, target: bytes) -> None:
        """See LayerWriter.link."""
        try:
            directory, first = self._place(target)
            source = os.dup(directory)  # finding the other place may close it
            try:
                parent, name = self._place(path)
                _in_place(
                    lambda: os.link(first, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False),
                    parent, name,
                )  # fmt: skip
            finally:
                os.close(source)
        except OSError as error:
            raise _failed(error, path) from error

    # ---------------------------------------------------------------- the end

    def commit(self) -> int:
        """Dress the directories; returns the bytes of regular files. Nothing is made durable here."""
        for path, look in self._looks.items():
            try:
                fd = self._directory(path)
                os.fchown(fd, look.uid, look.gid)
                os.fchmod(fd, look.mode)
                for key, value in look.xattrs.items():
                    os.setxattr(fd, key, value)
                os.utime(fd, ns=self._times(look))
            except OSError as error:
                raise _failed(error, path) from error
        return self._bytes

    def discard(self) -> None:
        """Let go of all descriptors; what was written stays. Harmless when done again."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    # ---------------------------------------------------------------- how

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """A descriptor of the directory that `path` is in, good until many others were asked for, and the name."""
        parent, _, name = path.rpartition(b"/")
        return self._directory(parent), name

    def _directory(self, path: bytes) -> int:
        """Opened step by step from the nearest one that is open: paths may be longer than the kernel takes."""
        fd = self._open.get(path)
        if fd is not None or path == _ROOT:
            return self._root if fd is None else fd
        missing, fd = [path], None
        while fd is None:
            above = missing[-1].rpartition(b"/")[0]
            fd = self._root if above == _ROOT else self._open.get(above)
            if fd is None:
                missing.append(above)
        for each in reversed(missing):
            fd = os.open(each.rpartition(b"/")[2], _OPEN, dir_fd=fd)
            self._open[each] = fd
            if len(self._open) > _KEPT_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
        return fd

    def _create(self, path: bytes, mode: int) -> int:
        made = -1
        try:
            parent, name = self._place(path)
            try:
                made = os.open(name, _CREATE, mode & 0o777, dir_fd=parent)
            except FileExistsError:
                os.unlink(name, dir_fd=parent)
                made = os.open(name, _CREATE, mode & 0o777, dir_fd=parent)
        except OSError as error:
            raise _failed(error, path) from error
        return made

    def _append(self, fd: int, piece: bytes | memoryview, path: bytes) -> bool:
        """Write `piece`, or leave a hole where it is a large stretch of zeros: say whether the file ends in one."""
        try:
            if len(piece) == len(_ZEROS) and piece == _ZEROS:
                os.lseek(fd, len(piece), os.SEEK_CUR)
                return True
            write_all(fd, piece)
        except OSError as error:
            raise _failed(error, path) from error
        return False

    def _dress(self, fd: int, look: Look) -> None:
        """In the order in which none undoes another."""
        if look.uid or look.gid or not self._empty:
            os.fchown(fd, look.uid, look.gid)
        if look.mode & self._forced or not self._empty:
            os.fchmod(fd, look.mode)
        for key, value in look.xattrs.items():
            os.setxattr(fd, key, value)
        os.utime(fd, ns=self._times(look))

    def _times(self, look: Look) -> tuple[int, int]:
        """Of access and of change."""
        time = look.mtime if self._latest is None else min(look.mtime, self._latest)
        return time, time


class NewTree(TreeWriter):
    """A LayerWriter into the empty tree of `new`."""

    def __init__(self, new: UnpublishedTree, publish: Callable[[], None]) -> None:
        """`publish` keeps it, and raises OSError. Raises OSError; then `new` is to be dropped."""
        super().__init__(new.tree, empty=True)
        self._new = new
        self._publish = publish

    def commit(self) -> int:
        """See LayerWriter.commit. After a DiskError it can only be discarded."""
        size = super().commit()
        super().discard()
        try:
            if _ROOT in self._looks:
                (self._new.path / ROOT_CHANGED).touch()
            self._publish()
        except OSError as error:
            raise DiskError.of(error, "committing a snapshot") from error
        return size

    def discard(self) -> None:
        """See LayerWriter.discard. Raises DiskError."""
        super().discard()
        try:
            self._new.drop()
        except OSError as error:
            raise DiskError.of(error, "discarding a snapshot") from error


def _open_root(root: Path) -> int:
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DiskError.of(error, "opening a directory to write to") from error


def _in_place(make: Callable[[], None], parent: int, name: bytes) -> None:
    """`make` what is called `name`, in the place of whatever is there but a directory."""
    try:
        make()
    except FileExistsError:
        os.unlink(name, dir_fd=parent)
        make()


def _change_mode(parent: int, name: bytes, mode: int, kind: int) -> None:
    """chmod(2) follows links, and somebody who may write to the directory could have put one there meanwhile."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
            raise FileExistsError(errno.EEXIST, "something else took its place")
        Path(f"/proc/self/fd/{fd}").chmod(mode)
    finally:
        os.close(fd)


def _failed(error: OSError, path: bytes) -> DiskError:
    if error.errno == errno.EISDIR:
        error = OSError(errno.EISDIR, "a directory is there")
    return DiskError.of(OSError(error.errno, error.strerror), f"writing {'/' + os.fsdecode(path)!a}")
