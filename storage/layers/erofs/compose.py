"""A step's layer, written entry by entry as tar and EROFS image at once: no file is created for any of its files.

Its tar has the order in which layers are packed (storage/tar/pack.py), as that of a layer that is kept as a tree: which
of the two it is depends on the machine. Who writes in another order, as ADD of an archive must, has it written twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from storage.digest import Hasher
from storage.durable import fsync_directory
from storage.errors import DiskError, InputError, VerificationError
from storage.interfaces.layers import Look
from storage.layers.erofs.encode import TAR_START
from storage.layers.erofs.image import ImageWriter
from storage.scratch import remove_tree
from storage.tar.pack import encode, marker
from storage.tar.reader import (
    BLOCK,
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarReader,
)
from storage.tar.rules import OPAQUE_NAME, OPAQUE_XATTR

_NODES = {"symlink": SYMLINK, "fifo": FIFO, "char": CHARACTER, "block": BLOCK_DEVICE}
_GATHERED = 1 << 20
"""Bytes written at once: small files would cost several calls each."""
LONGEST_PATH = 1 << 20
"""Sources are read directory by directory, so their paths may be longer than the kernel takes at once."""


class ErofsLayerWriter:
    """Implements LayerWriter: an image at `path`, which becomes `final`, that of `snapshot`."""

    def __init__(self, path: Path, final: Path, snapshot: str) -> None:
        """Raises DiskError."""
        self._snapshot = snapshot
        self._path = path
        self._final = final
        self._pending = bytearray()
        self._written = 0
        self._last: list[bytes] = []
        self._sorted = True
        self._hasher = Hasher()
        with _told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._image = ImageWriter(path, longest_path=LONGEST_PATH)

    def directory(self, path: bytes, look: Look) -> None:
        """See LayerWriter.directory."""
        name = (path or b".") + b"/"
        entry = _entry(name, DIRECTORY, look)
        opaque = entry.xattrs.pop(OPAQUE_XATTR, None)
        self._member(entry)
        if opaque:
            self._member(marker(name + OPAQUE_NAME, b""))

    def file(self, path: bytes, look: Look, size: int, content: Iterable[bytes | memoryview]) -> None:
        """See LayerWriter.file."""
        entry = _entry(path, REGULAR, look)
        entry.size = entry.stored = size
        self._member(entry)
        left = size
        for piece in content:
            left -= len(piece)
            if left < 0:
                raise ValueError(f"more than {size} bytes for {path!a}")
            self._put(piece)
        if left:
            raise ValueError(f"{size - left} of {size} bytes for {path!a}")
        self._put(bytes(-size % BLOCK))

    def node(
        self, path: bytes, look: Look, kind: Literal["symlink", "fifo", "char", "block"], target: bytes, device: int
    ) -> None:
        """See LayerWriter.node."""
        from os import major, minor

        entry = _entry(path, _NODES[kind], look)
        entry.link = target if kind == "symlink" else b""
        entry.device = (major(device), minor(device)) if kind in {"char", "block"} else (0, 0)
        self._member(entry)

    def link(self, path: bytes, target: bytes) -> None:
        """See LayerWriter.link."""
        node = self._image.tree.find(target)
        if node is None:
            raise ValueError(f"a link to {target!a}, which was not written")
        look = Look(node.mode & 0o7777, node.uid, node.gid, node.mtime)
        entry = _entry(path, HARD_LINK, look)
        entry.link = target
        self._member(entry)

    def commit(self) -> int:
        """See LayerWriter.commit."""
        if not self._sorted:
            return self._in_order()
        with _told():
            self._put(bytes(2 * BLOCK))
            self._flush()
            self._image.finish(self._hasher.digest(), self._snapshot)
            self._image.close()
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self._path.rename(self._final)
            fsync_directory(self._final.parent)
        return self._image.tree.bytes

    def discard(self) -> None:
        """See LayerWriter.discard."""
        with _told():
            self._image.close()
            remove_tree(self._path)

    def _in_order(self) -> int:
        """Commit the same members in the order of their names; of the names of one file the first has its content."""
        self._flush()
        again = ErofsLayerWriter(self._path.with_name(f"{self._path.name}-sorted"), self._final, self._snapshot)
        try:
            with _told(), self._path.open("rb") as file:
                file.seek(TAR_START)
                members = sorted(TarReader(file), key=_place)
                files = {entry.name: entry for entry in members if entry.type != HARD_LINK}
                firsts: dict[bytes, bytes] = {}
                for entry in members:
                    whole = files[entry.link] if entry.type == HARD_LINK else entry
                    first = firsts.setdefault(whole.name, entry.name)
                    if first != entry.name:
                        link = replace(whole, type=HARD_LINK, link=first, size=0, stored=0, xattrs={})
                        again._member(replace(link, name=entry.name))
                        continue
                    again._member(replace(whole, name=entry.name))
                    file.seek(TAR_START + whole.offset)
                    for start in range(0, whole.stored, _GATHERED):
                        again._put(file.read(min(whole.stored - start, _GATHERED)))
                    again._put(bytes(-whole.stored % BLOCK))
            return again.commit()
        finally:
            again.discard()
            self.discard()

    def _member(self, entry: Entry) -> None:
        place = _place(entry)
        self._sorted = self._sorted and self._last <= place
        self._last = place
        header = encode(entry)
        entry.offset = self._written + len(header)
        with _told():
            self._image.tree.add(entry)
        self._put(header)

    def _put(self, data: bytes | memoryview) -> None:
        self._pending += data
        self._written += len(data)
        if len(self._pending) >= _GATHERED:
            self._flush()

    def _flush(self) -> None:
        self._hasher.update(self._pending)
        with _told():
            self._image.write(self._pending)
        self._pending = bytearray()


def _entry(path: bytes, kind: bytes, look: Look) -> Entry:
    return Entry(
        path, kind, mode=look.mode, uid=look.uid, gid=look.gid, size=0, mtime=look.mtime,
        xattrs=dict(sorted(look.xattrs.items())),
    )


def _place(entry: Entry) -> list[bytes]:
    """What members are sorted by: a directory, its opaque mark, what is in it by the bytes of the names."""
    parts = entry.name.removeprefix(b"./").rstrip(b"/").split(b"/")  # the root is ./
    return [*parts[:-1], b""] if parts[-1] == OPAQUE_NAME else parts


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with an entry is wrong with what was given, not with bytes that were promised."""
    try:
        yield
    except VerificationError as error:
        raise InputError(error.what, where=error.where, hint=error.hint) from error
    except OSError as error:
        raise DiskError.of(error, "writing a layer") from error
