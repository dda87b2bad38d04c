"""Parts of layers: the asked files, read by range and laid out in a scratch tree that serves as overlay lower.

Such a tree is never published as the layer, and is gone when whoever asked is done: the layer's diff ID says nothing
about it. What it holds is verified against the digests of the table of contents.
"""

from __future__ import annotations

import base64
import binascii
import re
import stat
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from storage.decompression import decompress
from storage.digest import Hasher
from storage.errors import DiskError, TocUnusable, VerificationError
from storage.interfaces.images import Descriptor
from storage.interfaces.parts import LayerTree, Part, Seen, Toc
from storage.layers.implied import read_implied, write_implied
from storage.parts.lookup import LaidOut
from storage.parts.toc import Chunk, ChunkedToc, Node, Range, number, reading, text
from storage.scratch import Scratch, clear_away, remove_tree
from storage.tar.reader import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK, Entry
from storage.tar.rules import OPAQUE_NAME, WHITEOUT
from storage.tar.unpack import unpack_tree

_TREE, _SPOOL = "fs", "ranges"
_GAP = 8 * 1024
"""Bytes that are rather read along than cost a request of their own."""
_MOST_RANGES = 64
_PIECE = 1 << 20
_KINDS = {
    "dir": DIRECTORY, "reg": REGULAR, "symlink": SYMLINK, "char": CHARACTER, "block": BLOCK_DEVICE, "fifo": FIFO,
}  # fmt: skip
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


class DirectoryParts:
    """Implements LayerParts. `tmp`: where parts lie, in the file system of what they are mounted with."""

    def __init__(self, tmp: Path, owner: str) -> None:
        """`owner` names what is unfinished. Raises InputError when it is not lower-case alphanumeric."""
        self._scratch = Scratch(tmp, owner)

    def tree(self, lower: Path) -> LayerTree:
        """See LayerParts.tree."""
        return LaidOut(lower, read_implied(lower))

    def toc(self, blob: Descriptor) -> Generator[Range, bytes, Toc] | None:
        """See LayerParts.toc."""
        found = reading(blob)
        return None if found is None else self._reading(found)

    def _reading(self, inner: Generator[Range, bytes, ChunkedToc]) -> Generator[Range, bytes, Toc]:
        table = yield from inner
        return UsableToc(table, self._scratch)


class UsableToc:
    """Implements Toc."""

    def __init__(self, table: ChunkedToc, scratch: Scratch) -> None:
        self._table = table
        self._scratch = scratch

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
        members = list(_members(self._table, part))
        try:
            return DirectoryPart(self._scratch.directory(), members)
        except OSError as error:
            raise DiskError.of(error, "beginning to read a part of a layer") from error


@dataclass(frozen=True, slots=True)
class Member:
    """A member to be laid out: `chunks` of a file's content, or all of it as `data`."""

    entry: Entry
    chunks: Sequence[Chunk] = ()
    data: bytes = b""
    implied: bool = False
    """A directory that the layer does not tell of, though it has something in it."""


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


# ---------------------------------------------------------------- what is laid out


_IMPLIED = {"mode": 0o755, "uid": 0, "gid": 0}
"""How a directory looks until a lower layer tells (storage/tar/unpack.py)."""


def _members(table: ChunkedToc, part: Part) -> Iterator[Member]:
    """Parents first, whiteouts where the layer has them."""
    wanted = _chosen(table, part)
    full = {id(table.nodes[path]) for path, content in wanted.items() if content and path in table.nodes}
    written: dict[int, bytes] = {}
    for path in sorted(wanted):
        node = table.nodes.get(path)
        if node is not None and node.type != "dir":
            first = written.setdefault(id(node), path)
            if first != path:
                yield Member(_entry(HARD_LINK, path, {}, link=first))
            else:
                yield _member(table, path, node, with_content=id(node) in full)
        elif node is not None:
            # also what is implied: of all that is in it, nothing else may be wanted
            yield Member(_entry(DIRECTORY, path, node.told or _IMPLIED), implied=node.told is None)
        if path in table.opaque:
            yield Member(_entry(REGULAR, path + b"/" + OPAQUE_NAME if path else OPAQUE_NAME, {}))
        if path in table.whiteouts:
            parent, slash, base = path.rpartition(b"/")
            yield Member(_entry(REGULAR, parent + slash + WHITEOUT + base, {}))


def _chosen(table: ChunkedToc, part: Part) -> dict[bytes, bool]:
    """What of the layer is laid out: path → with its content?"""
    chosen: dict[bytes, bool] = {b"": False}
    for seen in (*part.seen, *part.files, *part.trees):
        path = seen
        while path not in chosen:
            if path in table.nodes or path in table.whiteouts:
                chosen[path] = False
            path = path.rpartition(b"/")[0]
    chosen.update(dict.fromkeys(part.files, True))
    pending = list(part.trees)
    while pending:
        directory = pending.pop()
        for name in table.names(directory):
            path = directory + b"/" + name if directory else name
            above = part.above(path)
            if above == "covers":
                continue
            if table.look(path).kind == "directory":
                pending.append(path)
            # below a directory of an upper layer it only keeps what lies deeper out of sight
            chosen[path] = chosen.get(path, False) or above == "nothing"
    return chosen


def _member(table: ChunkedToc, path: bytes, node: Node, *, with_content: bool) -> Member:
    if node.member is not None:
        return Member(replace(node.member, name=path), data=node.data)
    assert node.told is not None  # only directories are implied
    told = node.told
    entry = _entry(_KINDS[node.type], path, told)
    if node.type == "symlink":
        entry.link = text(told, "linkName")
    elif node.type in {"char", "block"}:
        entry.device = (number(told, "devMajor"), number(told, "devMinor"))
    elif node.type == "reg" and with_content:
        chunks = table.chunks(node)
        entry.size = number(told, "size")
        if any(chunk.digest is None for chunk in chunks):
            entry.segments = list(_data_segments(chunks))
        return Member(entry, chunks)
    return Member(entry)


def _data_segments(chunks: Sequence[Chunk]) -> Iterator[tuple[int, int]]:
    at = 0
    for chunk in chunks:
        if chunk.digest is not None:
            yield at, chunk.size
        at += chunk.size


def _entry(kind: bytes, path: bytes, told: Mapping[str, Any], link: bytes = b"") -> Entry:
    xattrs = told.get("xattrs") or {}
    if not isinstance(xattrs, dict) or any("\0" in name or "=" in name for name in xattrs):
        raise TocUnusable("it has xattrs that are none")
    try:
        values = {name.encode(): base64.b64decode(value, validate=True) for name, value in xattrs.items()}
    except (ValueError, TypeError, binascii.Error) as error:
        raise TocUnusable(f"it has an xattr that is not in base64: {error}") from error
    return Entry(
        name=path, type=kind, mode=stat.S_IMODE(number(told, "mode")), uid=number(told, "uid"),
        gid=number(told, "gid"), size=0, mtime=_time(told.get("modtime")), link=link, xattrs=values,
    )  # fmt: skip


def _time(told: object) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time; 0 for none, as Go writes the year 1 for it."""
    if told is None or told == "" or (isinstance(told, str) and told.startswith("0001-01-01T00:00:00")):
        return 0
    found = _TIME.fullmatch(told) if isinstance(told, str) else None
    try:
        if found is None:
            raise ValueError
        whole = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00")).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise TocUnusable(f"it has {str(told)[:40]!r} for a time") from error
    since = whole - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + int((found[2] or "").ljust(9, "0"))


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
                raise VerificationError(f"a chunk ends {left} bytes too early")
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
