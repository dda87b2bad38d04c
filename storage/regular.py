"""Files that are opened only if they are files.

A root, a layout or a log may come from a stranger, with a FIFO or a device in the place of a file: to open the first
waits for ever, to read the second may never end.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader, FileIO
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_regular(path: Path) -> FileIO:
    """`path`, unbuffered, for reading. Raises OSError, EINVAL for what is no regular file and leads to none."""
    return FileIO(_checked(path), "rb")


def read_regular(path: Path, limit: int) -> bytes:
    """All of `path`. Raises OSError, EFBIG when it has more than `limit` bytes, EINVAL as `open_regular`."""
    with open_regular(path) as file:
        # reason for asking first: a sparse file of any size costs nothing, and would be read into memory
        size = os.fstat(file.fileno()).st_size
        data = BufferedReader(file).read(size + 1) if size <= limit else b""
    if max(size, len(data)) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return data


def check_database(path: Path, *, linked: bool = True) -> None:
    """Raises OSError, EINVAL where something else than a file stands in the place of SQLite's database `path`, or of
    one that SQLite looks for beside it. What is not there is none. `linked`: `path` may be a link to a file, but not
    to nothing, where SQLite would make one."""
    for end in ("", "-wal", "-shm", "-journal"):
        beside = path.with_name(path.name + end)
        try:
            mode = beside.lstat().st_mode  # SQLite refuses links beside it, too
            if linked and not end and stat.S_ISLNK(mode) and beside.exists():
                mode = beside.stat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(beside))


def _checked(path: Path) -> int:
    fd = os.open(path, _FLAGS)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no regular file", str(path))
