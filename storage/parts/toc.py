"""Tables of contents that layers carry: which files they hold, and where in the compressed blob each one begins.

Sources: stargz-snapshotter, docs/estargz.md (eStargz); containers/storage, pkg/chunked (zstd:chunked; its annotations
were `io.containers.…` first). The digest of the table stands in the image's manifest, so the table is as good as the
manifest; what it says of the layer's bytes is verified chunk by chunk. What a table cannot say without doubt (a name
that is not UTF-8, a member below a link) makes it unusable, and the layer is fetched whole.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Generator, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from storage.decompression import decompress
from storage.digest import Digest, digest_of, parse_json
from storage.errors import InputError, TocUnusable, VerificationError
from storage.interfaces.images import ESTARGZ, Descriptor
from storage.parts.lookup import Own, Tree
from storage.tar.reader import REGULAR, Entry, TarReader
from storage.tar.rules import AUFS, OPAQUE_NAME, WHITEOUT

_CHUNKED = ("io.github.containers.zstd-chunked.", "io.containers.zstd-chunked.")
_POSITION, _CHECKSUM = "manifest-position", "manifest-checksum"

LARGEST = 32 * 1024 * 1024
"""Bytes of a table at most, uncompressed: about 100,000 files. What is larger costs more than it saves."""
_MOST_OBJECTS = 400_000  # in one table: a short text must not become millions of objects
_FOOTER = 51
_TAIL = 64 * 1024  # read in one go with the footer, where that is less than 1 % of the blob
TOC_NAME = b"stargz.index.json"
FOOTER_MARK = b"SG\x16\x00"
"""How the extra field of an eStargz's footer begins (RFC 1952, 2.3.1.1): its name, and 22 bytes."""

Range = tuple[int, int]


def reading(blob: Descriptor) -> Generator[Range, bytes, ChunkedToc] | None:
    """As LayerParts.toc."""
    notes = blob.annotations
    for prefix in _CHUNKED:
        if prefix + _POSITION in notes and prefix + _CHECKSUM in notes:
            return _read_chunked(blob, notes[prefix + _POSITION], notes[prefix + _CHECKSUM])
    if ESTARGZ in notes and "zstd" not in blob.media_type:
        return _read_estargz(blob, notes[ESTARGZ])
    return None


def _read_chunked(blob: Descriptor, position: str, checksum: str) -> Generator[Range, bytes, ChunkedToc]:
    words = position.split(":")
    if len(words) != 4 or not all(word.isascii() and word.isdigit() and len(word) < 19 for word in words):
        raise TocUnusable(f"its position is {position[:80]!r}")
    start, length, told, kind = map(int, words)
    if kind != 1 or not 0 < start < start + length <= blob.size or max(length, told) > LARGEST:
        raise TocUnusable(f"its position is {position[:80]!r} in a layer of {blob.size} bytes")
    data = yield start, start + length
    _verify(data, _digest(checksum))
    try:
        table = _read(decompress(io.BytesIO(data), "zstd"), told + 1)
    except VerificationError as error:
        raise TocUnusable(error.what) from error
    if len(table) != told:
        raise TocUnusable(f"it is not of the {told} bytes that the manifest promises")
    return ChunkedToc(table, start)


def _read_estargz(blob: Descriptor, digest: str) -> Generator[Range, bytes, ChunkedToc]:
    wanted = _digest(digest)
    if blob.size <= _FOOTER:
        raise TocUnusable(f"a layer of {blob.size} bytes has no room for one")
    begin = blob.size - max(_FOOTER, min(_TAIL, blob.size // 100))
    tail = yield begin, blob.size
    start = _toc_offset(tail[-_FOOTER:])
    if not 0 < start < blob.size - _FOOTER:
        raise VerificationError(f"the layer's footer points to {start}, of {blob.size} bytes")
    if blob.size - start > LARGEST:
        raise VerificationError(f"the layer's footer points to {start}, {blob.size - start} bytes before its end")
    section = tail[max(start - begin, 0) : -_FOOTER]
    if start < begin:
        section = (yield start, begin) + section
    tar = TarReader(decompress(io.BytesIO(section), "gzip"))
    for entry in tar:
        if entry.name != TOC_NAME or entry.type != REGULAR or entry.segments is not None:
            break
        if entry.size > LARGEST:
            raise VerificationError(f"a table of contents of {entry.size} bytes")
        table = b"".join(tar.data())
        _verify(table, wanted)
        return ChunkedToc(table, start, entry)
    raise VerificationError("no table of contents where the layer's footer points to")


def _toc_offset(footer: bytes) -> int:
    """The offset that eStargz's footer (an empty gzip member with one extra field) has in hexadecimal."""
    digits = footer[16:32]
    if footer[:4] != b"\x1f\x8b\x08\x04" or footer[10:16] != b"\x1a\x00" + FOOTER_MARK or footer[32:38] != b"STARGZ":
        raise VerificationError("the layer does not end with the footer of an eStargz")
    try:
        return int(digits.decode("ascii"), 16)
    except ValueError:
        raise VerificationError(f"the layer's footer has {digits!r} for an offset") from None


def _read(source: Any, most: int) -> bytes:
    parts, size = [], 0
    while size < most and (piece := source.read(most - size)):
        parts.append(piece)
        size += len(piece)
    return b"".join(parts)


def _digest(text: str) -> Digest:
    try:
        return Digest(text)
    except InputError as error:
        raise TocUnusable(error.what) from error


def _verify(data: bytes, digest: Digest) -> None:
    if (found := digest_of(data, digest.algorithm)) != digest:
        raise VerificationError(f"the table of contents has the digest {found}, not {digest}")


# ---------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a file: `size` of them from `skip` on in what decompresses from `start` (and, at most, to `end`) of the
    blob. `digest` None: so many zeros."""

    size: int
    digest: Digest | None
    start: int = 0
    end: int = 0
    skip: int = 0


@dataclass(slots=True)
class Node:
    """One file or directory. `told`: its entry, None for an implied directory; `more`: entries of its later chunks;
    `member` and `data`: of a file that is no entry of the table, as the table itself."""

    type: str
    told: Mapping[str, Any] | None = None
    more: list[Mapping[str, Any]] = field(default_factory=list)
    member: Entry | None = None
    data: bytes = b""


_TYPES = frozenset({"dir", "reg", "symlink", "hardlink", "char", "block", "fifo"})


class ChunkedToc(Tree):
    """A verified table of contents, as a tree of names. Implements LayerTree."""

    def __init__(self, table: bytes, start: int, itself: Entry | None = None) -> None:
        """`table`: JSON; `start`: where in the blob it begins, and all files have ended; `itself`: its tar header when
        it is a member of the layer. Raises TocUnusable."""
        super().__init__()
        self.nodes: dict[bytes, Node] = {b"": Node("dir")}
        self.whiteouts: set[bytes] = set()
        self.opaque: set[bytes] = set()
        self.entries = 0
        self._start = start
        self._below: dict[bytes, set[bytes]] = {b"": set()}
        self._offsets: list[int] = []
        for told, path, more in _entries(table):
            self._add(path, told, more)
        if itself is not None:
            self._put(TOC_NAME, Node("reg", member=itself, data=table))
        self._offsets = sorted({*self._offsets, start})
        for path in self.opaque:
            self._make(path)
        for path in self.whiteouts:
            parent, _, base = path.rpartition(b"/")
            self._make(parent)
            self._below[parent].add(base)

    def names(self, path: bytes) -> AbstractSet[bytes]:
        """See LayerTree.names."""
        return self._below.get(path, frozenset())

    def chunks(self, node: Node) -> list[Chunk]:
        """The content of a regular file, in order. Raises TocUnusable where the table does not tell all of it."""
        assert node.told is not None
        size = number(node.told, "size")
        out: list[Chunk] = []
        have = 0
        for told in [node.told, *node.more] if size else []:
            if number(told, "chunkOffset") != have or have >= size:
                raise TocUnusable("it has a file with a hole in it")
            length = number(told, "chunkSize") or size - have
            out.append(self._chunk(told, length, alone=not node.more))
            have += length
        if have != size:
            raise TocUnusable("its chunks do not add up to their file")
        return out

    # ---------------------------------------------------------------- how

    def _chunk(self, told: Mapping[str, Any], size: int, *, alone: bool) -> Chunk:
        if told.get("chunkType") == "zeros":
            return Chunk(size, None)
        start, skip = number(told, "offset"), number(told, "innerOffset")
        digest = told.get("chunkDigest") or (told.get("digest") if alone else None)
        after = bisect_right(self._offsets, start)
        if not 0 < start < self._start or after == len(self._offsets) or not isinstance(digest, str):
            raise TocUnusable("it has a file without a place or a digest")
        end, told_end = self._offsets[after], number(told, "endOffset") if alone else 0
        return Chunk(size, _digest(digest), start, told_end if start < told_end < end else end, skip)

    def _add(self, path: bytes, told: Mapping[str, Any], more: list[Mapping[str, Any]]) -> None:
        self.entries += 1 + len(more)
        parent, _, base = path.rpartition(b"/")
        if base == OPAQUE_NAME:
            self.opaque.add(parent)
        elif path.startswith(AUFS) or base.startswith(AUFS):
            return
        elif base.startswith(WHITEOUT):
            hidden = base[len(WHITEOUT) :]
            if hidden in {b"", b".", b".."}:
                raise TocUnusable("it has a whiteout of nothing")
            self.whiteouts.add(parent + b"/" + hidden if parent else hidden)
        elif told["type"] == "hardlink":
            target = self.nodes.get(clean(told.get("linkName")))
            if target is None or target.type == "dir":
                raise TocUnusable("it has a hard link to what it has not")
            if self.nodes.get(path) is not target:
                self._put(path, target)
        else:
            if told["type"] == "reg":
                self._offsets += [number(one, "offset") for one in (told, *more)]
            self._put(path, Node(told["type"], told, more))

    def _put(self, path: bytes, node: Node) -> None:
        there = self.nodes.get(path)
        if there is not None and there.type == "dir" == node.type:
            there.told = node.told
            return
        if not path:
            raise TocUnusable("its root is no directory")
        if there is not None and there.type == "dir":
            self._remove_below(path)
        parent, _, base = path.rpartition(b"/")
        self._make(parent)
        self._below[parent].add(base)
        self.nodes[path] = node
        if node.type == "dir":
            self._below[path] = set()

    def _make(self, path: bytes) -> None:
        """See that `path` is a directory, with its parents."""
        missing = []
        while path not in self.nodes:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        if self.nodes[path].type != "dir":
            raise TocUnusable("it has a member below what is no directory")
        for each in reversed(missing):
            parent, _, base = each.rpartition(b"/")
            self._below[parent].add(base)
            self._below[each] = set()
            self.nodes[each] = Node("dir")

    def _remove_below(self, path: bytes) -> None:
        pending = [path]
        while pending:
            gone = pending.pop()
            del self.nodes[gone]
            pending += [gone + b"/" + name for name in self._below.pop(gone, ())]

    def _own(self, path: bytes) -> Own:
        node = self.nodes.get(path)
        if node is None:
            return Own("whiteout" if path in self.whiteouts else "missing")
        if node.type == "dir":
            return Own("directory", opaque=path in self.opaque or path in self.whiteouts, implied=node.told is None)
        if node.type == "symlink":
            return Own("symlink", text(node.told or {}, "linkName"))
        if node.type == "char" and not any(number(node.told or {}, key) for key in ("devMajor", "devMinor")):
            return Own("whiteout")
        return Own("other")


# ---------------------------------------------------------------- entries


def _entries(table: bytes) -> Iterator[tuple[Mapping[str, Any], bytes, list[Mapping[str, Any]]]]:
    """Each entry with its path and the entries of its later chunks."""
    if table.count(b"{") > _MOST_OBJECTS or table.count(b"[") > _MOST_OBJECTS:
        raise TocUnusable(f"it has more than {_MOST_OBJECTS} entries")
    try:
        entries = parse_json(table)["entries"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TocUnusable(f"it cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise TocUnusable("it has no list of entries")
    at = 0
    while at < len(entries):
        told = entries[at]
        if not isinstance(told, dict) or not isinstance(kind := told.get("type"), str) or kind not in _TYPES:
            raise TocUnusable(f"entry {at} is of no known type")
        path = clean(told.get("name"))
        end = at + 1
        while end < len(entries) and isinstance(entries[end], dict) and entries[end].get("type") == "chunk":
            if kind != "reg" or clean(entries[end].get("name")) != path:
                raise TocUnusable(f"entry {end} is a chunk of another file")
            end += 1
        yield told, path, entries[at + 1 : end]
        at = end


def clean(name: object) -> bytes:
    """A path relative to the layer's root. Raises TocUnusable."""
    if not isinstance(name, str) or "\ufffd" in name or "\0" in name:  # what Go's encoder makes of other than UTF-8
        raise TocUnusable("it has a name that cannot be told")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise TocUnusable(f"it has a name that leads out of the layer: {name[:200]!a}")
    return "/".join(parts).encode()


def text(told: Mapping[str, Any], key: str) -> bytes:
    """The value of `key` as bytes, as it stands. Raises TocUnusable."""
    value = told.get(key, "")
    if not isinstance(value, str) or "\ufffd" in value or "\0" in value:
        raise TocUnusable(f"it has a {key} that cannot be told")
    return value.encode()


def number(told: Mapping[str, Any], key: str) -> int:
    """The value of `key`, 0 when there is none. Raises TocUnusable for what is no number, or below zero."""
    value = told.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise TocUnusable(f"it has {str(value)[:40]!r} as {key}")
    return value
