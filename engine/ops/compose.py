"""Writing a planned layer: every entry once, every byte straight from where it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from engine.ops.layer import Below, Directory, Inode, Tree
from engine.ops.origin import Origin, content
from engine.ops.selection import Entry
from engine.ops.unpack import Archive
from storage.interfaces.layers import LayerWriter, Look


def write(
    tree: Tree, archives: Sequence[Archive], origin: Origin | None, begin: Callable[[], LayerWriter]
) -> int:
    """Write `tree`; returns the bytes of its files. Files of archives, which are read once more from start to end, are
    written behind all others.

    `origin`: where selected entries are read. Raises InputError for what changed since it was planned, OSError when it
    cannot be read, DiskError when the layer cannot be written; nothing of it stays then.
    """
    writer = begin()
    try:
        links: list[tuple[bytes, Inode]] = []
        for path, node in tree.entries():
            if isinstance(node, Directory):
                writer.directory(path, tree.look(node))
            elif node.path is not None and isinstance(node.origin, Archive):
                links.append((path, node))  # there is nothing to link to yet
            elif node.path is not None:
                writer.link(path, node.path)
            else:
                node.path = path
                _write(path, node, tree, origin, writer)
        for archive in archives:
            assert origin is not None  # where the archive is
            archive.write(origin, writer)
        for path, node in links:
            assert node.path is not None
            writer.link(path, node.path)
        return writer.commit()
    finally:
        writer.discard()


def _write(path: bytes, node: Inode, tree: Tree, origin: Origin | None, writer: LayerWriter) -> None:
    if node.kind != "file":
        writer.node(path, node.look, node.kind, os.fsencode(node.target), node.device)
        return
    match node.origin:
        case bytes() as data:
            writer.file(path, node.look, len(data), (data,) if data else ())
        case Entry() as entry:
            assert origin is not None  # where the entry is
            fd, info = origin.open(entry)
            try:
                known = node.look
                look = Look(known.mode, known.uid, known.gid, info.st_mtime_ns, known.xattrs)
                writer.file(path, look, info.st_size, content(fd, info.st_size, entry))
            finally:
                os.close(fd)
        case Below() as found:
            fd = tree.open(found)
            try:
                writer.file(path, node.look, found.info.st_size, content(fd, found.info.st_size))
            finally:
                os.close(fd)
        case _:  # an Archive
            pass  # when the archive is read
