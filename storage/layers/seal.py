"""How a tree of files looked when it was finished: a file `seal` beside it, by which damage is found at a later use.

The digest is over what a walk sees without opening a file (name, kind, mode, owner, size, time, link target, device,
opaque mark): whatever writes to a file changes its time, and a copy that keeps times (`cp -a`, `rsync -a`) keeps the
seal. Directories are added up, each by its own hash, in any order: the walk that finishes a snapshot makes it on the
way, and takes back what it removes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from storage.layers.checked import MOST_NOTED
from storage.regular import read_regular

NAME = "seal"
TREE = "fs"
"""The tree that is sealed, and what serves as overlay lower, of all that is kept as files."""
_VERSION = "1"
_MODULUS = 1 << 256
_LONG = 3000
"""Bytes of a path from where on it is shortened: the kernel takes 4096 at once."""
_UNREADABLE = {errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ESTALE}


def line(path: bytes, name: bytes, status: os.stat_result, *, opaque: bool = False) -> bytes:
    """What is said of the entry at `path`, called `name` in its directory. Raises OSError."""
    mode = status.st_mode
    return b"%o %d %d %d %d %d %d %s\0%s\0" % (
        mode, status.st_uid, status.st_gid, status.st_size if stat.S_ISREG(mode) else 0, status.st_mtime_ns,
        status.st_rdev, opaque, name, os.readlink(path) if stat.S_ISLNK(mode) else b"",  # noqa: PTH115 - bytes
    )  # fmt: skip


def directory_seal(name: bytes, own: bytes, lines: list[bytes]) -> int:
    """What directory `name` (from the root of its tree, beginning with a slash; the root itself empty) adds to the sum:
    its `own` line and the `lines` of all in it that are no directories."""
    return _hash(b"%s\0%s\0%s" % (name, own, b"".join(sorted(lines))))


def tree_seal(tree: bytes, prefix: bytes = b"") -> int:
    """The sum over directory `tree`, called `prefix` in its own tree, and all that is below. Raises OSError."""
    from storage.tar.pack import is_opaque

    total = 0
    pending = [(tree, prefix)]
    while pending:
        directory, name = pending.pop()
        if len(directory) > _LONG:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                total += tree_seal(b"/proc/self/fd/%d" % fd, name)
            finally:
                os.close(fd)
            continue
        lines = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, name + b"/" + entry.name))
                else:
                    lines.append(line(entry.path, entry.name, entry.stat(follow_symlinks=False)))
        own = line(directory, b"", os.stat(directory), opaque=is_opaque(directory)) if name else b""  # noqa: PTH116
        total += directory_seal(name, own, lines)
    return total


def write_seal(directory: Path, entries: int | None = None) -> None:
    """Seal the tree in `directory`, and the files beside it; `entries`: its `tree_seal`, where that is known. The
    caller makes it durable. Raises OSError."""
    if entries is None:
        entries = tree_seal(os.fsencode(directory / TREE))
    (directory / NAME).write_text(f"{_VERSION} {_sum(directory, entries)}\n")


def broken(directory: Path) -> str:
    """What is wrong with the sealed tree in `directory`: "" when it is as it was made, when it was made before there
    were seals, and when nothing is there. Raises OSError."""
    try:
        mode = directory.lstat().st_mode
    except FileNotFoundError:
        return ""
    if not stat.S_ISDIR(mode):
        return "a file stands in the place of its directory"
    tree = directory / TREE
    if tree.is_symlink() or not tree.is_dir():
        return "its tree is gone"
    try:
        version, _, said = read_regular(directory / NAME, _LONG).decode(errors="replace").strip().partition(" ")
        if version.isdecimal() and version != _VERSION:
            return ""  # of another Refledger
    except FileNotFoundError:
        return ""
    except OSError as error:
        said = ""
        if error.errno not in {errno.EISDIR, errno.EINVAL, errno.EFBIG}:
            raise
    try:
        found = _sum(directory, tree_seal(os.fsencode(tree)))
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR} and not os.path.lexists(directory):
            return ""  # somebody let it go meanwhile
        if error.errno in {*_UNREADABLE, errno.EFBIG}:
            return f"it cannot be read: {error.strerror}"
        raise
    return "" if said == found else "its files are not those it was made of"


def _sum(directory: Path, entries: int) -> str:
    """With the tree's own look, and the small files beside it."""
    status = (directory / TREE).stat()
    total = entries + _hash(b"%d %d %d" % (status.st_mode, status.st_uid, status.st_gid))
    for path in directory.iterdir():
        if path.name not in {NAME, TREE} and path.is_file():
            total += _hash(os.fsencode(path.name) + b"\0" + read_regular(path, MOST_NOTED))
    return f"{total % _MODULUS:064x}"


def _hash(line: bytes) -> int:
    return int.from_bytes(hashlib.sha256(line).digest(), "big")
