"""Parts of layers: the asked files, read by range and laid out in a scratch tree that serves as overlay lower.

Such a tree is never published as the layer, and is gone when whoever asked is done: the layer's diff ID says nothing
about it. What it holds is verified against the digests of the table of contents.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from storage.decompression import decompress
from storage.digest import Hasher
from storage.errors import DiskError, TocUnusable, VerificationError
from storage.interfaces.images import Descriptor
from storage.interfaces.parts import LayerTree, Part, Seen, Toc
from storage.layers.directory import LAYER_LIMIT
from storage.layers.implied import read_implied, write_implied
from storage.parts.lookup import LaidOut
from storage.parts.members import Member, members
from storage.parts.toc import Chunk, ChunkedToc, Range, reading
from storage.scratch import Scratch, clear_away, remove_tree
from storage.tar.reader import Entry
from storage.tar.unpack import unpack_tree

_TREE, _SPOOL = "fs", "ranges"
_GAP = 8 * 1024
"""Bytes that are rather read along than cost a request of their own."""
_MOST_RANGES = 64
_PIECE = 1 << 20


class DirectoryParts:
    """Implements LayerParts. `tmp`: where parts lie, in the file system of what they are mounted with."""

    def __init__(self, tmp: Path, owner: str, *, limit: int = LAYER_LIMIT) -> None:
        """`owner` names what is unfinished; `limit`: bytes that a part may expand to, as for DirectoryLayers. Raises
        InputError when `owner` is not lower-case alphanumeric."""
        self._scratch = Scratch(tmp, owner)
        self._limit = limit

    def tree(self, lower: Path) -> LayerTree:
        """See LayerParts.tree."""
        return LaidOut(lower, read_implied(lower))

    def toc(self, blob: Descriptor) -> Generator[Range, bytes, Toc] | None:
        """See LayerParts.toc."""
        found = reading(blob)
        return None if found is None else self._reading(found)

    def _reading(self, inner: Generator[Range, bytes, ChunkedToc]) -> Generator[Range, bytes, Toc]:
        table = yield from inner
        return UsableToc(table, self._scratch, self._limit)


class UsableToc:
    """Implements Toc."""

    def __init__(self, table: ChunkedToc, scratch: Scratch, limit: int = LAYER_LIMIT) -> None:
        self._table = table
        self._scratch = scratch
        self._limit = limit

    @property
    def entries(self) -> int:
        """See Toc.entries."""
        return self._table.entries

    def look(self, path: bytes) -> Seen:
        """See LayerTree.look."""
        return self._table.look(path)

    def names(self, path: bytes) -> AbstractSet[bytes]:
        """See LayerTree.names."""
        return self._table.names(path)

    def part(self, part: Part) -> DirectoryPart:
        """See Toc.part."""
        wanted = list(members(self._table, part))
        # as often as it is told of, what lies in the blob once is decompressed, and what is asked for written
        if sum(chunk.skip + chunk.size for one in wanted for chunk in one.chunks if chunk.digest) > self._limit:
            raise TocUnusable(f"its files expand to more than {self._limit} bytes")
        try:
            return DirectoryPart(self._scratch.directory(), wanted)
        except OSError as error:
            raise DiskError.of(error, "beginning to read a part of a layer") from error


class DirectoryPart:
    """Implements PartReader, in a scratch directory: `ranges` as they came, and the tree `fs`."""

    def __init__(self, directory: Path, members: Sequence[Member]) -> None:
        self._directory = directory
        self._members = members
        self.ranges: Sequence[Range] = merge(
            (chunk.start, chunk.end) for member in members for chunk in member.chunks if chunk.digest
        )
        self.files = sum(1 for member in members if member.chunks)
        self._spool: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        """See PartReader.write."""
        try:
            if self._spool is None:
                self._spool = (self._directory / _SPOOL).open("w+b")
            self._spool.write(data)
        except OSError as error:
            raise DiskError.of(error, "reading a part of a layer") from error

    def restart(self) -> None:
        """See PartReader.restart."""
        try:
            self._drop_spool()
        except OSError as error:
            raise DiskError.of(error, "reading a part of a layer") from error

    def lay_out(self) -> Path:
        """See PartReader.lay_out."""
        tree = self._directory / _TREE
        try:
            tree.mkdir()
            if self._spool is not None:
                self._spool.flush()
            _, implied = unpack_tree(_Content(self._members, self.ranges, self._spool), tree)
            write_implied(self._directory, implied | {one.entry.name for one in self._members if one.implied})
            self._drop_spool()
        except OSError as error:
            raise DiskError.of(error, "laying out a part of a layer") from error
        except VerificationError as error:
            clear_away(tree)
            raise VerificationError(f"its files are not as its table of contents says: {error.what}") from error
        return tree

    def discard(self) -> None:
        """See PartReader.discard."""
        try:
            self._drop_spool()
            remove_tree(self._directory)
        except OSError as error:
            raise DiskError.of(error, "removing a part of a layer") from error

    def _drop_spool(self) -> None:
        spool, self._spool = self._spool, None
        if spool is not None:
            with suppress(OSError):  # reason: it writes what is left, on a disk that may be full: nobody wants it
                spool.close()
            (self._directory / _SPOOL).unlink(missing_ok=True)


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Few ranges that hold all of `ranges`, in order: neighbours become one."""
    apart = sorted(set(ranges))
    gap = _GAP
    while True:
        out: list[Range] = []
        for start, end in apart:
            if out and start - out[-1][1] <= gap:
                out[-1] = (out[-1][0], max(end, out[-1][1]))
            else:
                out.append((start, end))
        if len(out) <= _MOST_RANGES:
            return out
        gap *= 4


class _Content:
    """The members, for unpack_tree: content comes from the spooled ranges and is verified as it is read."""

    def __init__(self, members: Sequence[Member], ranges: Sequence[Range], spool: IO[bytes] | None) -> None:
        self._members = members
        self._ranges = ranges
        self._spool = spool
        self._at: Member | None = None
        self._places = [0]
        for start, end in ranges:
            self._places.append(self._places[-1] + end - start)

    def __iter__(self) -> Iterator[Entry]:
        for member in self._members:
            self._at = member
            yield member.entry

    def data(self) -> Iterator[memoryview]:
        member = self._at
        assert member is not None
        if member.data:
            yield memoryview(member.data)
        for chunk in member.chunks:
            if chunk.digest is not None:
                yield from self._verified(chunk, Hasher(chunk.digest.algorithm))

    def _verified(self, chunk: Chunk, hasher: Hasher) -> Iterator[memoryview]:
        plain = decompress(self._slice(chunk), "")
        skip, left = chunk.skip, chunk.size
        while skip or left:
            piece = memoryview(plain.read(min(skip or left, _PIECE)))
            if not piece:
                raise VerificationError(f"a chunk ends {skip + left} bytes too early")
            if skip:
                skip -= len(piece)
                continue
            hasher.update(piece)
            left -= len(piece)
            yield piece
        if hasher.digest() != chunk.digest:
            raise VerificationError(f"a chunk has the digest {hasher.digest()}, not {chunk.digest}")

    def _slice(self, chunk: Chunk) -> _Slice:
        which = bisect_right(self._ranges, (chunk.start, 2**63)) - 1
        assert self._spool is not None
        assert self._ranges[which][0] <= chunk.start < chunk.end <= self._ranges[which][1]
        return _Slice(self._spool, self._places[which] + chunk.start - self._ranges[which][0], chunk.end - chunk.start)


@dataclass(slots=True)
class _Slice:
    """`size` bytes of a file, from `at` on."""

    file: IO[bytes]
    at: int
    size: int

    def read(self, size: int = -1, /) -> bytes:
        """See ByteSource."""
        self.file.seek(self.at)
        data = self.file.read(self.size if size < 0 else min(size, self.size))
        self.at += len(data)
        self.size -= len(data)
        return data
