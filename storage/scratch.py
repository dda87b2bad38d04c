"""Unfinished things: entries `<owner>-<random>` of a `tmp` directory, so that a dead owner's can be told apart.

Owners are lower-case alphanumerics (build ids), so the first `-` ends the owner.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from storage.errors import InputError

_OWNER = re.compile(r"[a-z0-9]+")
_ENTRY = re.compile(r"([a-z0-9]+)-[0-9a-f]{16}")


class Scratch:
    """Names for the unfinished things of `owner` below `tmp`."""

    def __init__(self, tmp: Path, owner: str) -> None:
        """Raises InputError when `owner` is not lower-case alphanumeric."""
        if not _OWNER.fullmatch(owner):
            raise InputError(f"not an owner id: {owner!r}", hint="lower-case letters and digits only")
        self.tmp = tmp
        self._owner = owner

    def name(self) -> Path:
        """A path below `tmp` that nobody else has. Nothing is made there."""
        return self.tmp / f"{self._owner}-{secrets.token_hex(8)}"

    def directory(self) -> Path:
        """A new directory, mode 0700. Raises OSError."""
        path = self.name()
        self.tmp.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        return path

    def drop(self, path: Path) -> bool:
        """Remove what is at `path`, in this file system: gone at once, for good a little later. Was anything there?
        Raises OSError."""
        aside = self.name()
        self.tmp.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        remove_tree(aside)
        return True


def owner_of(entry: str) -> str | None:
    """The owner of the scratch entry named `entry`; None when it is no such entry."""
    found = _ENTRY.fullmatch(entry)
    return found.group(1) if found else None


def clear_away(path: Path) -> None:
    """Remove what was unfinished at `path`, below `tmp`, as far as that can be done now: the rest is no reason for what
    was done to fail, and is removed by the next build, as a dead owner's."""
    with suppress(OSError):
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a file or a directory with all it holds; harmless when it is gone. Raises OSError.

    Trees come from images, so they may be deeper than the stack of recursion or PATH_MAX allow: each directory is
    moved up beside the others before it is emptied.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except IsADirectoryError:
        pass
    else:
        return
    top = os.fsencode(path)
    prefix = b"%s/%s." % (top, secrets.token_hex(8).encode())
    waiting, moved = [top], 0
    while waiting:
        directory = waiting.pop()
        with os.scandir(directory) as entries:
            for entry in list(entries):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)  # noqa: PTH108 - bytes
                else:
                    moved += 1
                    waiting.append(b"%s%d" % (prefix, moved))
                    # refused for a mount point, so what is mounted there survives
                    os.rename(entry.path, waiting[-1])  # noqa: PTH104 - bytes
        if directory != top:
            os.rmdir(directory)  # noqa: PTH106 - bytes
    path.rmdir()
