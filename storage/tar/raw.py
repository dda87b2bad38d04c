"""A tar's members with the very bytes that they stand in, for whoever writes most of a tar as it came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from storage.errors import VerificationError
from storage.interfaces.blobs import ByteSource
from storage.tar.reader import BLOCK, Entry, TarReader

_MOST = 32 << 20
"""Bytes between the contents of two files: headers, and what only a hostile tar has there."""


class RawTar:
    """Iteration gives each member and its headers (with those that extend it, and a sparse map); then `data` its stored
    bytes, which must be taken whole. `rest` is what follows the last one. All of it together is the tar, but for the
    padding behind contents, which `padding` has. Methods raise as TarReader's do."""

    def __init__(self, source: ByteSource) -> None:
        self._kept = _Kept(source)
        self._reader = TarReader(self._kept)
        self._owed = 0
        self.padding = b""

    def __iter__(self) -> Iterator[tuple[Entry, bytes]]:
        """The members."""
        for entry in self._reader:
            self.padding = self._kept.take(self._owed)
            header = self._kept.take(entry.offset - self._kept.position)
            self._owed = -entry.stored % BLOCK
            yield entry, header

    def data(self) -> Iterator[memoryview]:
        """The stored bytes of the member that iteration is at, in pieces that are valid until the next one."""
        for piece in self._reader.data():
            self._kept.drop(len(piece))
            yield piece

    def rest(self) -> Iterator[bytes]:
        """The padding of the last member, the end of the archive, and whatever comes after it, to the source's end."""
        yield from self._kept.rest()


class _Kept:
    """A source that keeps what was read until it is taken."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._chunks: deque[bytes] = deque()
        self._at = 0  # in the first of them
        self._held = 0
        self.position = 0
        """Of the next byte to be taken, in the tar."""

    def read(self, size: int = -1, /) -> bytes:
        """See ByteSource."""
        data = self._source.read(size)
        if data:
            self._chunks.append(data)
            self._held += len(data)
            if self._held > _MOST:
                raise VerificationError(f"more than {_MOST >> 20} MiB of a tar that belong to no file")
        return data

    def take(self, count: int) -> bytes:
        """The next `count` bytes of what was read."""
        parts = []
        while count > 0:
            piece = self._chunks[0][self._at : self._at + count]
            parts.append(piece)
            self._forward(len(piece))
            count -= len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def drop(self, count: int) -> None:
        """Pass over the next `count` bytes of what was read."""
        while count > 0:
            step = min(count, len(self._chunks[0]) - self._at)
            self._forward(step)
            count -= step

    def rest(self) -> Iterator[bytes]:
        """All that was not taken, and what the source has yet."""
        while self._chunks:
            piece = self._chunks[0][self._at :]
            self._forward(len(piece))
            yield piece
        while data := self._source.read(1 << 20):
            yield data

    def _forward(self, count: int) -> None:
        self._at += count
        self.position += count
        self._held -= count
        if self._at == len(self._chunks[0]):
            self._chunks.popleft()
            self._at = 0
