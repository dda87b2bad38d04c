"""What a process has changed on disk and not yet made durable: what a power loss may take, by the letter of POSIX.

File systems promise more than that (on ext4 an fsync of one file makes all names durable); a program may not rely on
it. A file's bytes are safe after fsync of it, its name after fsync of its directory, all of it after syncfs. SQLite's
own files are not watched: its promises are tested by its authors, and here on a real file system (power.py). Of a file
that was flushed the bytes that it grew by since may be lost; what was written over is not seen.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Loss = list[list[str]]
"""In the order in which it is to be undone: `["name", path]` was made and may be gone, `["moved", new, old]` may lie
where it was, of `["bytes", path, size]` the first `size` are safe."""


class Unsynced:
    """Watches this process once `watch` was called. Thread-safe."""

    def __init__(self, within: str, before: Loss) -> None:
        """`within`: what lies elsewhere does not count. `before`: what another process left that is not durable yet."""
        self._within = within + "/"
        self._names = [one for one in reversed(before) if one[0] != "bytes"]
        # bytes of each file that was opened for writing
        self._safe = {one[1]: int(one[2]) for one in before if one[0] == "bytes"}
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Be there at every change of files and whenever they are made durable."""
        from storage import durable

        self._wrap_open()
        fsync, syncfs = os.fsync, durable.flush_file_system

        def watched_fsync(fd: Any) -> None:
            path = path_of(fd if isinstance(fd, int) else fd.fileno())
            size = _size(path)
            fsync(fd)
            self._synced(path, size)

        def watched_syncfs(fd: int) -> None:
            with self._lock:
                names, sizes = list(self._names), {path: _size(path) for path in self._safe}
            syncfs(fd)
            with self._lock:
                self._names = [one for one in self._names if one not in names]
                self._safe |= {path: size for path, size in sizes.items() if path in self._safe}

        os.fsync = os.fdatasync = watched_fsync
        durable.flush_file_system = watched_syncfs
        import sys

        sys.addaudithook(self._hook)

    def loss(self) -> Loss:
        """What would be lost if the power went now."""
        with self._lock:
            grown = [["bytes", path, str(safe)] for path, safe in self._safe.items() if _size(path) > safe]
            return grown + [list(one) for one in reversed(self._names)]

    def _wrap_open(self) -> None:
        real = os.open

        def watched_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            before = _at(path, dir_fd)
            there, size = os.path.lexists(before), _size(before)
            fd = real(path, flags, mode, dir_fd=dir_fd)
            if flags & (os.O_WRONLY | os.O_RDWR) and flags & os.O_TMPFILE != os.O_TMPFILE:
                self._opened(path_of(fd), flags, size if there else -1)
            return fd

        os.open = watched_open

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Changes that go by path; they are about to happen."""
        if event == "open":
            path, mode, flags = args
            if isinstance(path, str) and isinstance(mode, str) and isinstance(flags, int) and flags & (
                os.O_WRONLY | os.O_RDWR
            ):
                self._opened(str(Path.cwd() / path), flags, _size(path) if os.path.lexists(path) else -1)
        elif event == "os.rename":
            old, new = _at(args[0], args[2]), _at(args[1], args[3])
            with self._lock:  # what lies in a directory goes along
                self._safe.pop(new, None)
                self._safe = {_moved(path, old, new): safe for path, safe in self._safe.items()}
                self._names = [[one[0], *(_moved(path, old, new) for path in one[1:])] for one in self._names]
            self._note(["moved", new, old], new)
        elif event == "os.mkdir":
            path = _at(args[0], args[2])
            if not Path(path).exists():
                self._note(["name", path], path)
        elif event in {"os.link", "os.symlink"}:
            path = _at(args[1], args[3] if event == "os.link" else args[2])
            if not os.path.lexists(path):
                self._note(["name", path], path)
        elif event == "os.remove":
            path = _at(args[0], args[1])
            with self._lock:
                self._safe.pop(path, None)
                self._names = [one for one in self._names if one[1] != path]

    def _opened(self, path: str, flags: int, size: int) -> None:
        """For writing; it had `size` bytes, or was not there (-1)."""
        if path.startswith(self._within):
            with self._lock:
                if flags & os.O_TRUNC or size < 0:
                    self._safe[path] = 0
                else:
                    self._safe.setdefault(path, size)
                if size < 0:
                    self._names.append(["name", path])

    def _note(self, change: list[str], path: str) -> None:
        if path.startswith(self._within):
            with self._lock:
                self._names.append(change)

    def _synced(self, path: str, size: int) -> None:
        with self._lock:
            if path in self._safe:
                self._safe[path] = size
            self._names = [one for one in self._names if str(Path(one[1]).parent) != path]


def lose(losses: Sequence[Sequence[str]]) -> list[str]:
    """Have it be lost; returns what was, in words."""
    done = []
    for kind, name, *old in losses:
        path = Path(name)
        with suppress(OSError):
            if kind == "bytes":
                if _size(path) > (safe := int(old[0])):
                    os.truncate(path, safe)
                    done.append(f"the bytes of {path} from {safe} on")
            elif kind == "moved":
                if os.path.lexists(path) and not os.path.lexists(old[0]):
                    path.rename(old[0])
                    done.append(f"the name {path}")
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
                done.append(f"all of {path}")
            elif os.path.lexists(path):
                path.unlink()
                done.append(f"the name {path}")
    return done


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(old + "/") else path


def _size(path: str | Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  reason: called at each file that is opened
    except OSError:
        return 0


def path_of(fd: int) -> str:
    """What is open as `fd`; "" when that cannot be told."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return ""


def _at(path: Any, directory: Any = -1) -> str:
    name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else path_of(path)
    above = path_of(directory) if isinstance(directory, int) and directory >= 0 else Path.cwd()
    return str(above / Path(name))
