"""Reading the tar dialects that layers come in: ustar, PAX, GNU, sparse files; names are bytes throughout.

Faster than tarfile and stricter: what does not parse is an error, never skipped. Sources: POSIX pax, "ustar
Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from storage.errors import VerificationError
from storage.interfaces import ByteSource

BLOCK = 512
REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

_ZEROS = bytes(BLOCK)
_READ = 1 << 20
_LARGEST_EXTENSION = 1 << 20  # bytes of one PAX header, long name or sparse map; Go's archive/tar has the same limit
_LONG_NAME, _LONG_LINK, _GNU_SPARSE, _PAX, _PAX_SOLARIS, _PAX_GLOBAL = b"L", b"K", b"S", b"x", b"X", b"g"
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_TIME = re.compile(rb"(-?)(\d{1,20})(?:\.(\d*))?")


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
        self._buffer = memoryview(b"")
        self._taken = 0  # bytes from the source
        self._global: dict[bytes, bytes] = {}
        self._unread = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        """The members. What `data` was not asked for is skipped."""
        local: dict[bytes, bytes] = {}
        sparse: list[tuple[bytes, bytes]] = []
        while (block := self._header()) is not None:
            kind = block[156:157]
            if kind in {_PAX, _PAX_SOLARIS, _PAX_GLOBAL}:
                records = _pax_records(self._extension(block))
                if kind == _PAX_GLOBAL:
                    self._global.update(records)
                else:
                    local.update(records)
                    sparse = [record for record in records if record[0].startswith(_SPARSE)]
            elif kind == _LONG_NAME:
                local.setdefault(b"path", self._extension(block).partition(b"\0")[0])
            elif kind == _LONG_LINK:
                local.setdefault(b"linkpath", self._extension(block).partition(b"\0")[0])
            else:
                entry = self._entry(block, {**self._global, **local} if self._global else local, sparse)
                local, sparse = {}, []
                if entry is not None:
                    yield entry
                self._skip()
        if local:
            raise VerificationError("the tar ends behind an extended header, before the file that it describes")

    def data(self) -> Iterator[memoryview]:
        """The stored bytes of the member that iteration is at, in pieces that are valid until the next one."""
        while self._unread:
            piece = self._some(self._unread)
            self._unread -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read the source to its end, whatever follows the archive."""
        self._buffer = memoryview(b"")
        while self._source.read(_READ):
            pass

    # ---------------------------------------------------------------- bytes

    def _some(self, most: int) -> memoryview:
        if not self._buffer and not self._fill():
            raise VerificationError("the tar is truncated")
        piece, self._buffer = self._buffer[:most], self._buffer[most:]
        return piece

    def _exactly(self, count: int) -> bytes:
        piece = self._some(count) if count else b""
        if len(piece) == count:
            return bytes(piece)
        parts = [bytes(piece)]
        count -= len(piece)
        while count:
            parts.append(bytes(self._some(count)))
            count -= len(parts[-1])
        return b"".join(parts)

    def _skip(self) -> None:
        for _ in self.data():
            pass
        while self._padding:
            self._padding -= len(self._some(self._padding))

    def _header(self) -> bytes | None:
        """The next header block; None at the end of the archive (two zero blocks, or no more bytes)."""
        if not self._buffer and not self._fill():
            return None
        block = self._exactly(BLOCK)
        if block == _ZEROS:
            if (self._buffer or self._fill()) and self._exactly(BLOCK) != _ZEROS:
                raise VerificationError("not a tar: a single zero block between members")
            return None
        # two spellings of the checksum exist: of unsigned and, from old systems, of signed bytes
        total = sum(block[:148]) + sum(block[156:]) + 256
        told = _number(block[148:156], "checksum")
        if told != total and told != total - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
            raise VerificationError("not a tar: a header's checksum is wrong")
        return block

    def _fill(self) -> bool:
        self._buffer = memoryview(self._source.read(_READ))
        self._taken += len(self._buffer)
        return bool(self._buffer)

    def _extension(self, block: bytes) -> bytes:
        size = _number(block[124:136], "size")
        if not 0 <= size <= _LARGEST_EXTENSION:
            raise VerificationError(f"an extended header of {size} bytes")
        data = self._exactly(size)
        self._padding = -size % BLOCK
        self._skip()
        return data

    # ---------------------------------------------------------------- members

    def _entry(self, block: bytes, pax: dict[bytes, bytes], sparse: list[tuple[bytes, bytes]]) -> Entry | None:
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or _name(block)
        kind = block[156:157]
        if kind in {b"\0", b"7"}:
            kind = REGULAR
        if kind == REGULAR and name.endswith(b"/") and _SPARSE + b"name" not in pax:
            kind = DIRECTORY  # as tars from before ustar have it
        size = _integer(pax[b"size"]) if pax.get(b"size") else _number(block[124:136], "size")
        if size < 0:
            raise VerificationError(f"a file of {size} bytes")
        entry = Entry(
            name=name,
            type=REGULAR if kind == _GNU_SPARSE else kind,
            mode=_number(block[100:108], "mode") & 0o7777,
            uid=_integer(pax[b"uid"]) if pax.get(b"uid") else _number(block[108:116], "owner"),
            gid=_integer(pax[b"gid"]) if pax.get(b"gid") else _number(block[116:124], "group"),
            size=size,
            mtime=_nanoseconds(pax[b"mtime"]) if pax.get(b"mtime") else _number(block[136:148], "time") * 10**9,
            link=pax.get(b"linkpath") or block[157:257].partition(b"\0")[0],
        )
        if pax:
            entry.xattrs = {key[len(_XATTR) :]: value for key, value in pax.items() if key.startswith(_XATTR)}
        if kind in {CHARACTER, BLOCK_DEVICE}:
            entry.device = (_number(block[329:337], "device"), _number(block[337:345], "device"))
        if entry.type == REGULAR or kind in {b"V", b"D"}:
            self._unread = entry.stored = size
            self._padding = -size % BLOCK
        elif kind not in {HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO}:
            raise VerificationError(f"a member of unknown type {kind!r}: {_show(name)}")
        if b"\0" in entry.name or b"\0" in entry.link:
            raise VerificationError(f"a name with a zero byte in it: {_show(name)}")
        if kind == _GNU_SPARSE:
            self._old_sparse(entry, block)
        elif sparse and entry.type == REGULAR:
            self._pax_sparse(entry, pax, sparse)
        entry.offset = self._taken - len(self._buffer)
        return None if kind in {b"V", b"D"} else entry  # a volume's label, a list of names: no files

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        entry.size = _number(block[483:495], "size")
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
        entry.size = _integer(pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size") or b"")
        if pax.get(b"GNU.sparse.major") == b"1":
            flat = self._sparse_map(entry)
        elif b"GNU.sparse.map" in pax:
            flat = [_integer(word) for word in pax[b"GNU.sparse.map"].split(b",") if word]
        else:
            flat = [_integer(value) for key, value in records if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}]
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
                wanted = 1 + 2 * _integer(text.partition(b"\n")[0])
        return [_integer(line) for line in text.split(b"\n")[1:wanted]]


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
        pairs.append((_number(area[at : at + 12], "offset"), _number(area[at + 12 : at + 24], "length")))
    return pairs


def _pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """`<length> <key>=<value>\\n`, where the length counts all of it. An empty value takes a record back."""
    records = []
    while data:
        told, space, _ = data.partition(b" ")
        length = _integer(told) if space else 0
        record = data[len(told) + 1 : length - 1]
        key, equals, value = record.partition(b"=")
        if length <= len(told) + 1 or data[length - 1 : length] != b"\n" or not equals or not key:
            raise VerificationError("a broken PAX header")
        records.append((key, value))
        data = data[length:]
    return records


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        return prefix + b"/" + name
    return name


def _number(data: bytes, what: str) -> int:
    """Octal, or base 256 when the first bit is set (two's complement, GNU)."""
    if data[0] & 0x80:
        value = int.from_bytes(bytes([data[0] & 0x7F]) + data[1:], "big")
        return value - (1 << 8 * len(data) - 1) if data[0] & 0x40 else value
    text = data.partition(b"\0")[0].strip()
    if text.isdigit() and b"8" not in text and b"9" not in text:  # int() alone would take "0o7", "1_0" and " +1"
        return int(text, 8)
    if not text:
        return 0
    raise VerificationError(f"not a tar: {data!r} as {what}")


def _integer(text: bytes) -> int:
    if not text.lstrip(b"-").isdigit() or len(text) > 20:
        raise VerificationError(f"not a number in a PAX header: {text[:40]!r}")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    found = _TIME.fullmatch(text)
    if not found:
        raise VerificationError(f"not a time in a PAX header: {text[:40]!r}")
    fraction = int((found[3] or b"").ljust(9, b"0")[:9])
    return int(found[2]) * 10**9 + fraction if not found[1] else -int(found[2]) * 10**9 - fraction


def _show(name: bytes) -> str:
    return ascii(name[:100].decode("utf-8", "backslashreplace"))
