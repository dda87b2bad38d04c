"""Directories that a layer implies only: it has `tmp/x` and says nothing of `tmp`.

In the layer's own tree they must look like something, and in an overlay that look covers what lower layers say of the
same directory, its mode 1777 for one. A layer serves many chains, so what they look like is found out chain by chain,
when it is mounted: directories of the right look, and nothing else, go on top of the lowers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from storage.errors import VerificationError
from storage.interfaces.layers import Look
from storage.layers.checked import MOST_NOTED
from storage.regular import read_regular
from storage.tar.rules import IGNORED_XATTRS, OPAQUE_XATTR

_FILE = "implied"  # beside the tree; paths relative to it, each ended by NUL; the empty path is the root
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ROOT = b""


def noted(paths: AbstractSet[bytes]) -> bytes:
    """What is noted of implied directories. Raises VerificationError when it is more than could be read again."""
    data = b"".join(path + b"\0" for path in sorted(paths))
    if len(data) > MOST_NOTED:
        raise VerificationError(f"the names of directories that the layer implies have {len(data)} bytes")
    return data


def write_implied(directory: Path, paths: AbstractSet[bytes]) -> None:
    """Note beside the tree in `directory` which of its directories are implied. Raises OSError, VerificationError as
    `noted`."""
    if paths:
        (directory / _FILE).write_bytes(noted(paths))


def read_implied(lower: Path) -> frozenset[bytes]:
    """The implied directories of the layer whose tree is `lower`. Raises OSError."""
    try:
        return frozenset(read_regular(lower.parent / _FILE, MOST_NOTED).split(b"\0")[:-1])
    except FileNotFoundError:
        return frozenset()


def hidden_looks(lowers: Sequence[Path], implied: Sequence[AbstractSet[bytes]]) -> dict[bytes, Look]:
    """The looks that implied directories of `lowers` (bottom first, `implied` in parallel) hide from the overlay, by
    path, with those of all directories on the way there, parents first. Empty when nothing is hidden. Raises OSError.

    From the top down, the first lower that has a directory without implying it says how it looks. Where something
    else stands, or a directory is opaque, nothing below counts.
    """
    asked = sorted(_with_parents(path for paths in implied for path in paths))
    shown: dict[bytes, Look] = {}
    said: dict[bytes, Look] = {}
    for lower, its in zip(reversed(lowers), reversed(implied), strict=True):
        if not asked:
            break
        tree = _Lower(lower)
        try:
            left = []
            for path in asked:
                found = tree.find(path)
                if found.look:
                    shown.setdefault(path, found.look)
                    if path not in its:
                        said[path] = found.look
                if not found.ends and path not in said:
                    left.append(path)
            asked = left
        finally:
            tree.close()
    hidden = [path for path, look in said.items() if not _alike(path, look, shown[path])]
    return {path: said.get(path) or shown[path] for path in sorted(_with_parents(hidden))}


def make_directories(tree: Path, looks: dict[bytes, Look]) -> None:
    """Make `tree` with the directories of `looks`, which has parents first, the root among them. Raises OSError."""
    tree.mkdir(mode=0o700)
    top = os.open(tree, _OPEN)
    try:
        for path in looks:
            if path != ROOT:
                os.mkdir(path, 0o700, dir_fd=top)
        # only now: set-group-ID bits and default ACLs pass on to what is made in a directory, which changes its time
        for path, look in looks.items():
            fd = os.open(path or b".", _OPEN, dir_fd=top)
            try:
                os.fchown(fd, look.uid, look.gid)
                os.fchmod(fd, look.mode)
                for name, value in look.xattrs.items():
                    os.setxattr(fd, name, value)
                os.utime(fd, ns=(look.mtime, look.mtime))
            finally:
                os.close(fd)
    finally:
        os.close(top)


def _with_parents(paths: Iterable[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for each in paths:
        path = each
        while path not in found:
            found.add(path)
            path = path.rpartition(b"/")[0]
    return found


def _alike(path: bytes, one: Look, other: Look) -> bool:
    """The time of the root says nothing: whatever is made there changes it, and layers of steps do not carry it."""
    return one == (replace(other, mtime=one.mtime) if path == ROOT else other)


@dataclass(frozen=True, slots=True)
class _Found:
    """`look` of a directory; None when there is none. `ends`: what lower layers have of that path is not seen."""

    look: Look | None
    ends: bool


class _Lower:
    """One tree; each path is looked at once, and links are never followed. Asked for parents first."""

    def __init__(self, lower: Path) -> None:
        self._top = os.open(lower, _OPEN)
        self._found: dict[bytes, _Found] = {}

    def close(self) -> None:
        os.close(self._top)

    def find(self, path: bytes) -> _Found:
        """What is at `path`."""
        pending = []
        while path not in self._found:
            pending.append(path)
            if path == ROOT:
                break
            path = path.rpartition(b"/")[0]
        for each in reversed(pending):
            above = None if each == ROOT else self._found[each.rpartition(b"/")[0]]
            self._found[each] = self._look_at(each, above)
        return self._found[pending[0] if pending else path]

    def _look_at(self, path: bytes, above: _Found | None) -> _Found:
        if above and not above.look:
            return above
        ends = above is not None and above.ends
        try:
            fd = os.open(path or b".", _OPEN, dir_fd=self._top)
        except FileNotFoundError:
            return _Found(None, ends)
        except NotADirectoryError:
            return _Found(None, ends=True)
        try:
            status = os.fstat(fd)
            names = [os.fsencode(name) for name in os.listxattr(fd)]
            opaque = OPAQUE_XATTR in names and os.getxattr(fd, OPAQUE_XATTR) == b"y"
            xattrs = {name: os.getxattr(fd, name) for name in names if not name.startswith(IGNORED_XATTRS)}
        finally:
            os.close(fd)
        mode = stat.S_IMODE(status.st_mode)
        return _Found(Look(mode, status.st_uid, status.st_gid, status.st_mtime_ns, xattrs), ends or opaque)
