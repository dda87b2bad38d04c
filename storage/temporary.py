"""Temporary directories of processes that may be killed.

One is locked for as long as it is used; whoever makes the next one in the same place removes those of the dead.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PREFIX = "refledger-tmp."
_NAME = re.compile(r"\.?refledger-tmp\.[a-z0-9_]{8}")


class TemporaryPlace:
    """A new directory, for its owner only, until the end of the context or `remove`."""

    def __init__(self, beside: Path | None = None) -> None:
        """Hidden in the directory `beside`, or in that for temporary files. Raises OSError."""
        parent = usual_directory() if beside is None else beside
        _remove_dead(parent)
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX if beside is None else f".{PREFIX}", dir=parent))
            with suppress(FileNotFoundError):  # taken for a dead one's before it was locked
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(fd, fcntl.LOCK_SH)
                if path.exists():
                    break
                os.close(fd)
        self.path = path
        self._removal = weakref.finalize(self, _remove, path, fd)  # reason: also when nobody does

    def remove(self) -> None:
        """Remove it with all it holds. May be called twice."""
        self._removal()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.remove()


def usual_directory() -> Path:
    """That for temporary files, as tempfile finds it; but that tries each place with a file, which stays when the
    process is killed just then."""
    given = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    for place in (*filter(None, given), "/tmp", "/var/tmp", "/usr/tmp"):  # noqa: S108  reason: what is made there is ours
        if Path(place).is_dir() and os.access(place, os.W_OK | os.X_OK):
            return Path(place).absolute()
    return Path.cwd()


def _remove(path: Path, fd: int) -> None:
    shutil.rmtree(path, ignore_errors=True)  # what cannot be removed now is with the next one
    os.close(fd)


def _remove_dead(parent: Path) -> None:
    with suppress(OSError):
        for path in list(parent.iterdir()):
            if _NAME.fullmatch(path.name):
                _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    with suppress(OSError):  # reason: somebody else's, in use, or gone
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
