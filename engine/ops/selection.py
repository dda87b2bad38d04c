"""What a COPY or ADD takes: a list of things, and the text that the content part of its cache key is the digest of."""

from __future__ import annotations

import builtins
import os
from dataclasses import dataclass
from typing import Literal, get_args

from engine.errors import InputError
from storage.digest import Digest, sha256

EntryType = Literal["file", "dir", "symlink", "fifo", "char", "block"]

CHUNK = 1 << 20
"""Bytes held of one file at a time."""

KINDS: frozenset[str] = frozenset(get_args(EntryType))
KEPT_XATTRS = ("user.", "security.capability")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to be made. Names are text with surrogateescape; `size` in bytes; `mode` the 12 permission bits.

    `path` is the name under the source tree as the Dockerfile leads to it ("" is the tree itself), `source` the same
    without symlinks. `uid`, `gid`, `xattrs` and `link` (an identity shared by hard links) are those of the source
    when that is a stage or image; a context has none of them. `device` is the number of a device node.
    """

    path: str
    source: str
    type: EntryType
    mode: int
    size: int = 0
    digest: Digest | None = None
    target: str = ""
    uid: int = 0
    gid: int = 0
    device: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()
    link: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """One thing a source pattern led to. `entries[start]` is the thing itself; for a directory, what is below it
    follows up to `end`, the entries of each directory adjacent and behind the directory's own."""

    path: str
    start: int
    end: int

    def relative(self, entry: Entry) -> str:
        """`entry`'s path below this directory, "" for the directory itself."""
        return entry.path[len(self.path) :].lstrip("/")


@dataclass(frozen=True, slots=True)
class Selection:
    """What a Copy takes, in copying order. `files` counts all but directories; `bytes` is the sum of file sizes."""

    entries: tuple[Entry, ...]
    matches: tuple[Match, ...]
    files: int
    bytes: int

    def listing(self) -> builtins.bytes:
        """One line an entry: path, type, octal mode, digest or link target or device, owner and xattrs where kept;
        tab-separated, odd bytes as `\\xNN`. Two selections with one listing copy to the same result but for times."""
        return "".join(_line(entry) for entry in self.entries).encode()

    @property
    def digest(self) -> Digest:
        """The digest of the listing."""
        return sha256(self.listing())


def changed(path: str) -> InputError:
    """The error for a file of the context that is not what it was a moment ago."""
    return InputError(
        f"context file {printable(path)!r} changed during the build",
        hint="run the build again when nothing writes to the context",
    )


def printable(path: str) -> str:
    """`path` for people and listings: control characters, backslashes and undecodable bytes as `\\xNN`."""
    if path.isprintable() and "\\" not in path:
        return path
    return "".join(
        char if char.isprintable() and char != "\\" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
        for char in path
    )


def _line(entry: Entry) -> str:
    content = entry.digest or (printable(entry.target) if entry.target else "")
    if entry.type in {"char", "block"}:
        content = f"{os.major(entry.device)}:{os.minor(entry.device)}"
    line = f"{printable(entry.path) or '.'}\t{entry.type}\t{entry.mode:04o}\t{content}"
    if entry.uid or entry.gid:
        line += f"\t{entry.uid}:{entry.gid}"
    for key, value in entry.xattrs:
        line += f"\t{printable(key)}={value.hex()}"
    return line + "\n"
