"""What changed in an overlay upper, and as a patch that patch(1) and git apply understand."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.tar.pack import is_opaque

_LARGEST = 8 << 20  # bytes of a file that is shown as a diff


@dataclass(frozen=True, slots=True)
class Change:
    """One path, relative to the root; `how`: added, changed or removed."""

    path: str
    how: str

    def __str__(self) -> str:
        return f"{self.how:7}  /{self.path}"


def changes(upper: Path, below: Path) -> Iterator[Change]:
    """What `upper` does to the tree `below`, sorted; directories only where they are new. Blocking. Raises OSError."""
    # a directory of the upper may cover a link, and that leads where its text says: out of the tree, on this machine
    pending = [("", True)]
    found = []
    while pending:
        directory, covers = pending.pop()
        if covers and is_opaque(os.fsencode(upper / directory)):
            gone = set(os.listdir(below / directory)) - set(os.listdir(upper / directory))  # noqa: PTH208
            found += [Change(f"{directory}/{name}".lstrip("/"), "removed") for name in gone]
        for entry in os.scandir(upper / directory):
            path = f"{directory}/{entry.name}".lstrip("/")
            status = entry.stat(follow_symlinks=False)
            there = covers and os.path.lexists(below / path)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                found.append(Change(path, "removed"))
            elif stat.S_ISDIR(status.st_mode):
                pending.append((path, there and stat.S_ISDIR((below / path).lstat().st_mode)))
                if not there:
                    found.append(Change(path, "added"))
            elif not there or not _same(upper / path, below / path):
                found.append(Change(path, "changed" if there else "added"))
    yield from sorted(found, key=lambda change: change.path)


def _same(new: Path, old: Path) -> bool:
    """Opening a file for writing copies it up; that alone is no change."""
    now, then = new.lstat(), old.lstat()
    if (now.st_mode, now.st_uid, now.st_gid, now.st_size) != (then.st_mode, then.st_uid, then.st_gid, then.st_size):
        return False
    if stat.S_ISLNK(now.st_mode):
        return new.readlink() == old.readlink()
    return not stat.S_ISREG(now.st_mode) or _equal(new, old)


def _equal(new: Path, old: Path) -> bool:
    with new.open("rb") as a, old.open("rb") as b:
        while (piece := a.read(1 << 20)) == b.read(1 << 20):
            if not piece:
                return True
    return False


def unified(found: Sequence[Change], before: Path, now: Path) -> Iterator[str]:
    """The regular files of `found` as unified diffs; what is no text is named in a comment."""
    for change in found:
        old = _lines(before / change.path) if change.how != "added" else _Text(there=False, lines=[])
        new = _lines(now / change.path) if change.how != "removed" else _Text(there=False, lines=[])
        if old is None or new is None:
            yield f"# {change.how}: {change.path} (not a text file)\n"
            continue
        names = (f"a/{change.path}" if old.there else "/dev/null", f"b/{change.path}" if new.there else "/dev/null")
        for line in difflib.unified_diff(old.lines, new.lines, *names):
            yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


@dataclass(frozen=True, slots=True)
class _Text:
    there: bool
    lines: list[str]


def _lines(path: Path) -> _Text | None:
    """The lines of a text file, none for one that is not there; None for what cannot be in a patch."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return _Text(False, [])
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
        return None
    data = path.read_bytes()
    if b"\0" in data:
        return None
    # reason: not splitlines, which knows ends of lines that patch(1) does not
    *lines, rest = data.decode("utf-8", "surrogateescape").split("\n")
    return _Text(True, [f"{line}\n" for line in lines] + [rest] * bool(rest))
