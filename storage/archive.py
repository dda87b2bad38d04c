"""Files and tar archives written in one pass: complete under their name, or not there at all."""

from __future__ import annotations

import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from storage.durable import Unfinished, named_place
from storage.errors import DiskError


class DestFile:
    """A file at `dest` (`-` is standard output): first a hidden neighbour, renamed by `commit`. A link keeps leading
    where it does; what is no regular file (a pipe, /dev/null) is written to. Implements OutFile."""

    def __init__(self, dest: str) -> None:
        """Raises DiskError."""
        self._dest = dest
        self._unfinished: Unfinished | None = None
        try:
            self._file: IO[bytes] = sys.stdout.buffer if dest == "-" else self._create(Path(dest))
        except OSError as error:
            raise self._failed(error) from error

    def _create(self, dest: Path) -> IO[bytes]:
        place = named_place(dest)
        if place is None:
            return dest.open("wb")
        self._unfinished = Unfinished(place)
        return self._unfinished.file

    def write(self, data: bytes) -> None:
        """See OutFile.write."""
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error

    def commit(self) -> None:
        """See OutFile.commit."""
        try:
            self._file.flush()
            if self._unfinished is not None:
                self._unfinished.commit()
            elif self._file is not sys.stdout.buffer:
                self._file.close()
        except OSError as error:
            raise self._failed(error) from error

    def abort(self) -> None:
        """See OutFile.abort."""
        if self._unfinished is not None:
            self._unfinished.abort()
        elif self._file is not sys.stdout.buffer:
            with suppress(OSError):  # reason: what could not be written before cannot be now
                self._file.close()

    def _failed(self, error: OSError) -> DiskError:
        return DiskError.of(error, "writing the output", dest="standard output" if self._dest == "-" else self._dest)


class TarArchive:
    """Writes to `dest`, a path or `-`, by way of a DestFile. Implements Archive.

    Entries have mode 0644, owner 0 and time 0, so the same content gives the same archive.
    """

    def __init__(self, dest: str) -> None:
        """Raises DiskError."""
        self._file = DestFile(dest)
        self._left = 0
        self._padding = 0

    def add(self, name: str, data: bytes) -> None:
        """See Archive.add."""
        self.begin(name, len(data))
        self.write(data)

    def begin(self, name: str, size: int) -> None:
        """See Archive.begin. `name` is relative."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = size, 0o644
        self._left, self._padding = size, -size % tarfile.BLOCKSIZE
        self._put(header.tobuf(tarfile.PAX_FORMAT))

    def write(self, data: bytes) -> None:
        """See Archive.write."""
        self._left -= len(data)
        assert self._left >= 0, "more data than begin() announced"
        self._put(data)
        if self._left == 0 and self._padding:
            self._put(bytes(self._padding))
            self._padding = 0

    def commit(self) -> None:
        """See Archive.commit."""
        assert self._left == 0, "less data than begin() announced"
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._file.commit()

    def abort(self) -> None:
        """See Archive.abort."""
        self._file.abort()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
