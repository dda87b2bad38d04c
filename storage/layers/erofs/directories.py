"""Directories as EROFS has them: blocks of entries in the order of their names, each with the names behind the entries.

Source: Linux fs/erofs/erofs_fs.h (struct erofs_dirent) and Documentation/filesystems/erofs.rst (Directories).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator

from storage.layers.erofs.tree import Node

BLOCK = 512
"""Bytes of a block of the image."""
SLOT = 32
"""Inodes are numbered by where they stand, in units of so many bytes."""

_DIRENT = struct.Struct("<QHBx")
_FILE_TYPES = {
    stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFLNK: 7,
}  # fmt: skip


def directory_size(entries: dict[bytes, Node]) -> int:
    """Bytes of the directory with `entries`: whole blocks, and what is used of the last one."""
    size, last = -BLOCK, 0
    for block in _names(entries):
        size += BLOCK
        last = _DIRENT.size * len(block) + sum(map(len, block))
    return size + last


def directory_blocks(node: Node, parent: Node) -> Iterator[bytes]:
    """The directory `node`, whose children have their places; each block but the last one filled up with zeros."""
    entries = {**node.entries, b".": node, b"..": parent}
    last = b""
    for block in _names(node.entries):
        if last:
            yield last.ljust(BLOCK, b"\0")
        at = _DIRENT.size * len(block)
        head = bytearray()
        for name in block:
            child = entries[name]
            head += _DIRENT.pack(child.place // SLOT, at, _FILE_TYPES[stat.S_IFMT(child.mode)])
            at += len(name)
        last = bytes(head) + b"".join(block)
    yield last


def _names(entries: dict[bytes, Node]) -> Iterator[list[bytes]]:
    """All names in order, `.` and `..` among them, as many to a block as fit."""
    block: list[bytes] = []
    used = 0
    for name in sorted((b".", b"..", *entries)):
        cost = _DIRENT.size + len(name)
        if used + cost > BLOCK:
            yield block
            block, used = [], 0
        block.append(name)
        used += cost
    yield block
