"""Directories of a tree that grows, by the paths that a layer calls them by.

The kernel resolves every path with the tree as root (openat2(2), RESOLVE_IN_ROOT): whatever links the layer has, none
leads out.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

_SYS_OPENAT2 = 437  # <asm/unistd.h>, <linux/openat2.h>
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KEPT_OPEN = 64  # recently used parents
_MAX_LINKS = 40  # as the kernel's MAXSYMLINKS

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_IN_ROOT = _OpenHow(_OPEN_DIRECTORY, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


class Directories:
    """Paths are relative to the tree, without `.`, `..` or double slashes. Methods raise OSError."""

    def __init__(self, root: Path, implied: Callable[[int, bytes], None]) -> None:
        """The tree at `root`; `implied` is told of each directory, open, and its path, that had to be made."""
        self._path = os.fsencode(root.resolve())
        self._implied = implied
        self._parents: dict[bytes, int] = {}
        self.root = os.open(root, _OPEN_DIRECTORY)

    def close(self) -> None:
        """Let go of all descriptors."""
        self.forget()
        os.close(self.root)

    def open(self, path: bytes) -> int:
        """A descriptor of directory `path`, good until some dozen others were asked for."""
        fd = self._parents.pop(path, -1)
        if fd < 0:
            if len(self._parents) >= _KEPT_OPEN:
                os.close(self._parents.pop(next(iter(self._parents))))
            fd = _open_in_root(self.root, path)
        self._parents[path] = fd
        return fd

    def ensure(self, path: bytes, links: int = 0) -> int:
        """Like `open`; makes what is missing, also what links on the way point to."""
        try:
            return self.open(path)
        except FileNotFoundError:
            if links > _MAX_LINKS:
                raise
        for end in [at for at, byte in enumerate(path) if byte == 0x2F] + [len(path)]:
            try:
                self.open(path[:end])
            except FileNotFoundError:
                self._make_missing(path[:end], links)
        return self.open(path)

    def _make_missing(self, path: bytes, links: int) -> None:
        parent_path, _, base = path.rpartition(b"/")
        parent = self.open(parent_path)
        try:
            os.mkdir(base, 0o700, dir_fd=parent)
        except FileExistsError:
            link = os.readlink(base, dir_fd=parent)  # dangling, else it could have been opened
            whole = link if link.startswith(b"/") else self.place(parent) + b"/" + link
            self.ensure(b"/".join(part for part in whole.split(b"/") if part not in {b"", b"."}), links + 1)
        else:
            self._implied(self.open(path), path)

    def place(self, fd: int, path: bytes | None = None) -> bytes:
        """Where directory `fd` is, links on the way resolved; `path` when that is too long for the kernel to say."""
        try:
            return os.fsencode(Path(f"/proc/self/fd/{fd}").readlink())[len(self._path) + 1 :]
        except OSError as error:
            if path is None or error.errno != errno.ENAMETOOLONG:
                raise
            return path

    def forget(self) -> None:
        """Ask the kernel anew for every path: what is there may be another directory now."""
        while self._parents:
            os.close(self._parents.popitem()[1])


def _open_in_root(root: int, path: bytes) -> int:
    fd: int = _libc.syscall(_SYS_OPENAT2, root, path or b".", ctypes.byref(_IN_ROOT), ctypes.sizeof(_IN_ROOT))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return fd
