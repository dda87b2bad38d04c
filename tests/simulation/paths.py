"""Paths on a disk in memory, and the modules of storage/ put on that disk."""

from __future__ import annotations

import errno
import gc
import importlib
import io
import itertools
import os as real_os
import stat
import time as real_time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import Any
from unittest.mock import patch

from projections.runner import Projection, Views
from storage.interfaces.log import EventLog
from storage.log.eventlog import SqliteEventLog
from tests.simulation.descriptors import Raw
from tests.simulation.inodes import Inode
from tests.simulation.oslocks import Fcntl, Libc
from tests.simulation.processes import FIRST_FD, PREFIX, locate
from tests.simulation.syscalls import Os

_OS = Os()
_USERS = (
    "storage.archive", "storage.blobs", "storage.durable", "storage.layers.compose", "storage.layers.erofs.check",
    "storage.layers.erofs.encode", "storage.layers.erofs.header", "storage.layers.erofs.image",
    "storage.layers.erofs.mount", "storage.layers.implied", "storage.layers.seal", "storage.layers.snapshots",
    "storage.layers.unpublished", "storage.layers.upper", "storage.layout.target", "storage.locks", "storage.partial",
    "storage.parts.lookup", "storage.regular", "storage.scratch", "storage.tar.directories", "storage.tar.pack",
    "storage.tar.unpack", "storage.uploads", "storage.usage", "tools.roots",
)  # fmt: skip
"""Modules that make system calls on what lies in a root."""
_NAMERS = (
    "engine.exporters.layout", "storage.archive", "storage.layout.source", "storage.layout.listing",
    "storage.layout.target",
)  # fmt: skip
"""Those that make paths of names that they are given."""
_TOKENS = ("storage.archive", "storage.durable", "storage.scratch", "tools.roots", "tools.collecting")
"""Those that draw names at random."""


class DiskPath(PosixPath):
    """A path on a simulated disk, as one process sees it: what pathlib does with the kernel, done with that."""

    def stat(self, *, follow_symlinks: bool = True) -> real_os.stat_result:
        return _OS.stat(self, follow_symlinks=follow_symlinks)

    def lstat(self) -> real_os.stat_result:
        return self.stat(follow_symlinks=False)

    def exists(self, **_: Any) -> bool:
        return self._is(lambda mode: True)

    def is_dir(self, **_: Any) -> bool:
        return self._is(stat.S_ISDIR)

    def is_mount(self) -> bool:
        found = locate(self)
        return found is not None and not found[1]

    def is_file(self, **_: Any) -> bool:
        return self._is(stat.S_ISREG)

    def is_symlink(self) -> bool:
        try:
            return stat.S_ISLNK(self.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _is(self, kind: Any) -> bool:
        try:
            return bool(kind(self.stat().st_mode))
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return False
            raise

    def open(
        self, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None
    ) -> Any:
        kinds = {"r": real_os.O_RDONLY, "w": real_os.O_CREAT | real_os.O_TRUNC, "a": real_os.O_CREAT | real_os.O_APPEND,
                 "x": real_os.O_CREAT | real_os.O_EXCL}  # fmt: skip
        flags = kinds[mode[0]]
        if "+" in mode:
            flags |= real_os.O_RDWR
        elif mode[0] != "r":
            flags |= real_os.O_WRONLY
        raw = Raw(_OS.open(self, flags, 0o666))
        if buffering == 0:
            return raw
        buffered: Any
        if "+" in mode:
            buffered = io.BufferedRandom(raw)
        else:
            buffered = io.BufferedReader(raw) if mode[0] == "r" else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        with self.open("rb", buffering=0) as file:
            return bytes(file.readall())

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        try:
            _OS.mkdir(self, mode)
        except FileNotFoundError:
            if not parents:
                raise
            self.parent.mkdir(parents=True, exist_ok=True)
            self.mkdir(mode, parents=False, exist_ok=exist_ok)
        except OSError:
            if not exist_ok or not self.is_dir():
                raise

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        flags = real_os.O_CREAT | real_os.O_WRONLY | (0 if exist_ok else real_os.O_EXCL)
        _OS.close(_OS.open(self, flags, mode))
        _OS.utime(self)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _OS.unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        _OS.rmdir(self)

    def rename(self, target: Any) -> DiskPath:
        _OS.rename(self, target)
        return DiskPath(target)

    def replace(self, target: Any) -> DiskPath:
        return self.rename(target)

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        _OS.chmod(self, mode, follow_symlinks=follow_symlinks)

    def iterdir(self) -> Generator[DiskPath, None, None]:
        yield from [self / name for name in _OS.listdir(self)]

    def readlink(self) -> DiskPath:
        return DiskPath(_OS.readlink(self))

    def symlink_to(self, target: Any, target_is_directory: bool = False) -> None:
        _OS.symlink(target, self)

    def glob(self, pattern: str, **_: Any) -> Iterator[DiskPath]:  # type: ignore[override]
        """Patterns of names and `*` only."""
        first, _slash, rest = pattern.partition("/")
        if not self.is_dir():
            return
        for path in sorted(self.iterdir()):
            if PosixPath(path.name).match(first):
                if rest:
                    yield from path.glob(rest)
                else:
                    yield path

    def rglob(self, pattern: str, **_: Any) -> Iterator[DiskPath]:  # type: ignore[override]
        """Everything below."""
        assert pattern == "*"
        for path in sorted(self.iterdir()):
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from path.rglob(pattern)

    def absolute(self) -> DiskPath:
        return self

    def resolve(self, strict: bool = False) -> DiskPath:
        return self


def a_path(*names: Any) -> Path:
    """A path of either kind."""
    path = Path(*names)
    return DiskPath(path) if is_simulated(path) else path


class Clock:
    """What tools/ gets as `time`: that of the disk that was made last."""

    now: Callable[[], int] = staticmethod(real_time.time_ns)
    pause: Callable[[], None] = staticmethod(lambda: None)

    def time_ns(self) -> int:
        return self.now()

    def time(self) -> float:
        return self.now() / 1e9

    monotonic = time

    def sleep(self, _seconds: float) -> None:
        self.pause()

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)


CLOCK = Clock()


class Tokens:
    """What modules get as `secrets`: names that are the same in each run, and never the same twice."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def token_hex(self, size: int) -> str:
        return f"{next(self._numbers):0{2 * size}x}"


@lru_cache(maxsize=1)
def _leave_alone_what_is_loaded() -> None:
    """Modules live for ever: not to look through them after each run halves what a short one costs."""
    gc.collect()
    gc.freeze()


def unbuffered(fd: int, mode: str) -> io.RawIOBase:
    """As io.FileIO, for descriptors of either kind."""
    return Raw(fd) if fd >= FIRST_FD else io.FileIO(fd, mode)


@contextmanager
def simulated_files() -> Iterator[None]:
    """Within it, paths below `PREFIX` are on simulated disks, for all of storage/."""
    _leave_alone_what_is_loaded()
    from storage import overlay
    from storage.tar import directories

    def mounts_below(path: Path) -> list[Path]:
        found = locate(path)
        if found is None:
            return real_mounts_below(path)
        process, where = found
        return [
            DiskPath(process.prefix + "/" + real_os.fsdecode(b"/".join(mount.where)))
            for mount in process.mounts.values()
            if mount.where[: len(where)] == where
        ]

    def umount(target: Path, flags: int) -> None:
        found = locate(target)
        if found is None:
            real_umount(target, flags)
            return
        process, where = found
        process.check()
        point = next((point for point, mount in reversed(process.mounts.items()) if mount.where == where), None)
        if point is None:
            raise OSError(errno.EINVAL, "nothing is mounted", str(target))
        process.mounts.pop(point).leave()

    from tests.simulation.mounting import SimulatedMounts, mount, mount_overlay
    from tools import collecting, roots
    from tools.bootstrap import here

    def log_at(path: Path, *, read_only: bool = False) -> Any:
        found = locate(path)
        if found is None:
            return SqliteEventLog(path, read_only=read_only)
        process, where = found
        if not read_only:  # a name for what eventlog.py keeps elsewhere: readers look whether there is one
            root = process.find(where[:-1])
            file = root.entries.setdefault(where[-1], Inode(stat.S_IFREG | 0o600))
            root.durable_entries.setdefault(where[-1], file)
        return process.log()

    def leave(path: Path, log: Any, views: Any) -> None:
        if not is_simulated(path):  # else nobody reads what is kept beside the log
            real_leave(path, log, views)

    def mount_call(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
        if locate(target) is None:
            real_mount(source, target, kind, flags, options)
        else:
            mount(source, target, kind)

    real_mounts_below, real_umount, real_mount = overlay.mounts_below, overlay._umount, overlay._mount
    def open_in_root(root: int, path: bytes) -> int:
        """openat2(2), which no module of Python has; no simulated tree has links that lead out of it."""
        if root < FIRST_FD:
            return real_open_in_root(root, path)
        return _OS.open(path or b".", real_os.O_RDONLY | real_os.O_DIRECTORY, dir_fd=root)

    real_open_in_root = directories._open_in_root
    real_leave = roots._leave
    tokens = Tokens()
    with ExitStack() as stack:
        for name in _USERS:
            module = importlib.import_module(name)
            if hasattr(module, "os"):
                stack.enter_context(patch.object(module, "os", _OS))
            if hasattr(module, "fcntl"):
                stack.enter_context(patch.object(module, "fcntl", Fcntl()))
            if hasattr(module, "_libc"):
                stack.enter_context(patch.object(module, "_libc", Libc(module._libc)))
        for name in _NAMERS:
            stack.enter_context(patch.object(importlib.import_module(name), "Path", a_path))
        for name in _TOKENS:
            module = importlib.import_module(name)
            if hasattr(module, "secrets"):
                stack.enter_context(patch.object(module, "secrets", tokens))
        stack.enter_context(patch("storage.regular.FileIO", unbuffered))
        stack.enter_context(patch.object(directories, "_open_in_root", open_in_root))
        stack.enter_context(patch.object(overlay, "mounts_below", mounts_below))
        stack.enter_context(patch.object(overlay, "_umount", umount))
        stack.enter_context(patch.object(overlay, "_mount", mount_call))
        stack.enter_context(patch.object(here, "ErofsMounts", SimulatedMounts))
        for name, stand_in in (("SqliteEventLog", log_at), ("Views", SharedViews()), ("_leave", leave)):
            stack.enter_context(patch.object(roots, name, stand_in))
        for module in (roots, collecting):
            stack.enter_context(patch.object(module, "time", CLOCK))
        for name in ("storage.layers.snapshots", "storage.layers.upper", "storage.layers.erofs.mount"):
            stack.enter_context(patch.object(importlib.import_module(name), "mount_overlay", mount_overlay))
        try:
            yield
        finally:
            gc.collect()  # locks that nobody refers to let go of descriptors that only exist here


class SharedViews:
    """What tools/ gets as `Views`: for a simulated root what `shared` gives, or views of one's own, in memory."""

    def __init__(self, shared: Callable[[], Views] | None = None) -> None:
        self._shared = shared

    def __call__(self, path: Path, projections: Sequence[Projection]) -> Views:
        if not is_simulated(path):
            return Views(path, projections)
        return self._shared() if self._shared is not None else Views(None, projections)

    def read_only(self, path: Path, log: EventLog, projections: Sequence[Projection]) -> Views:
        """Those that a reader makes for itself when the file is behind."""
        if not is_simulated(path):
            return Views.read_only(path, log, projections)
        views = Views(None, projections)
        views.catch_up(log)
        return views


def is_simulated(path: Path) -> bool:
    """Is it on a simulated disk?"""
    return str(path).startswith(PREFIX)
