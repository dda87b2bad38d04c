"""Reading the tar dialects that layers come in: ustar, PAX, GNU, sparse files; names are bytes throughout.

Faster than tarfile and stricter: what does not parse is an error, never skipped. Global headers must parse and change
nothing, as for all that read layers with Go's archive/tar (docker, containerd, podman): what a layer holds must not
depend on who reads it. Sources: POSIX pax, "ustar
Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from storage.errors import VerificationError
from storage.interfaces.blobs import ByteSource
from storage.tar.fields import check_sum, integer, nanoseconds, number, pax_records, repeated

BLOCK = 512
REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

_ZEROS = bytes(BLOCK)
_READ = 1 << 20
_LARGEST_EXTENSION = 1 << 20  # bytes of one PAX header, long name or sparse map; Go's archive/tar has the same limit
_LONG_NAME, _LONG_LINK, _GNU_SPARSE, _PAX, _PAX_SOLARIS, _PAX_GLOBAL = b"L", b"K", b"S", b"x", b"X", b"g"
_TYPES = {b"\0": REGULAR, b"7": REGULAR, _GNU_SPARSE: REGULAR}  # spellings of a regular file
_NO_FILES = {b"V", b"D"}  # a volume's label, a list of names
_MEMBERS = {REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO, *_TYPES, *_NO_FILES}
_EXTENDED = {_PAX, _PAX_SOLARIS, _PAX_GLOBAL}
_FIELDS = struct.Struct("100s8s8s8s12s12s8xc100s6s82x155s12x")  # name to link without checksum, magic, prefix
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."


@dataclass(slots=True)
class Entry:
    """One member. `type` is one of the constants above; `mtime` in ns since the epoch; `size` is the file's length
    in bytes, `stored` what of it lies in the archive, `segments` where in a sparse file (offset, length) else None.
    `offset` is where in the tar the first stored byte is, behind any sparse map: a place, no part of what is equal."""

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    stored: int = 0
    segments: list[tuple[int, int]] | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    offset: int = field(default=0, compare=False)


class TarReader:
    """Members of an uncompressed tar, one after the other. All methods raise VerificationError for malformed tars
    and whatever the source raises."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._chunk = b""  # what the source gave last
        self._start = 0  # where in the tar that begins
        self._at = 0  # how far it has been read; behind its end after a skip
        self._extended = 0  # bytes of extended headers since the last member
        self._unread = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        """The members. What `data` was not asked for is skipped."""
        local: dict[bytes, bytes] = {}
        sparse: list[tuple[bytes, bytes]] = []
        while (block := self._header()) is not None:
            kind = block[156:157]
            if kind in _MEMBERS:
                entry = self._entry(block, local, sparse)
                if local or self._extended:
                    local, sparse, self._extended = {}, [], 0
                if entry is not None:
                    yield entry
                self._skip()
            elif kind in _EXTENDED:
                data = self._extension(block)
                records = pax_records(data)
                if kind != _PAX_GLOBAL:
                    local.update(records)
                    # looked for in the bytes first: most headers have none; a name or a value may hold the words too
                    is_sparse = _SPARSE in data and any(key.startswith(_SPARSE) for key, _ in records)
                    sparse = records if is_sparse else []
            elif kind == _LONG_NAME:
                local.setdefault(b"path", self._extension(block).partition(b"\0")[0])
            elif kind == _LONG_LINK:
                local.setdefault(b"linkpath", self._extension(block).partition(b"\0")[0])
            else:
                name = local.get(b"path") or block[:100].partition(b"\0")[0]
                raise VerificationError(f"a member of unknown type {kind!r}: {_show(name)}")
        if local:
            raise VerificationError("the tar ends behind an extended header, before the file that it describes")

    def data(self) -> Iterator[memoryview]:
        """The stored bytes of the member that iteration is at, in pieces that are valid until the next one."""
        while self._unread:
            if self._at >= len(self._chunk) and not self._fill():
                raise _truncated()
            piece = memoryview(self._chunk)[self._at : self._at + self._unread]
            self._at += len(piece)
            self._unread -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read the source to its end, whatever follows the archive."""
        self._chunk = b""
        while self._source.read(_READ):
            pass

    # ---------------------------------------------------------------- bytes

    def _fill(self) -> bool:
        """Go on to the source's next bytes: False at its end."""
        self._start += len(self._chunk)
        self._chunk = self._source.read(_READ)
        self._at = 0
        return bool(self._chunk)

    def _exactly(self, count: int) -> bytes:
        piece = self._chunk[self._at : self._at + count]
        self._at += len(piece)
        parts = [piece]
        while count := count - len(piece):
            if not self._fill():
                raise _truncated()
            piece = self._chunk[:count]
            self._at = len(piece)
            parts.append(piece)
        return b"".join(parts) if len(parts) > 1 else piece

    def _skip(self) -> None:
        self._at += self._unread + self._padding
        self._unread = self._padding = 0
        while (beyond := self._at - len(self._chunk)) > 0:
            if not self._fill():
                raise _truncated()
            self._at = beyond

    def _header(self) -> bytes | None:
        """The next header block; None at the end of the archive (two zero blocks, or no more bytes)."""
        block = self._chunk[self._at : self._at + BLOCK]
        if len(block) == BLOCK:
            self._at += BLOCK
        elif block or self._fill():
            block = self._exactly(BLOCK)
        else:
            return None
        if block == _ZEROS:
            if (self._at < len(self._chunk) or self._fill()) and self._exactly(BLOCK) != _ZEROS:
                raise VerificationError("not a tar: a single zero block between members")
            return None
        check_sum(block)
        return block

    def _extension(self, block: bytes) -> bytes:
        size = number(block[124:136])
        self._extended += max(size, 0)
        if size < 0 or self._extended > _LARGEST_EXTENSION:
            # several for one member count together: their records are all held until it comes
            raise VerificationError(f"an extended header of {size} bytes, {self._extended} with those before it")
        data = self._exactly(size)
        self._padding = -size % BLOCK
        self._skip()
        return data

    # ---------------------------------------------------------------- members

    def _entry(self, block: bytes, pax: dict[bytes, bytes], sparse: list[tuple[bytes, bytes]]) -> Entry | None:
        name, mode, uid, gid, length, mtime, kind, link, magic, prefix = _FIELDS.unpack(block)
        name = name.partition(b"\0")[0]
        if prefix[0] and magic == b"ustar\0":
            name = prefix.partition(b"\0")[0] + b"/" + name
        entry = Entry(
            name,
            _TYPES.get(kind, kind),
            repeated(mode) & 0o7777,
            integer(pax[b"uid"]) if pax and pax.get(b"uid") else repeated(uid),
            integer(pax[b"gid"]) if pax and pax.get(b"gid") else repeated(gid),
            integer(pax[b"size"]) if pax and pax.get(b"size") else number(length),
            nanoseconds(pax[b"mtime"]) if pax and pax.get(b"mtime") else repeated(mtime) * 10**9,
            link.partition(b"\0")[0] if link[0] else b"",
        )
        if pax:
            _extend(entry, pax)
        if entry.size < 0:
            raise VerificationError(f"a file of {entry.size} bytes")
        if entry.type == REGULAR and entry.name[-1:] == b"/" and _SPARSE + b"name" not in pax:
            _as_directory(entry, kind)
        elif entry.type in {CHARACTER, BLOCK_DEVICE}:
            entry.device = (number(block[329:337]), number(block[337:345]))
        if kind in _NO_FILES and pax.get(b"size"):
            raise VerificationError(f"a label with two sizes: {_show(entry.name)}")
        if entry.type == REGULAR or kind in _NO_FILES:
            self._unread = entry.stored = entry.size
            self._padding = -entry.size % BLOCK
            if kind == _GNU_SPARSE:
                self._old_sparse(entry, block)
            elif sparse and entry.type == REGULAR:
                self._pax_sparse(entry, pax, sparse)
        else:
            entry.size = 0  # whatever it says: readers agree that no data follows
        entry.offset = self._start + self._at
        return None if kind in _NO_FILES else entry

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        entry.size = number(block[483:495])
        segments = _gnu_segments(block[386:482])
        more = block[482]
        while more:
            extension = self._exactly(BLOCK)
            segments += _gnu_segments(extension[:504])
            more = extension[504]
            if len(segments) > _LARGEST_EXTENSION // 24:
                raise VerificationError(f"a sparse file in too many pieces: {_show(entry.name)}")
        _set_segments(entry, segments)

    def _pax_sparse(self, entry: Entry, pax: dict[bytes, bytes], records: list[tuple[bytes, bytes]]) -> None:
        entry.size = integer(pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size") or b"")
        if pax.get(b"GNU.sparse.major") == b"1":
            flat = self._sparse_map(entry)
        elif b"GNU.sparse.map" in pax:
            flat = [integer(word) for word in pax[b"GNU.sparse.map"].split(b",") if word]
        else:
            flat = [integer(value) for key, value in records if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}]
        if len(flat) % 2:
            raise VerificationError(f"a broken sparse map: {_show(entry.name)}")
        _set_segments(entry, list(zip(flat[::2], flat[1::2], strict=True)))

    def _sparse_map(self, entry: Entry) -> list[int]:
        """Version 1.0: decimal lines in front of the data, the first one says how many pairs follow."""
        text, wanted = b"", 1
        while text.count(b"\n") < wanted:
            if self._unread < BLOCK or len(text) > _LARGEST_EXTENSION:
                raise VerificationError(f"a broken sparse map: {_show(entry.name)}")
            text += self._exactly(BLOCK)
            self._unread -= BLOCK
            entry.stored -= BLOCK
            if b"\n" in text:
                wanted = 1 + 2 * integer(text.partition(b"\n")[0])
        if wanted < 1:
            raise VerificationError(f"a broken sparse map: {_show(entry.name)}")
        return [integer(line) for line in text.split(b"\n")[1:wanted]]


def _set_segments(entry: Entry, segments: list[tuple[int, int]]) -> None:
    end = 0
    for offset, length in segments:
        if offset < end or length < 0:
            raise VerificationError(f"a broken sparse map: {_show(entry.name)}")
        end = offset + length
    if end > entry.size or sum(length for _, length in segments) != entry.stored:
        raise VerificationError(f"a sparse map that does not fit its file: {_show(entry.name)}")
    entry.segments = segments


def _gnu_segments(area: bytes) -> list[tuple[int, int]]:
    pairs = []
    for at in range(0, len(area), 24):
        if not area[at]:
            break
        pairs.append((number(area[at : at + 12]), number(area[at + 12 : at + 24])))
    return pairs


def _extend(entry: Entry, pax: dict[bytes, bytes]) -> None:
    entry.name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or entry.name
    entry.link = pax.get(b"linkpath") or entry.link
    if b"\0" in entry.name or b"\0" in entry.link:
        raise VerificationError(f"a name with a zero byte in it: {_show(entry.name)}")
    for key, value in pax.items():
        if key.startswith(_XATTR):
            if b"\0" in key:
                raise VerificationError(f"an attribute with a zero byte in its name: {_show(entry.name)}")
            entry.xattrs[key[len(_XATTR) :]] = value


def _as_directory(entry: Entry, kind: bytes) -> None:
    """What tars from before ustar have, and GNU tar takes of any: a regular file whose name ends in a slash."""
    if kind == _GNU_SPARSE or (entry.size and kind != b"\0"):
        raise VerificationError(
            f"a file with the name of a directory, which others read otherwise: {_show(entry.name)}"
        )
    entry.type = DIRECTORY


def _truncated() -> VerificationError:
    return VerificationError("the tar is truncated")


def _show(name: bytes) -> str:
    return ascii(name[:100].decode("utf-8", "backslashreplace"))
