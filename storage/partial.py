"""Blobs on their way in: `partial/<algorithm>-<hex>/<offset>`, each file a run of bytes from that offset on.

The length of a file says how much of the run is there, so a kill at any moment leaves nothing to repair: what the
kernel was given stays. Nothing is synchronised: after a power loss the files may hold anything, which whoever verifies
the whole blob finds out. They are not meant to reach the disk at all, being removed long before the kernel would
write them, unless a pull is long or interrupted.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path

from storage.errors import DiskError
from storage.interfaces.images import Descriptor
from storage.interfaces.locks import Locks
from storage.scratch import remove_tree

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,17}")
KEPT_SECONDS = 7 * 24 * 3600.0
"""How long an interrupted pull waits for somebody who wants the rest."""


class DirectoryPartials:
    """Implements PartialBlobs below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self, blob: Descriptor) -> FilePartial:
        """See PartialBlobs.open."""
        try:
            return FilePartial(self._directory / f"{blob.digest.algorithm}-{blob.digest.hex}", blob.size)
        except OSError as error:
            raise DiskError.of(error, "opening an interrupted pull") from error

    def sweep(self, older_than: float, locks: Locks) -> list[str]:
        """Remove what nobody wrote to since `older_than` (seconds since the epoch), but nothing that somebody works on;
        returns the names of what was removed. Raises DiskError."""
        removed = []
        try:
            for path in sorted(self._directory.iterdir()) if self._directory.is_dir() else ():
                if _touched(path) >= older_than:
                    continue
                lock = locks.try_acquire(lock_name(path.name.replace("-", ":", 1)))
                if lock is None:
                    continue
                with lock:
                    if _touched(path) < older_than:
                        remove_tree(path)
                        removed.append(path.name)
        except OSError as error:
            raise DiskError.of(error, "removing interrupted pulls") from error
        return removed


def lock_name(digest: str) -> str:
    """The lock that whoever works on the partial blob holds."""
    return f"partial-{digest}"


class FilePartial:
    """Implements PartialBlob in `directory`, for a blob of `size` bytes."""

    def __init__(self, directory: Path, size: int) -> None:
        """Raises OSError."""
        self._directory = directory
        self._size = size
        self._state = threading.Lock()
        self._lengths = _runs(directory, size)
        self._growing: dict[int, _Run] = {}  # by the offset that the next byte has
        self._reading: _Run | None = None

    def gaps(self) -> list[tuple[int, int]]:
        """See PartialBlob.gaps."""
        with self._state:
            found, position = [], 0
            for start, length in [*sorted(self._lengths.items()), (self._size, 0)]:
                if position < start:
                    found.append((position, start))
                position = start + length
            return found

    def write(self, offset: int, data: bytes) -> None:
        """See PartialBlob.write."""
        run = None
        try:
            with self._state:
                run = self._growing.pop(offset, None) or self._run_at(offset)
            run.write(offset, data)
        except OSError as error:
            if run is not None:
                run.close()
            raise DiskError.of(error, "keeping a blob's bytes") from error
        end = offset + len(data)
        with self._state:
            self._lengths[run.start] = end - run.start
            if end == self._size or end in self._lengths:
                run.close()
            else:
                self._growing[end] = run

    def read(self, offset: int, size: int) -> bytes:
        """See PartialBlob.read. One thread at a time."""
        with self._state:
            run = self._reading
            if run is None or not run.start <= offset < run.start + self._lengths[run.start]:
                start = max((start for start in self._lengths if start <= offset), default=-1)
                if start < 0 or offset >= start + self._lengths[start]:
                    return b""
            else:
                start = run.start
            there = start + self._lengths[start] - offset
        try:
            if run is None or run.start != start:
                if run is not None:
                    run.close()
                run = self._reading = _Run(self._path(start), start, os.O_RDONLY)
            data = os.pread(run.fd, min(size, there), offset - start)
        except OSError as error:
            raise DiskError.of(error, "reading back a blob's bytes") from error
        if not data:  # somebody cut the file: not the end of the blob
            raise DiskError("reading back a blob's bytes: they are gone", where=str(self._path(start)))
        return data

    def discard(self) -> None:
        """See PartialBlob.discard."""
        self.close()
        try:
            remove_tree(self._directory)
        except OSError as error:
            raise DiskError.of(error, "removing an interrupted pull") from error

    def close(self) -> None:
        """See PartialBlob.close. Harmless when repeated."""
        with self._state:
            runs = [*self._growing.values(), *([self._reading] if self._reading else [])]
            self._growing, self._reading = {}, None
        for run in runs:
            run.close()
        with suppress(OSError):
            self._directory.rmdir()  # which succeeds only when nothing came

    def _path(self, start: int) -> Path:
        return self._directory / str(start)

    def _run_at(self, offset: int) -> _Run:
        """The run that ends at `offset`, to grow on, or a new one. Raises OSError."""
        for start, length in self._lengths.items():
            if start + length == offset:
                return _Run(self._path(start), start, os.O_WRONLY)
        self._directory.mkdir(parents=True, exist_ok=True)
        return _Run(self._path(offset), offset, os.O_WRONLY | os.O_CREAT | os.O_EXCL)


class _Run:
    """An open file of bytes that begin at `start`."""

    def __init__(self, path: Path, start: int, flags: int) -> None:
        """Raises OSError."""
        self.start = start
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, offset - self.start)
            view, offset = view[written:], offset + written

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _runs(directory: Path, size: int) -> dict[int, int]:
    """Offset and length of each file in `directory`. What cannot be of this blob (overlapping, too long, foreign names)
    is removed, all of it, as nobody can tell which part is good. Raises OSError."""
    try:
        with os.scandir(directory) as scan:
            entries = {entry.name if entry.is_file(follow_symlinks=False) else "": _size(entry) for entry in scan}
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        entries = {"": 0}
    found: dict[int, int] = {}
    position = 0
    for name, length in sorted(entries.items(), key=lambda item: (len(item[0]), item[0])):
        if not (_DECIMAL.fullmatch(name) and position <= int(name) and int(name) + length <= size):
            remove_tree(directory)
            return {}
        if length == 0:
            (directory / name).unlink()  # killed between making it and writing to it
        else:
            found[int(name)] = length
            position = int(name) + length
    return found


def _size(entry: os.DirEntry[str]) -> int:
    return entry.stat(follow_symlinks=False).st_size


def _touched(path: Path) -> float:
    """The last change of anything in `path`, in seconds since the epoch. Raises OSError."""
    try:
        times = [path.lstat().st_mtime]
        if path.is_dir() and not path.is_symlink():
            with os.scandir(path) as scan:
                times += [entry.stat(follow_symlinks=False).st_mtime for entry in scan]
    except FileNotFoundError:  # its owner finished meanwhile
        return float("inf")
    return max(times)
